"""The plan: a model and a list of times as folded weights, ready to run (docs/design.md, "Truth and plan").

A plan computes what `model/` computes, for B samples of T latents at fixed times. What no input reaches is already in it:
time embeddings and adaLN vectors of every step, the latent decoder's first self-attention and first query, the
cross-attention to the null context. Whatever reads one context shares one GEMM for its keys and values.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm_kernels.inference.fold import (
    Context,
    FoldedLinear,
    Layer,
    Numerics,
    apply_linear,
    fold_linear,
    layer_norm,
)
from dllm_kernels.model.checkpoint import check_finite
from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.model.denoiser import Denoiser
from dllm_kernels.model.layers import CrossAttention, DecoderLayer, sdpa
from dllm_kernels.model.perceiver import Perceiver
from dllm_kernels.model.token_decoder import TokenDecoder
from dllm_kernels.ops.attention.op import attention
from dllm_kernels.ops.denoise_update.op import denoise_update
from dllm_kernels.ops.linear.op import linear
from dllm_kernels.ops.linear.packing import PackedWeight
from dllm_kernels.ops.linear.params import Activations, LinearParams
from dllm_kernels.ops.linear.skinny import empty_workspace, select_config, workspace_elements
from dllm_kernels.ops.lm_head.op import lm_head
from dllm_kernels.ops.lm_head.skinny import select_config as select_lm_head_config
from dllm_kernels.ops.modulate.op import modulate

ModuleSource = Callable[[str], nn.Module]
"""A part of the model by name (model/ldlm.py, MODULES), built or read when it is asked for."""


class Plan:
    """A model packed for inference.

    Args:
        config: the model's.
        source: gives the model's parts; each is asked for once and let go when it is packed.
        times: [N] float64, the denoiser's time at each step.
        seq_len: T, up to the config's.
        batch_size: B, samples of a call.
        context_len: P, the longest prompt that the denoiser reads; for 0 the null context is folded in.
        guidance: whether the denoiser runs every sample twice, with and without its prompt.
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
        batch_size: int,
        context_len: int,
        guidance: bool,
        numerics: Numerics,
        batch_invariant: bool = False,
        backend: str = "auto",
    ):
        self.config, self.seq_len, self.numerics = config, seq_len, numerics
        self._options = {"batch_invariant": batch_invariant, "backend": backend}
        # What has no CUDA kernel of its own is served by the best that there is.
        self._elsewhere = self._options | ({"backend": "auto"} if backend == "cuda" else {})
        self._batch, self._context_len, self._copies = batch_size, context_len, 2 if guidance else 1
        self._workspace_elements = 0
        self.statistics = source("statistics")
        for name, pack in (
            ("denoiser", lambda module: self._pack_denoiser(module, times)),
            ("latent_decoder", self._pack_latent_decoder),
            ("token_decoder", self._pack_token_decoder),
            ("lm_head", self._pack_lm_head),
        ):
            module = source(name)
            check_finite((f"{name}.{key}", tensor) for key, tensor in module.state_dict().items())
            pack(module)
            del module
        del self.statistics, self._final_norm
        self._workspace = empty_workspace(self._workspace_elements, numerics.device)
        zero, self._one = torch.zeros((), dtype=torch.int64, device=numerics.device), torch.ones((), device=numerics.device)
        self._no_update = numerics.table(torch.tensor([[1.0, 0, 0, 0]])), 0, zero, zero

    # Running

    def first_input(self, latents: Tensor) -> Activations:
        """Initial noise [B, T, d_z] -> the denoiser's input of step 0; denoise_update writes those of later steps into it, and
        this one by an update that changes nothing."""
        width, rows = (1 + self.config.self_conditioning) * self.config.latent_dim, self._copies * len(latents)
        x = latents.new_empty((rows, self.seq_len, width), dtype=self.numerics.activations)
        reads = self.project_in is None and self._streamed(self.denoiser_layers[0].first)
        left = latents.new_empty((rows * self.seq_len, 1, 2), dtype=torch.float32) if reads else None
        shift = None if self.config.self_conditioning else self.time_shift[0]
        nothing = x.new_zeros((rows, *latents.shape[1:]))
        scale, backend = self._one if self._copies > 1 else None, self._options["backend"]
        denoise_update(latents, nothing, None, x, *self._no_update, shift, scale, statistics=left, backend=backend)
        return Activations(x, stats=left, stats_chunk=width) if reads else Activations(x)

    def next_shift(self, step: int) -> Tensor | None:
        """What is added to the latents after `step` to make the next input, where that is all there is to it: [d] or None.
        After the last step nothing is, so that the input is what decode() reads."""
        last = self.config.self_conditioning or step + 1 == len(self.time_shift)
        return None if last else self.time_shift[step + 1]

    def denoise(self, step: int, inputs: Activations, context: Context | None) -> Tensor:
        """The denoiser's input [B, T, 2 d_z or d_z] of a step -> its prediction of z0 [B, T, d_z].

        Where `out_scale` is there, the output norm is still to be applied: denoise_update does so.
        """
        first = self.denoiser_layers[0].first.at(step)
        if self.project_in is None:
            rows = inputs
        elif step == 0 and self.config.first_prediction == "skip":
            rows = Activations(inputs.x[..., : self.config.latent_dim] + self.first_shift)
        else:
            rows = self._linear(inputs, self.project_in.at(step), residual=self.positions, then=first)
        last = None if self.project_out is None else self.project_out.at(step)
        rows = self._run_layers(self.denoiser_layers, rows, step, context, last)
        return rows.x if last is None else self._linear(rows, last).x

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
        key_values = self._linear(Activations(hidden), self.prompt_key_value.at(0)).x
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
        z = Activations(self.numerics.activation(latents))
        context = Context(
            self._heads(self._linear(z, self.latent_key_value.at(0)).x, len(self.latent_layers), self.config.num_heads)
        )
        after = self.token_layers[0].first.at(0) if self.latent_out is None else None
        rows = self._run_layers(self.latent_layers, Activations(self.latent_start), 0, context, after)
        if self.latent_out is not None:
            rows = self._linear(rows, self.latent_out.at(0), then=self.token_layers[0].first.at(0))
        key_values = self._linear(rows, self.token_key_value.at(0)).x
        context = Context(self._heads(key_values, len(self.token_layers), self.config.token_decoder_heads))
        rows = self._run_layers(self.token_layers, rows, 0, context, None)
        return modulate(rows.x, backend=self._elsewhere["backend"])

    def tokens(
        self, hidden: Tensor, temperature: Tensor, seed: Tensor, first_sample: Tensor, logprobs: bool
    ) -> tuple[Tensor, Tensor | None]:
        """What decode() gave -> tokens [B, T] and their log-probabilities (ops/lm_head.py)."""
        weight, bias = self.lm_head_weight, self.lm_head_bias
        return lm_head(hidden, weight, bias, temperature, seed, first_sample, logprobs, **self._options)

    def _run_layers(
        self, layers: list[Layer], rows: Activations, step: int, context: Context | None, then: LinearParams | None
    ) -> Activations:
        """`then` is the layer after the last, which the statistics are for."""
        for index, layer in enumerate(layers):
            after = layers[index + 1].first.at(step) if index + 1 < len(layers) else then
            rows = self._run(layer, rows, step, index, context, after)
        return rows

    def _run(
        self, layer: Layer, rows: Activations, step: int, index: int, context: Context | None, then: LinearParams | None
    ) -> Activations:
        up = layer.up.at(step)
        if layer.qkv is not None:
            q, k, v = self._linear(rows, layer.qkv.at(step)).x.unflatten(-1, (3, layer.heads, -1)).unbind(dim=2)
            attended = Activations(self._attention(q, k, v, None, layer.causal))
            after = up if layer.query is None else layer.query.at(step)
            rows = self._linear(attended, layer.out.at(step), residual=rows.x, then=after)
        if layer.cross_out is not None:
            keys, values = context.of(index)
            if layer.query_constant is not None:
                q = layer.query_constant.expand(len(keys), -1, -1, -1)
            else:
                q = self._linear(rows, layer.query.at(step)).x.unflatten(-1, (layer.heads, -1))
            attended = Activations(self._attention(q, keys, values, context.mask))
            rows = self._linear(attended, layer.cross_out.at(step), residual=rows.x, then=up)
        hidden = self._linear(rows, up, gelu=True)
        return self._linear(hidden, layer.down.at(step), residual=rows.x, then=then)

    def _linear(
        self,
        rows: Activations,
        constants: LinearParams,
        *,
        gelu: bool = False,
        residual: Tensor | None = None,
        then: LinearParams | None = None,
    ) -> Activations:
        """Applies a layer; `then` is the normalised layer that reads the result next, or None."""
        around = {"gelu": gelu, "residual": residual, "next_layer": then, "workspace": self._workspace}
        return linear(rows, constants, **around, **self._elsewhere)

    @staticmethod
    def _streamed(layer: FoldedLinear) -> bool:
        return isinstance(layer.weight, PackedWeight)

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

    @property
    def _rows(self) -> int:
        return self._batch * self.seq_len

    def _fold(self, layer: nn.Linear, rows: int, **around) -> FoldedLinear:
        return self._fold_weight(layer.weight, layer.bias, rows, **around)

    def _fold_key_values(self, attentions: list[CrossAttention], rows: int, **around) -> FoldedLinear:
        biases = [a.key_value.bias for a in attentions]
        weight = torch.cat([a.key_value.weight.detach() for a in attentions])
        return self._fold_weight(weight, None if biases[0] is None else torch.cat(biases), rows, **around)

    def _as_for(self, rows: int) -> int | None:
        """A batch-invariant plan streams and cuts as for one sample, so that a row's sums do not depend on the batch."""
        return rows // self._batch if self._options["batch_invariant"] else None

    def _fold_weight(self, weight: Tensor, bias: Tensor | None, rows: int, **around) -> FoldedLinear:
        """Folds a layer that is applied to `rows` rows, packed for streaming where that is faster."""
        numerics = self.numerics
        as_for = self._as_for(rows)
        cut = select_config(rows, *weight.shape, numerics.weights, numerics.device, self._options["backend"], as_for)
        folded = fold_linear(weight, bias, numerics, cut=cut, **around)
        if cut is not None:
            self._workspace_elements = max(self._workspace_elements, workspace_elements(folded.weight, rows))
        return folded

    @torch.no_grad()
    def _pack_denoiser(self, denoiser: Denoiser, times: Tensor) -> None:
        numerics, with_context = self.numerics, self._context_len > 0
        rows = self._copies * self._batch * self.seq_len
        embedding = copy.deepcopy(denoiser.time_embedding).to(numerics.device).double()
        time = embedding(times.to(numerics.device))
        self.time_shift = None if denoiser.project_in is not None else numerics.table(time)
        self.first_shift = numerics.activation(time[0])
        self.project_in = self.positions = None
        if denoiser.project_in is not None:
            added = None if self.config.ada_ln else time
            self.project_in = self._fold(denoiser.project_in, rows, added=added)
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
                query = self._fold(block.cross_attention.query, rows, norm=block.cross_norm)
                cross_out = self._fold(block.cross_attention.out, rows)
            elif self.config.context:
                # Softmax over one key is 1, so attending to the null context adds the same vector everywhere.
                value = apply_linear(denoiser.null_context[0], block.cross_attention.key_value, numerics).chunk(2, dim=-1)[1]
                constant = apply_linear(value, block.cross_attention.out, numerics)[0]
            self.denoiser_layers.append(
                Layer(
                    heads=block.self_attention.heads,
                    causal=False,
                    qkv=self._fold(block.self_attention.qkv, rows, **attn),
                    out=self._fold(block.self_attention.out, rows, gate=gates[0], added=constant),
                    query=query,
                    query_constant=None,
                    cross_out=cross_out,
                    up=self._fold(block.mlp.up, rows, **mlp),
                    down=self._fold(block.mlp.down, rows, gate=gates[1]),
                )
            )
        if self.config.context and with_context:
            attentions = [block.cross_attention for block in denoiser.blocks]
            self.prompt_key_value = self._fold_key_values(
                attentions, self._batch * self._context_len, **self._standardizing("hidden")
            )
            null_values = [apply_linear(denoiser.null_context[0], a.key_value, numerics) for a in attentions]
            self.null_key_value = numerics.activation(torch.cat(null_values, dim=-1)[0])
        self.project_out = self.out_scale = self.out_shift = None
        if denoiser.out_modulation is None:
            self.out_scale = numerics.table(denoiser.out_norm.weight.double() - 1)
            self.out_shift = numerics.table(denoiser.out_norm.bias)
        else:
            shift, scale = apply_linear(F.silu(time), denoiser.out_modulation, numerics).chunk(2, dim=-1)
            self.project_out = self._fold(denoiser.project_out, rows, norm=denoiser.out_norm, shift=shift, scale=scale)

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
        self.latent_key_value = self._fold_key_values(attentions, self._rows, **self._restoring_latents())
        self.latent_out = self._fold(decoder.project_out, self._rows) if isinstance(decoder.project_out, nn.Linear) else None

    @torch.no_grad()
    def _pack_token_decoder(self, decoder: TokenDecoder) -> None:
        self.token_layers = [self._pack_layer(layer) for layer in decoder.layers]
        self.token_key_value = self._fold_key_values([layer.cross_attention for layer in decoder.layers], self._rows)
        self._final_norm = decoder.norm

    def _pack_layer(self, layer: DecoderLayer, query_constant: Tensor | None = None) -> Layer:
        cross, own = layer.cross_attention, layer.self_attention
        folded = query_constant is not None
        return Layer(
            heads=own.heads,
            causal=own.causal,
            qkv=None if folded else self._fold(own.qkv, self._rows, norm=layer.self_norm),
            out=None if folded else self._fold(own.out, self._rows),
            query=None if folded else self._fold(cross.query, self._rows, norm=layer.cross_norm),
            query_constant=query_constant,
            cross_out=self._fold(cross.out, self._rows),
            up=self._fold(layer.mlp.up, self._rows, norm=layer.mlp_norm),
            down=self._fold(layer.mlp.down, self._rows),
        )

    @torch.no_grad()
    def _pack_lm_head(self, layer: nn.Linear) -> None:
        # decode() ends with the plain normalisation, so only the final norm's gain and offset are left to fold.
        numerics = self.numerics
        as_for, backend = self._as_for(self._rows), self._options["backend"]
        cut = select_lm_head_config(self._rows, layer.in_features, numerics.weights, numerics.device, backend, as_for)
        around = {"input_scale": self._final_norm.weight, "input_shift": self._final_norm.bias}
        folded = fold_linear(layer.weight, layer.bias, numerics, cut=cut, **around)
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
