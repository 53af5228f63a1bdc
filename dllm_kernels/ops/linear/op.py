"""The linear layer of a plan (reference.py has its formula), by the variant that is to compute it.

skinny      few rows: a packed weight, read once; all that surrounds the GEMM is in its epilogue (CUDA)
persistent  many rows: the weight as it is, LayerNorm before it, the rest in the epilogue (CUDA, Hopper)
library     everything else
"""

import torch
from torch import Tensor

from dllm_kernels.ops.linear import persistent
from dllm_kernels.ops.linear.library import linear_library
from dllm_kernels.ops.linear.packing import PackedWeight
from dllm_kernels.ops.linear.params import Activations, LinearParams
from dllm_kernels.ops.linear.reference import EPS, row_statistics
from dllm_kernels.ops.linear.skinny import linear_skinny
from dllm_kernels.ops.modulate.op import modulate


def select_variant(x: Tensor, params: LinearParams, residual: Tensor | None = None, backend: str = "auto") -> str:
    """The variant that computes a layer: "skinny", "persistent" or "library"."""
    if isinstance(params.weight, PackedWeight):
        return "skinny"
    fast = backend == "auto" and persistent.supports(x, params.weight, params.bias, params.gate, residual)
    return "persistent" if fast else "library"


def linear(
    activations: Activations,
    params: LinearParams,
    *,
    gelu: bool = False,
    residual: Tensor | None = None,
    next_layer: LinearParams | None = None,
    workspace: Tensor | None = None,
    batch_invariant: bool = False,
    backend: str = "auto",
) -> Activations:
    """Applies a folded layer.

    Args:
        activations: x [B, T, K], with what the layer before has left.
        params: the folded layer.
        gelu: exact GELU after the bias.
        residual: [B, T, N] or [1, T, N], added last.
        next_layer: the normalised layer that reads the result next, for which a packed layer leaves scaled activations and
            row statistics; or None.
        workspace: what `skinny.empty_workspace` made, with a packed weight.
        batch_invariant: every sample's result is the same in any batch: what a library computes, it computes on its own.
        backend: who computes it (dispatch.py).

    Returns:
        y [B, T, N] in x's dtype.
    """
    x = activations.x
    if isinstance(params.weight, PackedWeight):
        return _skinny(activations, params, gelu, residual, next_layer, workspace, batch_invariant)
    if batch_invariant and x.shape[0] > 1:
        parts = [None] * len(x) if residual is None else residual.expand(len(x), -1, -1).split(1)
        # A clone starts at an aligned address whatever the sample's place in the batch.
        samples = zip(x.split(1), parts, strict=True)
        return Activations(torch.cat([_unpacked(sample.clone(), params, gelu, part, backend) for sample, part in samples]))
    return Activations(_unpacked(x, params, gelu, residual, backend))


def _skinny(
    activations: Activations,
    params: LinearParams,
    gelu: bool,
    residual: Tensor | None,
    next_layer: LinearParams | None,
    workspace: Tensor,
    batch_invariant: bool,
) -> Activations:
    x, stats, stats_chunk = activations.x, None, 0
    if params.column_sums is not None:
        known = activations.stats is not None
        stats = activations.stats if known else _statistics(x, batch_invariant)
        stats_chunk = activations.stats_chunk if known else x.shape[-1]
    if params.scale is not None:
        x = (x * (1 + params.scale)).to(x.dtype) if activations.scaled is None else activations.scaled
    packed_next = next_layer is not None and isinstance(next_layer.weight, PackedWeight)
    y, scaled, left = linear_skinny(
        x.contiguous(),
        params.weight,
        params.bias,
        workspace,
        column_sums=params.column_sums,
        stats=stats,
        stats_chunk=stats_chunk,
        gate=params.gate,
        gelu=gelu,
        residual=residual,
        next_scale=next_layer.scale if packed_next else None,
        with_stats=packed_next and next_layer.column_sums is not None,
    )
    return Activations(y, scaled, left, params.weight.config.tile_n)


def _statistics(x: Tensor, batch_invariant: bool) -> Tensor:
    """Row statistics of x; a sample at a time where a library's sums must not depend on the batch."""
    return torch.cat([row_statistics(sample) for sample in (x.split(1) if batch_invariant else [x])])


def _unpacked(x: Tensor, params: LinearParams, gelu: bool, residual: Tensor | None, backend: str) -> Tensor:
    if select_variant(x, params, residual, backend) == "persistent":
        u = x if params.column_sums is None else modulate(x, params.scale, eps=EPS)
        added = None if residual is None else residual.contiguous()
        return persistent.linear_persistent(u.contiguous(), params.weight, params.bias, params.gate, added, gelu)
    y = linear_library(x, params, gelu, backend)
    return y if residual is None else y.add_(residual)
