"""The plan: a model and a list of times as folded weights, ready to run (docs/design.md, "Truth and plan").

A plan computes what `model/` computes, for B samples of T latents at fixed times. What no input reaches is already in it:
time embeddings and adaLN vectors of every step, the latent decoder's first self-attention and first query, the
cross-attention to the null context. Whatever reads one context shares one GEMM for its keys and values.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm_kernels.checkpoint import check_finite
from dllm_kernels.config import LDLMConfig
from dllm_kernels.fold import FoldedLinear, Numerics, apply_linear, fold_linear, layer_norm
from dllm_kernels.model.denoiser import Denoiser
from dllm_kernels.model.layers import CrossAttention, DecoderLayer, sdpa
from dllm_kernels.model.perceiver import Perceiver
from dllm_kernels.model.token_decoder import TokenDecoder
from dllm_kernels.ops.attention import attention
from dllm_kernels.ops.linear import LinearConstants, linear
from dllm_kernels.ops.modulate import modulate

ModuleSource = Callable[[str], nn.Module]
"""A part of the model by name (model/ldlm.py, MODULES), built or read when it is asked for."""


@dataclass(frozen=True)
class Layer:
    """One folded transformer layer: self-attention, cross-attention where `cross_out` is there, MLP.

    A layer whose self-attention and query were constant has `query_constant` [1, T, H, D] and no `qkv`.
    """

    heads: int
    causal: bool
    qkv: FoldedLinear | None
    out: FoldedLinear | None
    query: FoldedLinear | None
    query_constant: Tensor | None
    cross_out: FoldedLinear | None
    up: FoldedLinear
    down: FoldedLinear


@dataclass(frozen=True)
class Context:
    """Keys and values [B, S, L, 2, H, D] of L layers on one context, and which of its S entries attend [B, S], or None."""

    key_values: Tensor
    mask: Tensor | None = None

    def of(self, layer: int) -> tuple[Tensor, Tensor]:
        """(keys, values) [B, S, H, D] of a layer."""
        return self.key_values[:, :, layer, 0], self.key_values[:, :, layer, 1]


class Plan:
    """A model packed for inference.

    Args:
        config: the model's.
        source: gives the model's parts; each is asked for once and let go when it is packed.
        times: [N] float64, the denoiser's time at each step.
        seq_len: T, up to the config's.
        with_context: whether the denoiser reads a prompt; otherwise the null context is folded in.
        numerics: dtypes and device.
        batch_invariant, backend: how ops run (ops/linear.py, ops/dispatch.py).

    Raises:
        ValueError: a weight holds NaN or infinity; names it.
    """

    def __init__(
        self,
        config: LDLMConfig,
        source: ModuleSource,
        times: Tensor,
        seq_len: int,
        with_context: bool,
        numerics: Numerics,
        batch_invariant: bool = False,
        backend: str = "auto",
    ):
        self.config, self.seq_len, self.numerics = config, seq_len, numerics
        self._options = {"batch_invariant": batch_invariant, "backend": backend}
        self.statistics = source("statistics")
        for name, pack in (
            ("denoiser", lambda module: self._pack_denoiser(module, times, with_context)),
            ("latent_decoder", self._pack_latent_decoder),
            ("token_decoder", self._pack_token_decoder),
            ("lm_head", self._pack_lm_head),
        ):
            module = source(name)
            check_finite((f"{name}.{key}", tensor) for key, tensor in module.state_dict().items())
            pack(module)
            del module
        del self.statistics, self._final_norm

    # Running

    def first_input(self, latents: Tensor) -> Tensor:
        """Initial noise [B, T, d_z] -> the denoiser's input of step 0; later ones are written by denoise_update."""
        if self.config.self_conditioning:
            return self.numerics.activation(torch.cat((latents, torch.zeros_like(latents)), dim=-1))
        return self.numerics.activation(latents + self.time_shift[0])

    def next_shift(self, step: int) -> Tensor | None:
        """What is added to the latents after `step` to make the next input, where that is all there is to it: [d] or None."""
        if self.config.self_conditioning:
            return None
        return self.time_shift[min(step + 1, len(self.time_shift) - 1)]

    def denoise(self, step: int, inputs: Tensor, context: Context | None) -> Tensor:
        """The denoiser's input [B, T, 2 d_z or d_z] of a step -> its prediction of z0 [B, T, d_z]."""
        if self.project_in is None:
            x = inputs
        elif step == 0 and self.config.first_prediction == "skip":
            x = inputs[..., : self.config.latent_dim] + self.first_shift
        else:
            x = self._linear(inputs, self.project_in.at(step), residual=self.positions)
        for index, layer in enumerate(self.denoiser_layers):
            x = self._run(layer, x, step, index, context)
        if self.project_out is None:
            return modulate(x, self.out_scale, self.out_shift, backend=self._options["backend"])
        return self._linear(x, self.project_out.at(step))

    def context(self, hidden: Tensor, mask: Tensor, given: Tensor, guidance: bool) -> Context:
        """Keys and values of a prompt for every layer of the denoiser.

        Args:
            hidden: [B, P, d_h], as the frozen encoder gives it.
            mask: [B, P] bool, True where the prompt has a token.
            given: bool scalar, False to use the null context instead.
            guidance: append the same samples without their prompt.

        Returns:
            B entries, 2B with guidance: the second half reads the null context.
        """
        key_values = self._linear(hidden, self.prompt_key_value.at(0))
        null = torch.zeros_like(key_values)
        null[:, 0] = self.null_key_value
        first = torch.zeros_like(mask)
        first[:, 0] = True
        key_values, mask = torch.where(given, key_values, null), torch.where(given, mask, first)
        if guidance:
            key_values, mask = torch.cat((key_values, null)), torch.cat((mask, first))
        return Context(self._heads(key_values, len(self.denoiser_layers), self.config.num_heads), mask)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, T, d_z] -> what the lm_head reads, [B, T, d_h]: latent decoder, token decoder, final norm."""
        config, z = self.config, self.numerics.activation(latents)
        context = Context(self._heads(self._linear(z, self.latent_key_value.at(0)), len(self.latent_layers), config.num_heads))
        x = self.latent_start.expand(len(z), -1, -1)
        for index, layer in enumerate(self.latent_layers):
            x = self._run(layer, x, 0, index, context)
        if self.latent_out is not None:
            x = self._linear(x, self.latent_out.at(0))
        key_values = self._linear(x, self.token_key_value.at(0))
        context = Context(self._heads(key_values, len(self.token_layers), config.token_decoder_heads))
        for index, layer in enumerate(self.token_layers):
            x = self._run(layer, x, 0, index, context)
        return modulate(x, backend=self._options["backend"])

    def _run(self, layer: Layer, x: Tensor, step: int, index: int, context: Context | None) -> Tensor:
        if layer.qkv is not None:
            q, k, v = self._linear(x, layer.qkv.at(step)).unflatten(-1, (3, layer.heads, -1)).unbind(dim=2)
            x = self._linear(self._attention(q, k, v, None, layer.causal), layer.out.at(step), residual=x)
        if layer.cross_out is not None:
            if layer.query_constant is not None:
                q = layer.query_constant.expand(len(x), -1, -1, -1)
            else:
                q = self._linear(x, layer.query.at(step)).unflatten(-1, (layer.heads, -1))
            x = self._linear(self._attention(q, *context.of(index), context.mask), layer.cross_out.at(step), residual=x)
        hidden = self._linear(x, layer.up.at(step), gelu=True)
        return self._linear(hidden, layer.down.at(step), residual=x)

    def _linear(self, x: Tensor, constants: LinearConstants, **epilogue) -> Tensor:
        return linear(x, constants, **epilogue, **self._options)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
        if self._options["batch_invariant"] and len(q) > 1:
            samples = zip(q.split(1), k.split(1), v.split(1), [None] * len(q) if mask is None else mask.split(1), strict=True)
            parts = [attention(*(t if t is None else t.clone() for t in s), causal, self._options["backend"]) for s in samples]
            return torch.cat(parts).flatten(2)
        return attention(q, k, v, mask, causal, self._options["backend"]).flatten(2)

    @staticmethod
    def _heads(key_values: Tensor, layers: int, heads: int) -> Tensor:
        return key_values.unflatten(-1, (layers, 2, heads, -1))

    # Packing

    def _fold(self, layer: nn.Linear, **around) -> FoldedLinear:
        return fold_linear(layer.weight, layer.bias, self.numerics, **around)

    def _fold_key_values(self, attentions: list[CrossAttention], **around) -> FoldedLinear:
        biases = [a.key_value.bias for a in attentions]
        weight = torch.cat([a.key_value.weight.detach() for a in attentions])
        return fold_linear(weight, None if biases[0] is None else torch.cat(biases), self.numerics, **around)

    @torch.no_grad()
    def _pack_denoiser(self, denoiser: Denoiser, times: Tensor, with_context: bool) -> None:
        numerics = self.numerics
        embedding = copy.deepcopy(denoiser.time_embedding).to(numerics.device).double()
        time = embedding(times.to(numerics.device))
        self.time_shift = None if denoiser.project_in is not None else numerics.table(time)
        self.first_shift = numerics.activation(time[0])
        self.project_in = self.positions = None
        if denoiser.project_in is not None:
            added = None if self.config.ada_ln else time
            self.project_in = self._fold(denoiser.project_in, added=added)
        if denoiser.positions is not None:
            self.positions = numerics.activation(denoiser.positions[:, : self.seq_len])
        self.denoiser_layers = []
        for block in denoiser.blocks:
            attn, mlp = {"norm": block.self_norm}, {"norm": block.mlp_norm}
            gates = (None, None)
            if block.modulation is not None:
                table = apply_linear(F.silu(time), block.modulation, numerics).chunk(6, dim=-1)
                attn |= {"shift": table[0], "scale": table[1]}
                mlp |= {"shift": table[3], "scale": table[4]}
                gates = (table[2], table[5])
            constant = query = cross_out = None
            if self.config.context and with_context:
                query = self._fold(block.cross_attention.query, norm=block.cross_norm)
                cross_out = self._fold(block.cross_attention.out)
            elif self.config.context:
                # Softmax over one key is 1, so attending to the null context adds the same vector everywhere.
                value = apply_linear(denoiser.null_context[0], block.cross_attention.key_value, numerics).chunk(2, dim=-1)[1]
                constant = apply_linear(value, block.cross_attention.out, numerics)[0]
            self.denoiser_layers.append(
                Layer(
                    heads=block.self_attention.heads,
                    causal=False,
                    qkv=self._fold(block.self_attention.qkv, **attn),
                    out=self._fold(block.self_attention.out, gate=gates[0], added=constant),
                    query=query,
                    query_constant=None,
                    cross_out=cross_out,
                    up=self._fold(block.mlp.up, **mlp),
                    down=self._fold(block.mlp.down, gate=gates[1]),
                )
            )
        if self.config.context and with_context:
            attentions = [block.cross_attention for block in denoiser.blocks]
            self.prompt_key_value = self._fold_key_values(attentions, **self._standardizing("hidden"))
            null_values = [apply_linear(denoiser.null_context[0], a.key_value, numerics) for a in attentions]
            self.null_key_value = numerics.activation(torch.cat(null_values, dim=-1)[0])
        self.project_out = self.out_scale = self.out_shift = None
        if denoiser.out_modulation is None:
            self.out_scale = numerics.table(denoiser.out_norm.weight.double() - 1)
            self.out_shift = numerics.table(denoiser.out_norm.bias)
        else:
            shift, scale = apply_linear(F.silu(time), denoiser.out_modulation, numerics).chunk(2, dim=-1)
            self.project_out = self._fold(denoiser.project_out, norm=denoiser.out_norm, shift=shift, scale=scale)

    @torch.no_grad()
    def _pack_latent_decoder(self, decoder: Perceiver) -> None:
        numerics, heads = self.numerics, self.config.num_heads
        queries, first = numerics.exact(decoder.latents[0, : self.seq_len]), decoder.layers[0]
        qkv = apply_linear(layer_norm(queries, first.self_norm, numerics), first.self_attention.qkv, numerics)
        attended = sdpa(*qkv.unflatten(-1, (3, heads, -1)).unsqueeze(0).unbind(dim=2)).flatten(2)[0]
        x = queries + apply_linear(attended, first.self_attention.out, numerics)
        query = apply_linear(layer_norm(x, first.cross_norm, numerics), first.cross_attention.query, numerics)
        self.latent_start = numerics.activation(x).unsqueeze(0)
        constant = numerics.activation(query.unflatten(-1, (heads, -1)).unsqueeze(0))
        self.latent_layers = [self._pack_layer(first, constant), *map(self._pack_layer, decoder.layers[1:])]
        attentions = [layer.cross_attention for layer in decoder.layers]
        self.latent_key_value = self._fold_key_values(attentions, **self._restoring_latents())
        self.latent_out = self._fold(decoder.project_out) if isinstance(decoder.project_out, nn.Linear) else None

    @torch.no_grad()
    def _pack_token_decoder(self, decoder: TokenDecoder) -> None:
        self.token_layers = [self._pack_layer(layer) for layer in decoder.layers]
        self.token_key_value = self._fold_key_values([layer.cross_attention for layer in decoder.layers])
        self._final_norm = decoder.norm

    def _pack_layer(self, layer: DecoderLayer, query_constant: Tensor | None = None) -> Layer:
        cross, own = layer.cross_attention, layer.self_attention
        folded = query_constant is not None
        return Layer(
            heads=own.heads,
            causal=own.causal,
            qkv=None if folded else self._fold(own.qkv, norm=layer.self_norm),
            out=None if folded else self._fold(own.out),
            query=None if folded else self._fold(cross.query, norm=layer.cross_norm),
            query_constant=query_constant,
            cross_out=self._fold(cross.out),
            up=self._fold(layer.mlp.up, norm=layer.mlp_norm),
            down=self._fold(layer.mlp.down),
        )

    @torch.no_grad()
    def _pack_lm_head(self, lm_head: nn.Linear) -> None:
        # decode() ends with the plain normalisation, so only the final norm's gain and offset are left to fold.
        folded = fold_linear(
            lm_head.weight,
            lm_head.bias,
            self.numerics,
            input_scale=self._final_norm.weight,
            input_shift=self._final_norm.bias,
        )
        self.lm_head_weight, self.lm_head_bias = folded.weight, self.numerics.table(folded.bias[0])

    def _standardizing(self, of: str) -> dict[str, Tensor]:
        """(u - mean) / std as an input scale and shift."""
        if not self.statistics.enabled:
            return {}
        mean, std = self.statistics.hidden_mean.double(), self.statistics.hidden_std.double()
        return {"input_scale": 1 / std, "input_shift": -mean / std}

    def _restoring_latents(self) -> dict[str, Tensor]:
        if not self.statistics.enabled:
            return {}
        return {"input_scale": self.statistics.latent_std, "input_shift": self.statistics.latent_mean}
