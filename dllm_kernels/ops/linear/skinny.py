"""The linear layer for few rows, as one CUDA kernel that reads each weight once (reference.py has the formula).

The input is x, or x (1 + scale) where adaLN scales it; its mean and variance come from row statistics of x that the kernel
before this one has left. The kernel leaves the same of y, and y (1 + next_scale), for the one after it.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dllm_kernels.ops.call import WRITTEN, custom_op, none_as_empty
from dllm_kernels.ops.card import Card
from dllm_kernels.ops.dispatch import aligned, implementation, select
from dllm_kernels.ops.extension import cuda_unsupported_reason, launch, max_cluster
from dllm_kernels.ops.linear import config as gemm_config
from dllm_kernels.ops.linear.config import MAX_M, MAX_M_NARROW, NARROW, SKINNY, GemmConfig, blocks, is_faster
from dllm_kernels.ops.linear.packing import PackedWeight, unpack_data
from dllm_kernels.ops.linear.reference import merged_statistics, reference, row_statistics


@dataclass(frozen=True)
class LinearSkinny:
    """A call of linear_skinny; the names are those of csrc/include/dllm/kernels.h.

    Attributes:
        input: [B, T, K] bfloat16, contiguous.
        weight: a packed weight's data.
        bias: [N] float32.
        workspace: what `empty_workspace` made.
        n: N.
        config: what the weight is packed for.
        column_sums: [N] float32 where the input is normalised, with stats.
        stats: [B T, chunks, 2] float32 of the input before adaLN's scale, in chunks of `stats_chunk` columns.
        gate: [N] float32.
        gelu: exact GELU after the bias.
        residual: bfloat16 [B, T, N], or [1, T, N] for all samples.
        next_scale: [N] float32; asks for scaled_out.
        with_stats: asks for stats_out.
        clusters: whether the blocks that share a K are a cluster; otherwise they use the workspace.
        output: [B, T, N] bfloat16.
        scaled_out: [B, T, N] bfloat16, the output as rounded times (1 + next_scale).
        stats_out: [B T, chunks, 2] float32 of the output as rounded, in chunks of tile_n columns.
    """

    input: Tensor
    weight: Tensor
    bias: Tensor
    workspace: Tensor
    n: int
    config: GemmConfig
    column_sums: Tensor | None = None
    stats: Tensor | None = None
    stats_chunk: int = 0
    gate: Tensor | None = None
    gelu: bool = False
    residual: Tensor | None = None
    next_scale: Tensor | None = None
    with_stats: bool = False
    clusters: bool = True
    output: Tensor | None = field(default=None, metadata=WRITTEN)
    scaled_out: Tensor | None = field(default=None, metadata=WRITTEN)
    stats_out: Tensor | None = field(default=None, metadata=WRITTEN)

    @property
    def m(self) -> int:
        """Rows."""
        return self.input.shape[:-1].numel()

    @property
    def k(self) -> int:
        """Columns of the input."""
        return self.input.shape[-1]

    @property
    def stats_chunks(self) -> int:
        """Chunks of a row."""
        return 0 if self.stats is None else self.stats.shape[1]

    @property
    def residual_rows(self) -> int:
        """Rows of the residual, which repeat."""
        return 1 if self.residual is None else self.residual.shape[:-1].numel()

    def with_outputs(self) -> "LinearSkinny":
        """The call with memory for what it writes."""
        shape = (*self.input.shape[:-1], self.n)
        chunks = -(-self.n // self.config.tile_n)
        stats = self.input.new_empty((self.m, chunks, 2), dtype=torch.float32) if self.with_stats else None
        scaled = None if self.next_scale is None else self.input.new_empty(shape)
        return replace(self, output=self.input.new_empty(shape), scaled_out=scaled, stats_out=stats)

    def outputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the op returns."""
        stats = none_as_empty(self.input, self.stats_out, torch.float32)
        return self.output, none_as_empty(self.input, self.scaled_out), stats


def unsupported_reason(n: int, k: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why there is no code for a weight [N, K] on a device, or None."""
    if dtype != torch.bfloat16:
        return f"linear_skinny computes in bfloat16, not {dtype}"
    if n % 8 or k % 8:
        return f"linear_skinny needs N and K that are multiples of 8, not {n} and {k}"
    return cuda_unsupported_reason(device)


def select_config(
    m: int, n: int, k: int, dtype: torch.dtype, device: torch.device, backend: str, as_for: int | None = None
) -> GemmConfig | None:
    """The config to pack a weight [N, K] for, or None where it is left as it is, for the other variants.

    Args:
        m: rows of a call.
        dtype: of the weight.
        backend: "cuda" takes the kernel wherever it can run, "auto" where it is faster, any other never.
        as_for: decide as for this many rows instead.
    """
    m = as_for or m
    card = Card.of(device)
    wanted = backend == "cuda" or (backend == "auto" and is_faster(m, n, k, card))
    if not wanted or unsupported_reason(n, k, dtype, device) is not None:
        return None
    return gemm_config.select_config(m, n, k, card)


def workspace_elements(packed: PackedWeight, m: int, max_cluster: int) -> int:
    """float32 values that a call of `m` rows needs as workspace on a card with clusters of `max_cluster` blocks at most."""
    config = packed.config
    if config.split_k <= max_cluster:
        return 0
    return blocks(config, m, packed.n) * config.tile_m * config.tile_n * config.split_k


def empty_workspace(elements: int, device: torch.device) -> Tensor:
    """A float32 workspace, in the state in which every call finds it and leaves it: all bits set."""
    return torch.full((max(elements, 4),), -1, dtype=torch.int32, device=device).view(torch.float32)


@implementation(
    "linear_skinny",
    "cuda",
    cuda_unsupported_reason,
    "bfloat16, where a whole layer was timed and faster (ops/linear/table.json); where none was timed, up to "
    f"{MAX_M_NARROW} rows of a layer whose lesser dimension is at most {NARROW}, and {MAX_M} of any other",
)
def _cuda(call: LinearSkinny) -> tuple[Tensor, Tensor, Tensor]:
    call = call.with_outputs()
    run(call)
    return call.outputs()


def run(call: LinearSkinny) -> None:
    """Queues the CUDA kernel for a call with outputs; nothing is checked."""
    launch(SKINNY, call, call.input.device)


@implementation("linear_skinny", "torch", limits="for tests: no plan packs weights here")
def _torch(call: LinearSkinny) -> tuple[Tensor, Tensor, Tensor]:
    x, around = call.input, {}
    if call.stats is not None:
        mean, variance = merged_statistics(call.stats, call.stats_chunk, call.k)
        around = {"mean": mean.view(*x.shape[:-1], 1), "variance": variance.view(*x.shape[:-1], 1)}
    weight = unpack_data(call.weight, call.config)[: call.n, : call.k]
    around |= {"column_sums": call.column_sums, "gate": call.gate, "gelu": call.gelu, "residual": call.residual}
    y = reference(x.float(), weight, call.bias, **around).to(x.dtype)
    scaled = None if call.next_scale is None else (y * (1 + call.next_scale)).to(x.dtype)
    stats = row_statistics(y, call.config.tile_n) if call.with_stats else None
    return replace(call, output=y, scaled_out=scaled, stats_out=stats).outputs()


_linear_skinny = custom_op(
    "linear_skinny",
    LinearSkinny,
    lambda call: select("linear_skinny", call.input.device).function(call),
    lambda call: call.with_outputs().outputs(),
    "(Tensor, Tensor, Tensor)",
    mutates=("workspace",),
)


def linear_skinny(
    x: Tensor, packed: PackedWeight, bias: Tensor, workspace: Tensor, **around
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Applies a packed layer. For inference: it has no gradient.

    Args:
        x: [B, T, K] bfloat16, contiguous; B T is any number of rows; it is made for few.
        packed: the weight [N, K].
        bias: [N] float32.
        workspace: what `empty_workspace` made, of at least `workspace_elements`; calls of one stream may share it.
        around: what `LinearSkinny` has of column_sums, stats, stats_chunk, gate, gelu, residual, next_scale and with_stats.

    The weight and the vectors of N are read while the kernel launched before still runs: that one must not write them.
    Where the CUDA kernels cannot run, PyTorch computes the same in float32, slowly: for tests.

    Returns:
        y [B, T, N] bfloat16; y (1 + next_scale) or None; statistics [B T, chunks, 2] float32 or None. Both are of y as rounded.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    clusters = packed.config.split_k <= max_cluster(x.device)
    call = LinearSkinny(x, packed.data, bias, workspace, packed.n, packed.config, clusters=clusters, **around)
    _validate(call, packed)
    y, scaled, stats = _linear_skinny(call)
    return y, None if call.next_scale is None else scaled, stats if call.with_stats else None


def _validate(call: LinearSkinny, packed: PackedWeight) -> None:
    x, n, k = call.input, packed.n, packed.k
    if n % 8 or k % 8:
        raise ValueError(f"weight is [{n}, {k}]; both must be multiples of 8")
    if x.ndim != 3 or x.dtype != torch.bfloat16 or x.shape[-1] != k or x.numel() == 0 or not x.is_contiguous():
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; it must be a contiguous bfloat16 [B, T, {k}] that is not empty")
    workspace, needed = call.workspace, workspace_elements(packed, call.m, max_cluster(x.device))
    if workspace.dtype != torch.float32 or workspace.numel() < needed:
        found = f"{workspace.numel()} values of {workspace.dtype}"
        raise ValueError(f"the workspace has {found}; it must have {needed} of float32")
    if (call.column_sums is None) != (call.stats is None):
        raise ValueError("column_sums and stats go together")
    if call.stats is not None:
        if call.stats_chunk < 1:
            raise ValueError(f"stats_chunk is {call.stats_chunk}; statistics are of at least 1 column")
        wanted, stats = (call.m, -(-k // call.stats_chunk), 2), call.stats
        if tuple(stats.shape) != wanted or stats.dtype != torch.float32 or not stats.is_contiguous():
            found = f"{stats.dtype} {list(stats.shape)}"
            raise ValueError(f"stats are {found}; they must be a contiguous float32 {list(wanted)}")
    residual, fits = call.residual, ((1, x.shape[1], n), (x.shape[0], x.shape[1], n))
    if residual is not None and (
        residual.dtype != torch.bfloat16 or tuple(residual.shape) not in fits or not residual.is_contiguous()
    ):
        raise ValueError(f"residual is {residual.dtype} {list(residual.shape)}; it must be a bfloat16 [B, {x.shape[1]}, {n}]")
    for name in ("bias", "column_sums", "gate", "next_scale"):
        vector = getattr(call, name)
        if vector is not None and (vector.dtype != torch.float32 or tuple(vector.shape) != (n,) or vector.stride(0) != 1):
            raise ValueError(f"{name} is {vector.dtype} {list(vector.shape)}; it must be a contiguous float32 [{n}]")
    for name, tensor in vars(call).items():
        if not isinstance(tensor, Tensor):
            continue
        name = "x" if name == "input" else name
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} and x on {x.device}; they must share a device")
        if x.is_cuda and not aligned(tensor):
            raise ValueError(f"{name} is at an address that is not a multiple of 16 bytes")
