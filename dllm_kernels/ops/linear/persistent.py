"""The linear layer for many rows on Hopper, as one CUDA kernel whose blocks stay and multiply while they do the rest.

    y = act((x W^T) gate + bias) + residual

W stays as it is, [N, K]; the product is rounded to bfloat16 before what follows it, as the library's is. LayerNorm comes
before the kernel (ops/modulate).
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dllm_kernels.ops.call import WRITTEN, custom_op
from dllm_kernels.ops.dispatch import aligned, implementation, select
from dllm_kernels.ops.extension import cuda_unsupported_reason, has_wgmma, launch
from dllm_kernels.ops.kernels import TILES
from dllm_kernels.ops.linear.reference import reference
from dllm_kernels.utils.device import multiprocessors

(TILE,) = TILES["linear_persistent"]
MIN_SHARE = 0.85
"""Of the tiles that the card's SMs take in whole rounds, the share that a call must fill to be faster than the library
(docs/kernels.md)."""


@dataclass(frozen=True)
class LinearPersistent:
    """A call of linear_persistent; the names are those of csrc/include/dllm/kernels.h.

    Attributes:
        input: [B, T, K] bfloat16, contiguous; K is a multiple of 64.
        weight: [N, K] bfloat16, contiguous; N is a multiple of 8.
        bias: [N] bfloat16.
        gate: [N] float32.
        residual: bfloat16 [B, T, N], or [1, T, N] for all samples, contiguous.
        gelu: exact GELU after the bias.
        output: [B, T, N] bfloat16.
    """

    input: Tensor
    weight: Tensor
    bias: Tensor
    gate: Tensor | None = None
    residual: Tensor | None = None
    gelu: bool = False
    output: Tensor | None = field(default=None, metadata=WRITTEN)

    @property
    def m(self) -> int:
        """Rows."""
        return self.input.shape[:-1].numel()

    @property
    def n(self) -> int:
        """Outputs."""
        return self.weight.shape[0]

    @property
    def k(self) -> int:
        """Columns of the input."""
        return self.weight.shape[1]

    @property
    def residual_rows(self) -> int:
        """Rows of the residual, which repeat."""
        return 1 if self.residual is None else self.residual.shape[:-1].numel()

    @property
    def blocks(self) -> int:
        """Blocks that the card runs at once, one an SM."""
        return multiprocessors(self.input.device)

    def with_output(self) -> "LinearPersistent":
        """The call with memory for what it writes."""
        return replace(self, output=self.input.new_empty((*self.input.shape[:-1], self.n)))


def unsupported_reason(device: torch.device) -> str | None:
    """Why the CUDA kernel cannot run on a device, or None."""
    reason = cuda_unsupported_reason(device)
    if reason is None and not has_wgmma(device):
        return "the kernel multiplies by wgmma, which only Hopper has (sm_90a)"
    return reason


def is_faster(multiprocessors: int, m: int, n: int) -> bool:
    """Whether a layer fills a card's SMs with tiles well enough to be faster than the library's product and what follows."""
    tiles = -(-m // TILE.tile_m) * -(-n // TILE.tile_n)
    rounds = -(-tiles // multiprocessors)
    return m > 0 and m * n >= MIN_SHARE * rounds * multiprocessors * TILE.tile_m * TILE.tile_n


def supports(x: Tensor, weight: Tensor, *around: Tensor | None) -> bool:
    """Whether a layer is to be computed here: the kernel has code for it, and is faster. `around` are its other tensors."""
    n, k = weight.shape
    fits = x.dtype == weight.dtype == torch.bfloat16 and n % 8 == 0 and k % TILE.tile_k == 0
    if not fits or unsupported_reason(x.device) is not None or not aligned(x, weight, *around):
        return False
    return is_faster(multiprocessors(x.device), x.shape[:-1].numel(), n)


@implementation(
    "linear_persistent",
    "cuda",
    unsupported_reason,
    f"bfloat16, where tiles of {TILE.tile_m} x {TILE.tile_n} fill {MIN_SHARE:.0%} of the SMs' rounds",
)
def _cuda(call: LinearPersistent) -> Tensor:
    call = call.with_output()
    launch("linear_persistent", call, call.input.device)
    return call.output


@implementation("linear_persistent", "torch", limits="for tests: no plan uses tiles here")
def _torch(call: LinearPersistent) -> Tensor:
    around = {"gate": call.gate, "gelu": call.gelu, "residual": call.residual}
    return reference(call.input.float(), call.weight, call.bias, **around).to(call.input.dtype)


_linear_persistent = custom_op(
    "linear_persistent",
    LinearPersistent,
    lambda call: select("linear_persistent", call.input.device).function(call),
    lambda call: call.with_output().output,
    "Tensor",
)


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
        x, weight, bias, gate, residual, gelu: as `LinearPersistent` has them.

    Returns:
        [B, T, N] bfloat16. A row's result depends neither on the rows beside it nor on its place among them.

    Where the CUDA kernel cannot run, PyTorch computes the same in float32, slowly: for tests.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    call = LinearPersistent(x, weight, bias, gate, residual, gelu)
    _validate(call)
    return _linear_persistent(call)


def _validate(call: LinearPersistent) -> None:
    x, weight, residual = call.input, call.weight, call.residual
    if weight.ndim != 2 or weight.shape[0] % 8 or weight.shape[1] % TILE.tile_k or weight.numel() == 0:
        raise ValueError(f"weight is {list(weight.shape)}; it must be [N, K] with N a multiple of 8 and K of {TILE.tile_k}")
    n, k = weight.shape
    if x.ndim != 3 or x.shape[-1] != k or x.numel() == 0:
        raise ValueError(f"x is {list(x.shape)}; it must be [B, T, {k}] and not empty")
    batch, length = x.shape[:2]
    if residual is not None and (residual.shape[1:] != (length, n) or residual.shape[0] not in (1, batch)):
        raise ValueError(f"residual is {list(residual.shape)}; it must be [{batch}, {length}, {n}] or [1, {length}, {n}]")
    for name, vector in (("bias", call.bias), ("gate", call.gate)):
        if vector is not None and tuple(vector.shape) != (n,):
            raise ValueError(f"{name} is {list(vector.shape)}; it must be [{n}]")
    for name, tensor in vars(call).items():
        if not isinstance(tensor, Tensor):
            continue
        name = "x" if name == "input" else name
        dtype = torch.float32 if name == "gate" else torch.bfloat16
        if tensor.dtype != dtype or not tensor.is_contiguous():
            raise ValueError(f"{name} is {tensor.dtype} with strides {tensor.stride()}; it must be contiguous {dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} and x on {x.device}; they must share a device")
        if x.is_cuda and not aligned(tensor):
            raise ValueError(f"{name} is at an address that is not a multiple of 16 bytes")
