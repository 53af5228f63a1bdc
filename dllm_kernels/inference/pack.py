"""Packing: a model and a list of times, folded into the weights that a plan reads (docs/design.md, "Truth and plan").

Whatever does not depend on a call's input is computed here, once, in float64 (fold.py):

- the time embedding and adaLN's vectors of every step;
- the latent decoder's first self-attention and first query, which read only learned vectors;
- the cross-attention to the null context, where a plan reads no prompt;
- one weight for the keys and values of all layers that read the same context.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm_kernels.inference.fold import FoldedLinear, Numerics, apply_linear, fold_linear, layer_norm
from dllm_kernels.inference.known import known_part
from dllm_kernels.model.checkpoint import check_finite
from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.model.denoiser import Block, Denoiser, TimeEmbedding, time_features
from dllm_kernels.model.layers import CrossAttention, DecoderLayer, sdpa
from dllm_kernels.model.ldlm import Statistics
from dllm_kernels.model.perceiver import Perceiver
from dllm_kernels.model.token_decoder import TokenDecoder
from dllm_kernels.ops.extension import max_cluster
from dllm_kernels.ops.linear.packing import PackedWeight
from dllm_kernels.ops.linear.skinny import select_config, workspace_elements
from dllm_kernels.ops.lm_head.skinny import select_config as select_lm_head_config
from dllm_kernels.utils.ambient import unaffected

ModuleSource = Callable[[str], nn.Module]
"""Gives a part of the model by its name (model/ldlm.py, MODULES). The part is built or read when it is asked for."""


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is packed for, and how it runs.

    Attributes:
        seq_len: T, latents of a sample, up to the config's.
        batch_size: B, samples of a call.
        numerics: dtypes and device.
        context_len: P, the longest prompt that the denoiser reads, in tokens; 0 folds the null context in.
        guidance: whether the denoiser runs every sample twice, with and without its prompt.
        batch_invariant: a sample's result does not depend on the batch that it is in, bit for bit.
        backend: "auto", "cuda", "triton" or "torch" (ops/dispatch.py).
    """

    seq_len: int
    batch_size: int
    numerics: Numerics
    context_len: int = 0
    guidance: bool = False
    batch_invariant: bool = False
    backend: str = "auto"

    @property
    def copies(self) -> int:
        """How often the denoiser runs a sample in a step: 2 with guidance, otherwise 1."""
        return 2 if self.guidance else 1


@dataclass(frozen=True)
class PackedLayer:
    """One transformer layer: self-attention, cross-attention where `cross_out` is there, MLP.

    Attributes:
        heads: H, of both attentions.
        causal: whether the self-attention is causal.
        qkv: [3 d, d], or None where the self-attention was constant and is folded into the layer's input.
        out: [d, d], or None with `qkv`.
        query: [d, d], the cross-attention's, or None where there is none or it was constant.
        query_constant: [1, T, H, D], the query where it was constant, otherwise None.
        cross_out: [d, d], or None where the layer has no cross-attention.
        up: [4 d, d].
        down: [d, 4 d].
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

    @property
    def first(self) -> FoldedLinear:
        """The first linear layer that reads the layer's normalised input."""
        if self.qkv is not None:
            return self.qkv
        return self.up if self.query is None else self.query


@dataclass(frozen=True)
class PackedDenoiser:
    """The denoiser at N fixed times.

    Attributes:
        layers: one for each block.
        project_in: [d, 2 d_z], or None for a model without self-conditioning.
        positions: [1, T, d], added after `project_in`, or None.
        time_shift: [N, d], the time embedding that is added to the latents where there is no `project_in`, or None.
        first_shift: [d], the time embedding of step 0.
        project_out: [d_z, d], or None for a model without adaLN.
        norm_scale, norm_shift: [d], gain less 1 and offset of the output norm, which the solver's update applies; None
            where the norm is folded into `project_out`.
        prompt_key_value: [2 d L, d_h], keys and values of all L layers, or None for a plan without a prompt.
        null_key_value: [2 d L], what `prompt_key_value` would give for the null context, or None.
    """

    layers: list[PackedLayer]
    project_in: FoldedLinear | None
    positions: Tensor | None
    time_shift: Tensor | None
    first_shift: Tensor
    project_out: FoldedLinear | None
    norm_scale: Tensor | None
    norm_shift: Tensor | None
    prompt_key_value: FoldedLinear | None
    null_key_value: Tensor | None


@dataclass(frozen=True)
class PackedLatentDecoder:
    """The latent decoder, from its first cross-attention on: what comes before reads only learned vectors.

    Attributes:
        start: [1, T, d], the learned queries after the first layer's self-attention.
        layers: one for each layer; the first has a constant query and no self-attention.
        key_value: [2 d L, d_z], keys and values of all L layers, from standardised latents.
        project_out: [d_h, d], or None where d_h is d.
    """

    start: Tensor
    layers: list[PackedLayer]
    key_value: FoldedLinear
    project_out: FoldedLinear | None


@dataclass(frozen=True)
class PackedTokenDecoder:
    """The token decoder, less its final norm.

    Attributes:
        layers: one for each layer.
        key_value: [2 d_h L, d_h], keys and values of all L layers.
    """

    layers: list[PackedLayer]
    key_value: FoldedLinear


@dataclass(frozen=True)
class PackedHead:
    """The lm_head, with the gain and the offset of the token decoder's final norm in it.

    Attributes:
        weight: [V, d_h], or packed for lm_head_skinny.
        bias: [V], a table.
    """

    weight: Tensor | PackedWeight
    bias: Tensor


@dataclass(frozen=True)
class PackedModel:
    """All that a generation reads.

    Attributes:
        denoiser, latent_decoder, token_decoder, lm_head: the parts.
        workspace_elements: float32 values of the workspace that the packed linear layers share.
    """

    denoiser: PackedDenoiser
    latent_decoder: PackedLatentDecoder
    token_decoder: PackedTokenDecoder
    lm_head: PackedHead
    workspace_elements: int


@unaffected()
def pack_model(config: LDLMConfig, source: ModuleSource, times: Tensor, options: PlanOptions) -> PackedModel:
    """Packs a model part by part: each part is asked for once, and let go before the next is asked for.

    Args:
        config: the model's.
        source: gives the model's parts.
        times: [N] float64, the denoiser's time at each step.
        options: what is packed for.

    Raises:
        ValueError: a weight holds NaN or infinity, or a module is not one that packing knows (known.py); names it.
    """
    packer = _Packer(config, _checked(source, "statistics", config), options)
    # A part is only an argument here, so that nothing holds it when its packing is done.
    denoiser = packer.denoiser(_checked(source, "denoiser", config), times)
    latent_decoder = packer.latent_decoder(_checked(source, "latent_decoder", config))
    module = _checked(source, "token_decoder", config)
    token_decoder, final_norm = packer.token_decoder(module), module.norm
    del module
    lm_head = packer.lm_head(_checked(source, "lm_head", config), final_norm)
    return PackedModel(denoiser, latent_decoder, token_decoder, lm_head, packer.workspace_elements)


def _checked(source: ModuleSource, name: str, config: LDLMConfig) -> nn.Module:
    """The part `name`, after its modules and its weights were checked."""
    module = known_part(name, source(name), config)
    check_finite((f"{name}.{key}", tensor) for key, tensor in module.state_dict().items())
    return module


def _step_embedding(denoiser: Denoiser, times: Tensor, numerics: Numerics) -> Tensor:
    """`Denoiser.step_embedding` of times [N], in float64 on the plan's device."""

    def embedded(values: Tensor, embedding: TimeEmbedding) -> Tensor:
        features = time_features(values, embedding.sinusoidal)
        return apply_linear(F.silu(apply_linear(features, embedding.up, numerics)), embedding.down, numerics)

    times = numerics.exact(times)
    time = embedded(times, denoiser.time_embedding)
    guidance = denoiser.guidance_embedding
    return time if guidance is None else time + embedded(denoiser.guidance_shares(times), guidance)


class _Packer:
    """Packs the parts of one model, and adds up the workspace that their kernels share."""

    def __init__(self, config: LDLMConfig, statistics: Statistics, options: PlanOptions):
        self.config, self.statistics, self.options = config, statistics, options
        self.rows = options.batch_size * options.seq_len
        self.workspace_elements = 0

    def denoiser(self, denoiser: Denoiser, times: Tensor) -> PackedDenoiser:
        numerics = self.options.numerics
        time = _step_embedding(denoiser, times, numerics)
        added = None if self.config.ada_ln else time
        # A plan shares no memory with the model.
        positions = None if denoiser.positions is None else denoiser.positions[:, : self.options.seq_len].detach().clone()
        project_in = None if denoiser.project_in is None else self._fold(denoiser.project_in, self._denoiser_rows, added=added)
        layers = [self._block(block, denoiser, time) for block in denoiser.blocks]
        prompt_key_value, null_key_value = self._context(denoiser) if self._reads_prompt else (None, None)
        project_out = norm_scale = norm_shift = None
        if denoiser.out_modulation is None:
            norm_scale = numerics.table(denoiser.out_norm.weight.double() - 1)
            norm_shift = numerics.table(denoiser.out_norm.bias.detach().clone())
        else:
            shift, scale = apply_linear(F.silu(time), denoiser.out_modulation, numerics).chunk(2, dim=-1)
            around = {"norm": denoiser.out_norm, "shift": shift, "scale": scale}
            project_out = self._fold(denoiser.project_out, self._denoiser_rows, **around)
        return PackedDenoiser(
            layers=layers,
            project_in=project_in,
            positions=None if positions is None else numerics.activation(positions),
            time_shift=numerics.table(time) if denoiser.project_in is None else None,
            first_shift=numerics.activation(time[0]),
            project_out=project_out,
            norm_scale=norm_scale,
            norm_shift=norm_shift,
            prompt_key_value=prompt_key_value,
            null_key_value=null_key_value,
        )

    def latent_decoder(self, decoder: Perceiver) -> PackedLatentDecoder:
        numerics, heads = self.options.numerics, self.config.num_heads
        queries, first = numerics.exact(decoder.latents[0, : self.options.seq_len]), decoder.layers[0]
        qkv = apply_linear(layer_norm(queries, first.self_norm, numerics), first.self_attention.qkv, numerics)
        attended = sdpa(*qkv.unflatten(-1, (3, heads, -1)).unsqueeze(0).unbind(dim=2)).flatten(2)[0]
        x = queries + apply_linear(attended, first.self_attention.out, numerics)
        query = apply_linear(layer_norm(x, first.cross_norm, numerics), first.cross_attention.query, numerics)
        start = numerics.activation(x).unsqueeze(0)
        constant = numerics.activation(query.unflatten(-1, (heads, -1)).unsqueeze(0))
        layers = [self._layer(first, constant), *map(self._layer, decoder.layers[1:])]
        attentions = [layer.cross_attention for layer in decoder.layers]
        key_value = self._fold_key_values(attentions, self.rows, **self._restoring_latents())
        projects = isinstance(decoder.project_out, nn.Linear)
        project_out = self._fold(decoder.project_out, self.rows) if projects else None
        return PackedLatentDecoder(start, layers, key_value, project_out)

    def token_decoder(self, decoder: TokenDecoder) -> PackedTokenDecoder:
        layers = [self._layer(layer) for layer in decoder.layers]
        key_value = self._fold_key_values([layer.cross_attention for layer in decoder.layers], self.rows)
        return PackedTokenDecoder(layers, key_value)

    def lm_head(self, layer: nn.Linear, final_norm: nn.LayerNorm) -> PackedHead:
        # The plan normalises without gain and offset before the lm_head, so those two are folded in here.
        numerics, backend = self.options.numerics, self.options.backend
        decided_for = self._decided_for(self.rows)
        config = select_lm_head_config(self.rows, layer.in_features, numerics.weights, numerics.device, backend, decided_for)
        around = {"input_scale": final_norm.weight, "input_shift": final_norm.bias}
        folded = fold_linear(layer.weight, layer.bias, numerics, config=config, **around)
        return PackedHead(folded.weight, numerics.table(folded.bias[0]))

    def _block(self, block: Block, denoiser: Denoiser, time: Tensor) -> PackedLayer:
        numerics, rows = self.options.numerics, self._denoiser_rows
        attention, mlp = {"norm": block.self_norm}, {"norm": block.mlp_norm}
        gates = (None, None)
        if block.modulation is not None:
            table = apply_linear(F.silu(time), block.modulation, numerics).chunk(6, dim=-1)
            attention |= {"shift": table[0], "scale": table[1]}
            mlp |= {"shift": table[3], "scale": table[4]}
            gates = (table[2], table[5])
        constant = query = cross_out = None
        if self._reads_prompt:
            query = self._fold(block.cross_attention.query, rows, norm=block.cross_norm)
            cross_out = self._fold(block.cross_attention.out, rows)
        elif self.config.context:
            # Softmax over one key is 1, so attending to the null context adds the same vector everywhere.
            value = apply_linear(denoiser.null_context[0], block.cross_attention.key_value, numerics).chunk(2, dim=-1)[1]
            constant = apply_linear(value, block.cross_attention.out, numerics)[0]
        return PackedLayer(
            heads=block.self_attention.heads,
            causal=False,
            qkv=self._fold(block.self_attention.qkv, rows, **attention),
            out=self._fold(block.self_attention.out, rows, gate=gates[0], added=constant),
            query=query,
            query_constant=None,
            cross_out=cross_out,
            up=self._fold(block.mlp.up, rows, **mlp),
            down=self._fold(block.mlp.down, rows, gate=gates[1]),
        )

    def _context(self, denoiser: Denoiser) -> tuple[FoldedLinear, Tensor]:
        """Keys and values of every block: the layer that makes them of a prompt, and those of the null context."""
        numerics, attentions = self.options.numerics, [block.cross_attention for block in denoiser.blocks]
        rows = self.options.batch_size * self.options.context_len
        key_values = self._fold_key_values(attentions, rows, **self._standardizing_hidden())
        null_values = [apply_linear(denoiser.null_context[0], a.key_value, numerics) for a in attentions]
        return key_values, numerics.activation(torch.cat(null_values, dim=-1)[0])

    def _layer(self, layer: DecoderLayer, query_constant: Tensor | None = None) -> PackedLayer:
        cross, own = layer.cross_attention, layer.self_attention
        folded = query_constant is not None
        return PackedLayer(
            heads=own.heads,
            causal=own.causal,
            qkv=None if folded else self._fold(own.qkv, self.rows, norm=layer.self_norm),
            out=None if folded else self._fold(own.out, self.rows),
            query=None if folded else self._fold(cross.query, self.rows, norm=layer.cross_norm),
            query_constant=query_constant,
            cross_out=self._fold(cross.out, self.rows),
            up=self._fold(layer.mlp.up, self.rows, norm=layer.mlp_norm),
            down=self._fold(layer.mlp.down, self.rows),
        )

    @property
    def _denoiser_rows(self) -> int:
        return self.options.copies * self.rows

    @property
    def _reads_prompt(self) -> bool:
        return self.config.context and self.options.context_len > 0

    def _fold(self, layer: nn.Linear, rows: int, **around) -> FoldedLinear:
        return self._fold_weight(layer.weight, layer.bias, rows, **around)

    def _fold_key_values(self, attentions: list[CrossAttention], rows: int, **around) -> FoldedLinear:
        biases = [a.key_value.bias for a in attentions]
        weight = torch.cat([a.key_value.weight.detach() for a in attentions])
        return self._fold_weight(weight, None if biases[0] is None else torch.cat(biases), rows, **around)

    def _fold_weight(self, weight: Tensor, bias: Tensor | None, rows: int, **around) -> FoldedLinear:
        """Folds a layer that is applied to `rows` rows, and packs it for linear_skinny where that is faster."""
        numerics = self.options.numerics
        config = select_config(
            rows, *weight.shape, numerics.weights, numerics.device, self.options.backend, self._decided_for(rows)
        )
        folded = fold_linear(weight, bias, numerics, config=config, **around)
        if config is not None:
            needed = workspace_elements(folded.weight, rows, max_cluster(numerics.device))
            self.workspace_elements = max(self.workspace_elements, needed)
        return folded

    def _decided_for(self, rows: int) -> int | None:
        """The rows that a layer's kernel and its configuration are chosen for, where they are not the call's.

        A batch-invariant plan chooses as for one sample, so that a row's sums do not depend on the batch.
        """
        return rows // self.options.batch_size if self.options.batch_invariant else None

    def _standardizing_hidden(self) -> dict[str, Tensor]:
        """(u - mean) / std of hidden states, as an input scale and shift."""
        if not self.statistics.enabled:
            return {}
        mean, std = self.statistics.hidden_mean.double(), self.statistics.hidden_std.double()
        return {"input_scale": 1 / std, "input_shift": -mean / std}

    def _restoring_latents(self) -> dict[str, Tensor]:
        """u std + mean of latents, as an input scale and shift."""
        if not self.statistics.enabled:
            return {}
        return {"input_scale": self.statistics.latent_std, "input_shift": self.statistics.latent_mean}
