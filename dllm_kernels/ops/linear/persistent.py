"""linear_persistent: a linear layer for many rows on Hopper, as one CUDA kernel that multiplies while it does the rest.

    y = act((x W^T) gate + bias) + residual

W stays as it is, [N, K]; the product is rounded to bfloat16 before what follows it, as the library's is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels.ops.dispatch import aligned, implementation, select
from dllm_kernels.ops.extension import cuda_unsupported_reason, has_warpgroups, load
from dllm_kernels.utils.device import multiprocessors

TILE_ROWS, TILE_OUTPUTS, DEPTH = 128, 256, 64
MIN_SHARE = 0.85
"""Of the tiles that the card's SMs take in whole rounds, the share that a call must fill to be faster than the library
(docs/kernels.md)."""


def unsupported_reason(device: torch.device) -> str | None:
    """Why the CUDA kernel cannot run on a device, or None."""
    reason = cuda_unsupported_reason(device)
    if reason is None and not has_warpgroups(device):
        return "the kernel multiplies by warpgroups, which only Hopper has (sm_90a)"
    return reason


def is_faster(multiprocessors: int, rows: int, outputs: int) -> bool:
    """Whether a layer fills a card's SMs with tiles well enough to be faster than the library's product and what follows."""
    tiles = -(-rows // TILE_ROWS) * -(-outputs // TILE_OUTPUTS)
    rounds = -(-tiles // multiprocessors)
    return rows > 0 and rows * outputs >= MIN_SHARE * rounds * multiprocessors * TILE_ROWS * TILE_OUTPUTS


def supports(x: Tensor, weight: Tensor) -> bool:
    """Whether a layer is to be computed here: the kernel has code for it, and it wins."""
    outputs, width = weight.shape
    fits = x.dtype == weight.dtype == torch.bfloat16 and outputs % 8 == 0 and width % DEPTH == 0
    rows = x.shape[:-1].numel()
    return fits and unsupported_reason(x.device) is None and is_faster(multiprocessors(x.device), rows, outputs)


def reference(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, residual: Tensor | None, gelu: bool) -> Tensor:
    """The formula above in x's dtype."""
    y = x @ weight.to(x.dtype).T
    y = (y if gate is None else y * gate.to(x.dtype)) + bias.to(x.dtype)
    y = F.gelu(y) if gelu else y
    return y if residual is None else y + residual.to(x.dtype)


@implementation(
    "linear_persistent",
    "cuda",
    unsupported_reason,
    f"bfloat16, where tiles of {TILE_ROWS} x {TILE_OUTPUTS} fill {MIN_SHARE:.0%} of the SMs' rounds",
)
def _cuda(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, residual: Tensor | None, gelu: bool) -> Tensor:
    outputs, width = weight.shape
    y = x.new_empty((*x.shape[:-1], outputs))
    with torch.cuda.device(x.device):
        load().linear_tiled(
            weight=weight.data_ptr(),
            input=x.data_ptr(),
            bias=bias.data_ptr(),
            gate=0 if gate is None else gate.data_ptr(),
            residual=0 if residual is None else residual.data_ptr(),
            output=y.data_ptr(),
            rows=x.shape[:-1].numel(),
            outputs=outputs,
            width=width,
            residual_rows=1 if residual is None else residual.shape[:-1].numel(),
            blocks=multiprocessors(x.device),
            gelu=gelu,
            stream=torch.cuda.current_stream(x.device).cuda_stream,
        )
    return y


@implementation("linear_persistent", "torch", limits="for tests: no plan uses tiles here")
def _torch(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, residual: Tensor | None, gelu: bool) -> Tensor:
    return reference(x.float(), weight, bias, gate, residual, gelu).to(x.dtype)


@torch.library.custom_op("dllm_kernels::linear_persistent", mutates_args=())
def linear_persistent(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    gelu: bool = False,
) -> Tensor:
    """A linear layer with what follows it. For inference: it has no gradient.

    Args:
        x: [B, T, K] bfloat16, contiguous; K is a multiple of 64.
        weight: [N, K] bfloat16, contiguous; N is a multiple of 8.
        bias: [N] bfloat16.
        gate: [N] float32, adaLN's gate of the product.
        residual: bfloat16 [B, T, N], or [1, T, N] for all samples, contiguous, added last.
        gelu: exact GELU after the bias.

    Returns:
        [B, T, N] bfloat16. A row's result depends neither on the rows beside it nor on its place among them.

    Where the CUDA kernel cannot run, PyTorch computes the same in float32, slowly: for tests.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    _validate(x, weight, bias, gate, residual)
    return select("linear_persistent", x.device).function(x, weight, bias, gate, residual, gelu)


@linear_persistent.register_fake
def _(x, weight, bias, gate=None, residual=None, gelu=False):
    _validate(x, weight, bias, gate, residual)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _validate(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, residual: Tensor | None) -> None:
    if weight.ndim != 2 or weight.shape[0] % 8 or weight.shape[1] % DEPTH or weight.numel() == 0:
        raise ValueError(f"weight is {list(weight.shape)}; it must be [N, K] with N a multiple of 8 and K of {DEPTH}")
    n, k = weight.shape
    if x.ndim != 3 or x.shape[-1] != k or x.numel() == 0:
        raise ValueError(f"x is {list(x.shape)}; it must be [B, T, {k}] and not empty")
    batch, length = x.shape[:2]
    if residual is not None and (residual.shape[1:] != (length, n) or residual.shape[0] not in (1, batch)):
        raise ValueError(f"residual is {list(residual.shape)}; it must be [{batch}, {length}, {n}] or [1, {length}, {n}]")
    for name, vector in (("bias", bias), ("gate", gate)):
        if vector is not None and tuple(vector.shape) != (n,):
            raise ValueError(f"{name} is {list(vector.shape)}; it must be [{n}]")
    wanted = {"x": x, "weight": weight, "bias": bias, "gate": gate, "residual": residual}
    for name, tensor in wanted.items():
        if tensor is None:
            continue
        dtype = torch.float32 if name == "gate" else torch.bfloat16
        if tensor.dtype != dtype or not tensor.is_contiguous():
            raise ValueError(f"{name} is {tensor.dtype} with strides {tensor.stride()}; it must be contiguous {dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} and x on {x.device}; they must share a device")
        if x.is_cuda and not aligned(tensor):
            raise ValueError(f"{name} is at an address that is not a multiple of 16 bytes")
