"""linear_skinny: the folded linear layer of ops/linear.py for few rows, as one CUDA kernel that reads each weight once.

    y = act((n(x) W^T) gate + bias) + residual,    n(x) W^T = rstd (x' W^T - mean column_sums)

x' is x, or x (1 + scale) where adaLN scales the normalised input; mean and rstd come from the row statistics of x that the
kernel before this one has left. The kernel leaves the same of y, and y (1 + next_scale), for the one after it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels.ops.dispatch import aligned, implementation, select
from dllm_kernels.ops.extension import cuda_unsupported_reason, has_warpgroups, load
from dllm_kernels.ops.linear.config import MAX_ROWS, MAX_VALUES, MAX_WIDTH, GemmConfig, block_bytes, choose, is_faster, tiles
from dllm_kernels.ops.linear.op import EPS
from dllm_kernels.ops.linear.packing import PackedWeight, unpack_data
from dllm_kernels.utils.device import multiprocessors, shared_memory


def unsupported_reason(outputs: int, width: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a weight [outputs, width] cannot be streamed on a device, or None."""
    if dtype != torch.bfloat16:
        return f"linear_skinny computes in bfloat16, not {dtype}"
    if outputs % 8 or width % 8:
        return f"linear_skinny needs outputs and width that are multiples of 8, not {outputs} and {width}"
    return cuda_unsupported_reason(device)


def select_config(
    rows: int, outputs: int, width: int, dtype: torch.dtype, device: torch.device, backend: str, as_for: int | None = None
) -> GemmConfig | None:
    """The cut to pack a weight for, or None where it is not to be streamed.

    Args:
        rows: of a call.
        outputs, width, dtype: of the weight.
        backend: "cuda" streams wherever the kernel can run, "auto" where it wins, any other never.
        as_for: decide and cut as for this many rows instead.
    """
    rows = as_for or rows
    wanted = backend == "cuda" or (backend == "auto" and is_faster(multiprocessors(device), rows, outputs, width))
    if not wanted or unsupported_reason(outputs, width, dtype, device) is not None:
        return None
    limit, warpgroups = block_bytes(shared_memory(device)), has_warpgroups(device)
    return choose(multiprocessors(device), rows, outputs, width, limit, warpgroups)


def workspace_elements(packed: PackedWeight, rows: int) -> int:
    """float32 values that a call of `rows` rows needs as workspace."""
    config = packed.config
    if config.slices == 1 or config.warpgroup:
        return 0
    return tiles(config, rows, packed.outputs) * config.rows * config.outputs * config.slices


def empty_workspace(elements: int, device: torch.device) -> Tensor:
    """A float32 workspace, in the state in which every call finds it and leaves it: all bits set."""
    return torch.full((max(elements, 4),), -1, dtype=torch.int32, device=device).view(torch.float32)


def row_statistics(x: Tensor, chunk: int | None = None) -> Tensor:
    """(mean, sum of squared deviations) of each row of x [..., K] in chunks of `chunk` columns (all of them for None):
    [rows, chunks, 2], float32 (float64 for float64), the last chunk maybe shorter."""
    parts = x.flatten(0, -2).to(torch.promote_types(x.dtype, torch.float32)).split(chunk or x.shape[-1], dim=-1)
    pairs = [(part.shape[-1], *torch.var_mean(part, dim=-1, correction=0)) for part in parts]
    return torch.stack([torch.stack((mean, variance * columns), dim=-1) for columns, variance, mean in pairs], dim=1)


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    column_sums: Tensor | None = None,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    gelu: bool = False,
) -> Tensor:
    """The formula above in x's dtype, mean and variance [B, T, 1] being the input's."""
    y = x @ weight.to(x.dtype).T
    if column_sums is not None:
        y = (y - mean * column_sums) * torch.rsqrt(variance + EPS)
    y = (y if gate is None else y * gate) + bias
    y = F.gelu(y) if gelu else y
    return y if residual is None else y + residual


@implementation(
    "linear_skinny",
    "cuda",
    cuda_unsupported_reason,
    "bfloat16, where a whole layer was timed and faster (kernels/stream.json); where none was timed, up to "
    f"{MAX_ROWS} rows and {MAX_VALUES:,} values of a weight, its lesser dimension up to {MAX_WIDTH}",
)
def _cuda(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    column_sums: Tensor | None,
    statistics: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    next_scale: Tensor | None,
    workspace: Tensor,
    outputs: int,
    chunk: int,
    config: list[int],
    gelu: bool,
    with_statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (*x.shape[:-1], outputs)
    column_blocks = -(-outputs // (16 * config[0] * config[2]))
    y = x.new_empty(shape)
    scaled = x.new_empty(shape) if next_scale is not None else None
    left = x.new_empty((y.shape[:-1].numel(), column_blocks, 2), dtype=torch.float32) if with_statistics else None
    launch(
        x, weight, bias, workspace, config, y, column_sums, statistics, chunk, gate, residual, gelu, next_scale, scaled, left
    )
    return y, x.new_empty(0) if scaled is None else scaled, x.new_empty(0, dtype=torch.float32) if left is None else left


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    workspace: Tensor,
    config: list[int],
    y: Tensor,
    column_sums: Tensor | None = None,
    statistics: Tensor | None = None,
    chunk: int = 0,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    gelu: bool = False,
    next_scale: Tensor | None = None,
    scaled: Tensor | None = None,
    left: Tensor | None = None,
) -> None:
    """Queues the CUDA kernel, which writes y and, where they are there, scaled and left; nothing is checked."""
    rows, width, outputs = x.shape[:-1].numel(), x.shape[-1], y.shape[-1]
    warps_n, warps_m, sixteens, tiles, deep, slices, ring_stages, input_stages = config
    with torch.cuda.device(x.device):
        load().linear(
            weight=weight.data_ptr(),
            input=x.data_ptr(),
            bias=bias.data_ptr(),
            column_sums=_address(column_sums),
            statistics=_address(statistics),
            gate=_address(gate),
            residual=_address(residual),
            next_scale=_address(next_scale),
            output=y.data_ptr(),
            scaled_output=_address(scaled),
            output_statistics=_address(left),
            workspace=workspace.data_ptr(),
            rows=rows,
            outputs=outputs,
            width=width,
            chunks=0 if statistics is None else statistics.shape[1],
            chunk=chunk,
            residual_rows=1 if residual is None else residual.shape[:-1].numel(),
            warps_n=warps_n,
            warps_m=warps_m,
            sixteens=sixteens,
            tiles=tiles,
            deep=deep,
            slices=slices,
            ring_stages=ring_stages,
            input_stages=input_stages,
            gelu=gelu,
            stream=torch.cuda.current_stream(x.device).cuda_stream,
        )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@implementation("linear_skinny", "torch", limits="for tests: no plan streams here")
def _torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    column_sums: Tensor | None,
    statistics: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    next_scale: Tensor | None,
    workspace: Tensor,
    outputs: int,
    chunk: int,
    config: list[int],
    gelu: bool,
    with_statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    width = x.shape[-1]
    mean = variance = None
    if statistics is not None:
        counts = torch.full((statistics.shape[1],), chunk, device=x.device)
        counts[-1] = width - chunk * (len(counts) - 1)
        means, squares = statistics.unbind(-1)
        mean = (means * counts).sum(-1, keepdim=True) / width
        variance = (squares + counts * (means - mean).square()).sum(-1, keepdim=True) / width
        mean, variance = (t.view(*x.shape[:-1], 1) for t in (mean, variance))
    whole = unpack_data(weight, GemmConfig(tuple(config[:5]), *config[5:]))[:outputs, :width]
    wide = None if residual is None else residual.float()
    y = reference(x.float(), whole, bias, column_sums, mean, variance, gate, wide, gelu).to(x.dtype)
    scaled = x.new_empty(0) if next_scale is None else (y * (1 + next_scale)).to(x.dtype)
    chunk = 16 * config[0] * config[2]
    return y, scaled, row_statistics(y, chunk) if with_statistics else x.new_empty(0, dtype=torch.float32)


@torch.library.custom_op("dllm_kernels::linear_skinny", mutates_args=("workspace",))
def _linear_skinny(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    column_sums: Tensor | None,
    statistics: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    next_scale: Tensor | None,
    workspace: Tensor,
    outputs: int,
    chunk: int,
    config: list[int],
    gelu: bool,
    with_statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`linear_skinny`, with empty tensors for what nobody asked for, since an op always returns as many tensors."""
    return select("linear_skinny", x.device).function(
        x,
        weight,
        bias,
        column_sums,
        statistics,
        gate,
        residual,
        next_scale,
        workspace,
        outputs,
        chunk,
        config,
        gelu,
        with_statistics,
    )


@_linear_skinny.register_fake
def _(x, weight, bias, column_sums, statistics, gate, residual, next_scale, workspace, outputs, chunk, config, *rest):
    shape = (*x.shape[:-1], outputs)
    column_tiles = -(-outputs // (16 * config[0] * config[2]))
    rows = x.numel() // x.shape[-1]
    return (
        x.new_empty(shape),
        x.new_empty(0 if next_scale is None else shape),
        x.new_empty((rows, column_tiles, 2) if rest[-1] else 0, dtype=torch.float32),
    )


def linear_skinny(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor,
    workspace: Tensor,
    *,
    column_sums: Tensor | None = None,
    statistics: Tensor | None = None,
    chunk: int = 0,
    gate: Tensor | None = None,
    gelu: bool = False,
    residual: Tensor | None = None,
    next_scale: Tensor | None = None,
    with_statistics: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Applies a packed layer. For inference: it has no gradient.

    Args:
        x: [B, T, K] bfloat16, contiguous; B T is any number of rows; it is made for few (kernels/stream.py, `wins`).
        packed: the weight [N, K].
        bias: [N] float32.
        workspace: what `empty_workspace` made, of at least `workspace_elements`; calls of one stream may share it.
        column_sums: [N] float32 where the input is normalised.
        statistics: [B T, chunks, 2] float32 of x before adaLN's scale, in chunks of `chunk` columns; with column_sums.
        gate: [N] float32, adaLN's gate of the product.
        gelu: exact GELU after the bias.
        residual: bfloat16 [B, T, N], or [1, T, N] for all samples, added last.
        next_scale: [N] float32; asks for y (1 + next_scale).
        with_statistics: asks for the row statistics of y, in chunks of packed.config.outputs columns.

    The weight and the vectors of N are read while the kernel launched before still runs: that one must not write them.
    Where the CUDA kernels cannot run, PyTorch computes the same in float32, slowly: for tests.

    Returns:
        y [B, T, N] bfloat16; y (1 + next_scale) or None; statistics [B T, chunks, 2] float32 or None. Both are of y as rounded.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    _validate(x, packed, bias, workspace, column_sums, statistics, chunk, gate, residual, next_scale)
    c = packed.config
    y, scaled, left = _linear_skinny(
        x,
        packed.data,
        bias,
        column_sums,
        statistics,
        gate,
        residual,
        next_scale,
        workspace,
        packed.outputs,
        chunk,
        [*c.tile, c.slices, c.stages, c.input_stages],
        gelu,
        with_statistics,
    )
    return y, None if next_scale is None else scaled, left if with_statistics else None


def _validate(x, packed, bias, workspace, column_sums, statistics, chunk, gate, residual, next_scale) -> None:
    n, k = packed.outputs, packed.width
    if n % 8 or k % 8:
        raise ValueError(f"weight is [{n}, {k}]; both must be multiples of 8")
    if x.ndim != 3 or x.dtype != torch.bfloat16 or x.shape[-1] != k or x.numel() == 0 or not x.is_contiguous():
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; it must be a contiguous bfloat16 [B, T, {k}] that is not empty")
    rows = x.shape[0] * x.shape[1]
    if workspace.dtype != torch.float32 or workspace.numel() < workspace_elements(packed, rows):
        found = f"{workspace.numel()} values of {workspace.dtype}"
        raise ValueError(f"the workspace has {found}; it must have {workspace_elements(packed, rows)} of float32")
    if (column_sums is None) != (statistics is None):
        raise ValueError("column_sums and statistics go together")
    if statistics is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; statistics are of at least 1 column")
    chunks = -(-k // max(chunk, 1))
    if statistics is not None and (
        tuple(statistics.shape) != (rows, chunks, 2) or statistics.dtype != torch.float32 or not statistics.is_contiguous()
    ):
        found = f"{statistics.dtype} {list(statistics.shape)}"
        raise ValueError(f"statistics are {found}; they must be a contiguous float32 [{rows}, {chunks}, 2]")
    if residual is not None and (
        residual.dtype != torch.bfloat16
        or residual.shape[1:] != (x.shape[1], n)
        or residual.shape[0] not in (1, x.shape[0])
        or not residual.is_contiguous()
    ):
        raise ValueError(f"residual is {residual.dtype} {list(residual.shape)}; it must be a bfloat16 [B, {x.shape[1]}, {n}]")
    for name, vector in (("bias", bias), ("column_sums", column_sums), ("gate", gate), ("next_scale", next_scale)):
        if vector is not None and (vector.dtype != torch.float32 or tuple(vector.shape) != (n,) or vector.stride(0) != 1):
            raise ValueError(f"{name} is {vector.dtype} {list(vector.shape)}; it must be a contiguous float32 [{n}]")
    tensors = {"weight": packed.data, "bias": bias, "workspace": workspace, "statistics": statistics, "residual": residual}
    tensors |= {"x": x, "column_sums": column_sums, "gate": gate, "next_scale": next_scale}
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} and x on {x.device}; they must share a device")
        if x.is_cuda and not aligned(tensor):
            raise ValueError(f"{name} is at an address that is not a multiple of 16 bytes")
