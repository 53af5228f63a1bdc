"""What a linear layer of a plan reads, and what passes from layer to layer."""

from dataclasses import dataclass

from torch import Tensor

from dllm_kernels.ops.linear.packing import PackedWeight


@dataclass(frozen=True)
class LinearParams:
    """What one application of a folded layer reads.

    Attributes:
        weight: [N, K] in the plan's dtype; or packed for skinny.py, which then computes the layer.
        bias: [N], in the activations' dtype; float32 with a packed weight.
        column_sums: [N] where the input is normalised, otherwise None.
        scale: [K], adaLN's scale of the normalised input, or None.
        gate: [N], adaLN's gate of the product, or None.
    """

    weight: Tensor | PackedWeight
    bias: Tensor
    column_sums: Tensor | None = None
    scale: Tensor | None = None
    gate: Tensor | None = None


@dataclass(frozen=True)
class Activations:
    """x [B, T, K], and what the layer that wrote it has left for the next one.

    Attributes:
        x: the activations.
        scaled: x (1 + scale) for the adaLN scale of the next layer, or None.
        stats: row statistics of x [B T, chunks, 2] in chunks of `stats_chunk` columns, or None.
    """

    x: Tensor
    scaled: Tensor | None = None
    stats: Tensor | None = None
    stats_chunk: int = 0
