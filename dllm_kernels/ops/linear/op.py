"""The linear layer of a plan: LayerNorm, adaLN's scale, bias, GELU, gate and residual around one GEMM.

    y = act(n(x (1 + scale)) W^T gate + bias) + residual,    n(u) W^T = rstd (u W^T - mean column_sums)

where mean and rstd are the row statistics of x and `column_sums` holds the sums of W (1 + scale) along K: LayerNorm moved
behind the GEMM, exact for any W, so that a kernel may normalise in its epilogue (fold.py packs W, bias and column_sums).
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels.ops.dispatch import aligned, implementation, select
from dllm_kernels.ops.linear import persistent
from dllm_kernels.ops.linear.packing import PackedWeight
from dllm_kernels.ops.modulate.op import modulate

EPS = 1e-5
_CHUNK_ROWS, _CHUNK_ELEMENTS = 512, 2**22


@dataclass(frozen=True)
class LinearParams:
    """What one application of a folded layer reads.

    Attributes:
        weight: [N, K] in the plan's dtype; or packed for ops/linear_skinny.py, which then computes the layer.
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


def linear(
    x: Tensor,
    constants: LinearParams,
    *,
    gelu: bool = False,
    residual: Tensor | None = None,
    batch_invariant: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Applies a folded layer.

    Args:
        x: [B, T, K].
        constants: the folded layer.
        gelu: exact GELU after the bias.
        residual: [B, T, N] or [1, T, N], added last.
        batch_invariant: every sample is multiplied on its own, so that its result does not depend on the batch.
        backend: who computes it (dispatch.py).

    Returns:
        [B, T, N] in x's dtype.
    """
    if batch_invariant and x.shape[0] > 1:
        parts = [None] * len(x) if residual is None else residual.expand(len(x), -1, -1).split(1)
        # A clone starts at an aligned address whatever the sample's place in the batch.
        samples = zip(x.split(1), parts, strict=True)
        return torch.cat([_apply(sample.clone(), constants, gelu, part, backend) for sample, part in samples])
    return _apply(x, constants, gelu, residual, backend)


def _apply(x: Tensor, constants: LinearParams, gelu: bool, residual: Tensor | None, backend: str) -> Tensor:
    c = constants
    if backend == "auto" and persistent.supports(x, c.weight) and aligned(x, c.weight, c.bias, c.gate, residual):
        u = x if c.column_sums is None else modulate(x, c.scale, eps=EPS)
        added = None if residual is None else residual.contiguous()
        return persistent.linear_persistent(u.contiguous(), c.weight, c.bias, c.gate, added, gelu)
    if backend == "triton":
        backend = "auto"  # no Triton GEMM beats the library's; the other ops around it are Triton's
    y = select("linear", x.device, backend).function(x, c, gelu)
    return y if residual is None else y.add_(residual)


def reference(x: Tensor, constants: LinearParams, gelu: bool = False) -> Tensor:
    """The formula above, before the residual, in x's dtype."""
    c = constants
    u = x if c.scale is None else x * (1 + c.scale.to(x.dtype))
    y = u @ c.weight.to(x.dtype).T
    if c.column_sums is not None:
        variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
        y = torch.rsqrt(variance + EPS) * (y - mean * c.column_sums.to(x.dtype))
    y = y * c.gate.to(x.dtype) if c.gate is not None else y
    y = y + c.bias.to(x.dtype)
    return F.gelu(y) if gelu else y


@implementation("linear", "torch")
def _torch(x: Tensor, constants: LinearParams, gelu: bool) -> Tensor:
    c = constants
    if x.device.type == "cpu" and not (c.weight.dtype == torch.bfloat16 and multiplies_bfloat16()):
        return _cpu(x, constants, gelu)
    u = x if c.column_sums is None else modulate(x, c.scale, eps=EPS)
    if c.gate is None and c.weight.dtype == x.dtype:
        y = F.linear(u, c.weight, c.bias)
    else:
        product = F.linear(u.to(c.weight.dtype), c.weight).to(x.dtype)
        y = product + c.bias if c.gate is None else torch.addcmul(c.bias, product, c.gate.to(x.dtype))
    # In place, so that more of it is in L2 when the next layer reads it.
    return torch.ops.aten.gelu_(y) if gelu else y


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _cpu(x: Tensor, constants: LinearParams, gelu: bool) -> Tensor:
    """Weights as the left operand, widened a chunk at a time so that the wide copy never leaves the cache."""
    c, rows = constants, x.flatten(0, -2)
    n, k = c.weight.shape
    u = (rows if c.scale is None else rows * (1 + c.scale)).T
    if c.column_sums is not None:
        variance, mean = torch.var_mean(rows, dim=-1, correction=0)
        rstd = torch.rsqrt(variance + EPS)
    step = n if c.weight.dtype == x.dtype else max(128, min(_CHUNK_ROWS, _CHUNK_ELEMENTS // k))
    y = torch.empty(n, rows.shape[0], dtype=x.dtype)
    wide = None if c.weight.dtype == x.dtype else torch.empty(min(step, n), k, dtype=x.dtype)
    for begin in range(0, n, step):
        chunk = slice(begin, min(begin + step, n))
        weight = c.weight[chunk] if wide is None else wide[: chunk.stop - begin].copy_(c.weight[chunk])
        part = torch.mm(weight, u, out=y[chunk])
        if c.column_sums is not None:
            part.addcmul_(c.column_sums[chunk, None], mean, value=-1).mul_(rstd)
        if c.gate is not None:
            part.mul_(c.gate[chunk, None])
        part.add_(c.bias[chunk, None])
        if gelu:
            part.copy_(F.gelu(part))
    return y.T.contiguous().view(*x.shape[:-1], n)
