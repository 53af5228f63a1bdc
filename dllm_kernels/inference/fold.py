"""Folding: what does not depend on the input is computed once, in float64, and put into the weights of the next GEMM.

Weights are folded some rows at a time, so that the float64 copies stay small beside what is packed.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm_kernels.ops.linear.config import GemmConfig
from dllm_kernels.ops.linear.packing import PackedWeight, pack, whole_shape
from dllm_kernels.ops.linear.params import LinearParams

_ELEMENTS = 2**20


@dataclass(frozen=True)
class Numerics:
    """The dtypes of a plan on a device.

    Attributes:
        weights: what is packed.
        activations: what GEMMs and attention read and write.
        tables: coefficients, adaLN's tables and the latents between steps.
    """

    weights: torch.dtype
    activations: torch.dtype
    tables: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, dtype: torch.dtype, device: torch.device) -> "Numerics":
        """The dtypes for weights of `dtype`; a CPU has float32 activations over 16-bit weights, which is closer."""
        wide = torch.promote_types(dtype, torch.float32)
        return cls(dtype, wide if device.type == "cpu" else dtype, wide, device)

    def exact(self, tensor: Tensor) -> Tensor:
        """`tensor` in float64 on the plan's device, where folding is done."""
        return tensor.detach().to(self.device).double()

    def activation(self, tensor: Tensor) -> Tensor:
        """`tensor` as an activation on the plan's device."""
        return tensor.to(self.device, self.activations).contiguous()

    def table(self, tensor: Tensor) -> Tensor:
        """`tensor` as a table on the plan's device."""
        return tensor.to(self.device, self.tables).contiguous()


@dataclass(frozen=True)
class FoldedLinear:
    """A packed layer whose bias, column sums, scale and gate may differ by step: [steps, ...] or [1, ...]."""

    weight: Tensor | PackedWeight
    bias: Tensor
    column_sums: Tensor | None = None
    scale: Tensor | None = None
    gate: Tensor | None = None

    def at(self, step: int) -> LinearParams:
        """What the layer reads at a step."""
        row = [
            None if t is None else t[step if len(t) > 1 else 0] for t in (self.bias, self.column_sums, self.scale, self.gate)
        ]
        return LinearParams(self.weight, *row)


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

    @property
    def first(self) -> FoldedLinear:
        """The first linear layer that reads the layer's normalised input."""
        if self.qkv is not None:
            return self.qkv
        return self.up if self.query is None else self.query


@dataclass(frozen=True)
class Context:
    """Keys and values [B, S, L, 2, H, D] of L layers on one context, and which of its S entries attend [B, S], or None."""

    key_values: Tensor
    mask: Tensor | None = None

    def of(self, layer: int) -> tuple[Tensor, Tensor]:
        """(keys, values) [B, S, H, D] of a layer."""
        return self.key_values[:, :, layer, 0], self.key_values[:, :, layer, 1]


def fold_linear(
    weight: Tensor,
    bias: Tensor | None,
    numerics: Numerics,
    *,
    norm: nn.LayerNorm | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    gate: Tensor | None = None,
    added: Tensor | None = None,
    input_scale: Tensor | None = None,
    input_shift: Tensor | None = None,
    cut: GemmConfig | None = None,
) -> FoldedLinear:
    """Folds everything constant around y = gate * (W u + bias) + added into one packed layer.

    Args:
        weight: W [N, K].
        bias: [N] or None for zero.
        norm: u is this LayerNorm of the layer's input. Its gain goes into W, whose rows are then centred (x minus its
            mean is orthogonal to constants); its offset goes into the bias.
        scale, shift: adaLN's [steps, K]: u is n(x) (1 + scale) + shift. The shift goes into the bias of each step.
        gate: adaLN's [steps, N].
        added: [N], a constant added to the result.
        input_scale, input_shift: [K]: u is x * input_scale + input_shift, without a norm.
        cut: packs the weight for ops/linear_skinny.py, whose bias is a table.
    """
    n, k = weight.shape
    exact, float64 = numerics.exact, {"dtype": torch.float64, "device": numerics.device}
    # Padded from the start, so that it is packed in place.
    shape = (n, k) if cut is None else whole_shape(cut, n, k)
    whole = torch.zeros(shape, dtype=numerics.weights, device=numerics.device)
    packed = whole[:n, :k]
    normalised = norm is not None or scale is not None
    steps = 1 if scale is None else len(scale)
    biases = torch.zeros(steps, n, **float64)
    sums = torch.empty(steps, n, **float64) if normalised else None
    gain, offset = input_scale, input_shift
    if norm is not None and norm.elementwise_affine:
        gain, offset = norm.weight, norm.bias
    for part in torch.arange(n).split(max(1, _ELEMENTS // k)):
        rows = slice(int(part[0]), int(part[-1]) + 1)
        w = exact(weight[rows])
        if bias is not None:
            biases[:, rows] += exact(bias[rows])
        if offset is not None:
            biases[:, rows] += w @ exact(offset)
        if shift is not None:
            biases[:, rows] += exact(shift) @ w.T
        if gain is not None:
            w = w * exact(gain)
        if norm is not None and scale is None:
            w = w - w.mean(dim=1, keepdim=True)
        packed[rows] = w.to(numerics.weights)
        if normalised:
            rounded = packed[rows].double()
            sums[:, rows] = rounded.sum(dim=1) if scale is None else (1 + exact(scale)) @ rounded.T
    if gate is not None:
        biases = biases * exact(gate)
    if added is not None:
        biases = biases + exact(added)
    return FoldedLinear(
        whole if cut is None else pack(whole, cut, n, k),
        numerics.activation(biases) if cut is None else numerics.table(biases),
        None if sums is None else numerics.table(sums),
        None if scale is None else numerics.table(scale),
        None if gate is None else numerics.table(gate),
    )


def layer_norm(x: Tensor, norm: nn.LayerNorm, numerics: Numerics) -> Tensor:
    """A LayerNorm of constants x [..., K], in float64."""
    affine = [None if t is None else numerics.exact(t) for t in (norm.weight, norm.bias)]
    return F.layer_norm(numerics.exact(x), x.shape[-1:], *affine, norm.eps)


def apply_linear(x: Tensor, linear: nn.Linear, numerics: Numerics) -> Tensor:
    """A linear layer of constants x [..., K], in float64, some rows of its weight at a time."""
    rows = max(1, _ELEMENTS // linear.in_features)
    y = torch.cat([numerics.exact(x) @ numerics.exact(part).T for part in linear.weight.split(rows)], dim=-1)
    return y if linear.bias is None else y + numerics.exact(linear.bias)
