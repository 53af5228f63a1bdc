"""The linear layer around the library's GEMM: what every device, dtype and shape can have (reference.py has the formula)."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels.ops.dispatch import implementation, select
from dllm_kernels.ops.linear.params import LinearParams
from dllm_kernels.ops.linear.reference import EPS
from dllm_kernels.ops.modulate.op import modulate

_CHUNK_ROWS, _CHUNK_ELEMENTS = 512, 2**22


def linear_library(x: Tensor, params: LinearParams, gelu: bool = False, backend: str = "auto") -> Tensor:
    """act(norm(x (1 + scale)) W^T gate + bias): x [B, T, K] -> [B, T, N]; RuntimeError where the backend has no GEMM."""
    if backend == "triton":
        backend = "auto"  # no Triton GEMM beats the library's; the other ops around it are Triton's
    return select("linear", x.device, backend).function(x, params, gelu)


@implementation("linear", "torch")
def _torch(x: Tensor, params: LinearParams, gelu: bool) -> Tensor:
    c = params
    if x.device.type == "cpu" and not (c.weight.dtype == torch.bfloat16 and multiplies_bfloat16()):
        return _cpu(x, params, gelu)
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


def _cpu(x: Tensor, params: LinearParams, gelu: bool) -> Tensor:
    """Weights as the left operand, widened a chunk at a time so that the wide copy never leaves the cache."""
    c, rows = params, x.flatten(0, -2)
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
