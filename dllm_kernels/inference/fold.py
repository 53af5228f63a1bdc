"""Folding: what does not depend on the input is computed once, in float64, and put into the weights of the next GEMM.

A weight is folded a few rows at a time, so that its float64 copies stay small beside what is packed.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm_kernels.ops.linear.config import GemmConfig
from dllm_kernels.ops.linear.packing import PackedWeight, pack, whole_shape
from dllm_kernels.ops.linear.params import LinearParams

_CHUNK_ELEMENTS = 2**20
"""Values of a weight that are in float64 at a time."""


@dataclass(frozen=True)
class Numerics:
    """The dtypes of a plan, and its device.

    Attributes:
        weights: of the packed weights.
        activations: of what GEMMs and attention read and write.
        tables: of the solver's coefficients, adaLN's tables and the latents between steps.
        device: where all of them are.
    """

    weights: torch.dtype
    activations: torch.dtype
    tables: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, dtype: torch.dtype, device: torch.device) -> "Numerics":
        """The dtypes for weights of `dtype`.

        On a CPU the activations of 16-bit weights are float32, which is nearer to float64.
        """
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
    """A linear layer with its surroundings folded in. What differs by step has a row for each step, otherwise one row.

    Attributes:
        weight: [N, K] in the plan's dtype, or packed for linear_skinny.
        bias: [steps or 1, N].
        column_sums: [steps or 1, N], sums along K of W (1 + scale) where the input is normalised, otherwise None.
        scale: [steps or 1, K], adaLN's scale of the normalised input, or None.
        gate: [steps or 1, N], adaLN's gate of the product, or None.
    """

    weight: Tensor | PackedWeight
    bias: Tensor
    column_sums: Tensor | None = None
    scale: Tensor | None = None
    gate: Tensor | None = None

    @property
    def packed(self) -> bool:
        """Whether linear_skinny computes the layer, which then reads and leaves row statistics."""
        return isinstance(self.weight, PackedWeight)

    def at(self, step: int) -> LinearParams:
        """What the layer reads at a step."""
        row = [
            None if t is None else t[step if len(t) > 1 else 0] for t in (self.bias, self.column_sums, self.scale, self.gate)
        ]
        return LinearParams(self.weight, *row)


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
    config: GemmConfig | None = None,
) -> FoldedLinear:
    """Folds everything constant around y = gate (W u + bias) + added into one layer (docs/design.md, "Truth and plan").

    Args:
        weight: W [N, K], of any dtype on any device; it stays as it is.
        bias: [N], or None for zero.
        numerics: dtypes and device of the result.
        norm: u is this LayerNorm of the layer's input. Its gain goes into W, whose rows are then centred: x minus its mean
            is orthogonal to constants. Its offset goes into the bias.
        scale, shift: [steps, K], adaLN's: u is n(x) (1 + scale) + shift. The shift goes into the bias of each step.
        gate: [steps, N], adaLN's.
        added: [N], a constant that is added to the result.
        input_scale, input_shift: [K]: u is x input_scale + input_shift, without a norm.
        config: packs the weight for linear_skinny with this configuration; the bias is then a table.
    """
    n, k = weight.shape
    exact, float64 = numerics.exact, {"dtype": torch.float64, "device": numerics.device}
    # Padded from the start, so that it is packed in place.
    shape = (n, k) if config is None else whole_shape(config, n, k)
    whole = torch.zeros(shape, dtype=numerics.weights, device=numerics.device)
    packed = whole[:n, :k]
    normalised = norm is not None or scale is not None
    steps = 1 if scale is None else len(scale)
    biases = torch.zeros(steps, n, **float64)
    sums = torch.empty(steps, n, **float64) if normalised else None
    gain, offset = input_scale, input_shift
    if norm is not None and norm.elementwise_affine:
        gain, offset = norm.weight, norm.bias
    for part in torch.arange(n).split(max(1, _CHUNK_ELEMENTS // k)):
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
        whole if config is None else pack(whole, config, n, k),
        numerics.activation(biases) if config is None else numerics.table(biases),
        None if sums is None else numerics.table(sums),
        None if scale is None else numerics.table(scale),
        None if gate is None else numerics.table(gate),
    )


def layer_norm(x: Tensor, norm: nn.LayerNorm, numerics: Numerics) -> Tensor:
    """A LayerNorm of constants x [..., K], in float64 on the plan's device."""
    affine = [None if t is None else numerics.exact(t) for t in (norm.weight, norm.bias)]
    return F.layer_norm(numerics.exact(x), x.shape[-1:], *affine, norm.eps)


def apply_linear(x: Tensor, linear: nn.Linear, numerics: Numerics) -> Tensor:
    """A linear layer of constants: x [..., K] -> [..., N] float64 on the plan's device, a few rows of the weight at a time."""
    rows = max(1, _CHUNK_ELEMENTS // linear.in_features)
    y = torch.cat([numerics.exact(x) @ numerics.exact(part).T for part in linear.weight.split(rows)], dim=-1)
    return y if linear.bias is None else y + numerics.exact(linear.bias)
