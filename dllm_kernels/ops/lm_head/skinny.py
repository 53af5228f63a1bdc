"""lm_head_skinny: the lm_head of ops/lm_head.py for few rows and a packed weight, as a CUDA kernel that reads each weight once.

The vocabulary is cut into as many parts as blocks run at once on the card, however many rows there are: each row's result is
the same bit for bit whatever stands beside it. A second kernel merges the parts of a row in their order.
"""

import torch
from torch import Tensor

from dllm_kernels.ops.dispatch import implementation, select
from dllm_kernels.ops.extension import cuda_unsupported_reason, load
from dllm_kernels.ops.linear.config import BARRIER_BYTES, MAX_ROWS, RESERVED_BYTES, SHARED_BYTES, GemmConfig
from dllm_kernels.ops.linear.packing import PackedWeight, unpack
from dllm_kernels.ops.lm_head.cuda import RESULT_VALUES, prepare
from dllm_kernels.ops.lm_head.op import lm_head, validate_shared
from dllm_kernels.utils.device import multiprocessors, shared_memory

FEW_ROWS, MANY_ROWS = GemmConfig((8, 1, 2, 8, 1), 1, 4), GemmConfig((4, 2, 2, 8, 1), 1, 7)
"""The cuts that csrc/kernels/lm_head_skinny.cu has code for: blocks of 64 rows by 256 entries, and of 128 by 128."""
LARGEST_WIDTH = 5120
"""The largest width with which it was timed, and faster than the library (docs/kernels.md)."""
BLOCKS = 2
"""Blocks of an SM, where its shared memory allows."""


def unsupported_reason(width: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a weight [V, width] cannot be streamed on a device, or None."""
    if dtype != torch.bfloat16:
        return f"lm_head_skinny computes in bfloat16, not {dtype}"
    if width % 8:
        return f"lm_head_skinny needs a width that is a multiple of 8, not {width}"
    return cuda_unsupported_reason(device)


def choose(rows: int, batch_invariant: bool) -> GemmConfig:
    """The cut to pack a weight for. With `batch_invariant` it is the same for any number of rows."""
    return FEW_ROWS if rows <= FEW_ROWS.rows or batch_invariant else MANY_ROWS


def select_config(
    rows: int, width: int, dtype: torch.dtype, device: torch.device, backend: str, as_for: int | None = None
) -> GemmConfig | None:
    """The cut to pack a weight [V, width] for, or None where it is not to be streamed: see ops/linear_skinny.py."""
    rows = as_for or rows
    wanted = backend == "cuda" or (backend == "auto" and rows <= MAX_ROWS and width <= LARGEST_WIDTH)
    return choose(rows, as_for is not None) if wanted and unsupported_reason(width, dtype, device) is None else None


def shared_bytes(config: GemmConfig) -> int:
    """Shared memory of a block (Layout in csrc/kernels/lm_head_skinny.cu)."""
    before = BARRIER_BYTES + config.tile[0] * config.rows * 4 * RESULT_VALUES
    return -(-before // 512) * 512 + config.stages * config.stage_bytes + config.input_bytes


def parts(packed_tiles: int, config: GemmConfig, multiprocessors: int, shared_bytes_of_one: int) -> int:
    """Parts of a vocabulary of `packed_tiles` blocks of outputs, on a card of so many SMs and so much shared memory in each."""
    blocks = min(BLOCKS, shared_bytes_of_one // (shared_bytes(config) + RESERVED_BYTES))
    return min(packed_tiles, blocks * multiprocessors)


@implementation(
    "lm_head_skinny", "cuda", cuda_unsupported_reason, f"bfloat16, up to {MAX_ROWS} rows and a width of {LARGEST_WIDTH}"
)
def _cuda(hidden, weight, bias, temperature, seed, first_sample, vocab_size: int, config: list[int], logprobs: bool):
    count = parts(len(weight), _cut(config), multiprocessors(hidden.device), shared_memory(hidden.device))
    given = (hidden, weight, bias, temperature, seed, first_sample)
    arguments, tokens, out, _workspace = prepare(*given, vocab_size, count, logprobs)
    names = ("warps_n", "warps_m", "sixteens", "tiles", "deep", "ring_stages")
    with torch.cuda.device(hidden.device):
        load().lm_head(**arguments, **dict(zip(names, config, strict=True)))
    return tokens, out


@implementation("lm_head_skinny", "torch", limits="for tests: no plan streams here")
def _torch(hidden, weight, bias, temperature, seed, first_sample, vocab_size: int, config: list[int], logprobs: bool):
    whole = unpack(PackedWeight(weight, vocab_size, hidden.shape[-1], _cut(config))).contiguous()
    tokens, out = lm_head(hidden, whole, bias, temperature, seed, first_sample, logprobs, True, "torch")
    return tokens, hidden.new_empty(0, dtype=torch.float32) if out is None else out


def _cut(config: list[int]) -> GemmConfig:
    return GemmConfig(tuple(config[:5]), 1, config[5])


@torch.library.custom_op("dllm_kernels::lm_head_skinny", mutates_args=())
def _lm_head_skinny(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    temperature: Tensor,
    seed: Tensor,
    first_sample: Tensor,
    vocab_size: int,
    config: list[int],
    logprobs: bool,
) -> tuple[Tensor, Tensor]:
    """`lm_head_skinny`, with an empty tensor for no log-probabilities, since an op always returns as many tensors."""
    function = select("lm_head_skinny", hidden.device).function
    return function(hidden, weight, bias, temperature, seed, first_sample, vocab_size, config, logprobs)


@_lm_head_skinny.register_fake
def _(hidden, weight, bias, temperature, seed, first_sample, vocab_size, config, logprobs):
    tokens = hidden.new_empty(hidden.shape[:2], dtype=torch.int64)
    return tokens, hidden.new_empty(hidden.shape[:2] if logprobs else 0, dtype=torch.float32)


def lm_head_skinny(
    hidden: Tensor,
    packed: PackedWeight,
    bias: Tensor,
    temperature: Tensor,
    seed: Tensor,
    first_sample: Tensor,
    logprobs: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """A token for every position, and on request its log-probability. For inference: it has no gradient.

    Args:
        hidden: [B, T, d] bfloat16, contiguous.
        packed: the weight [V, d], packed for a cut that `choose` gave.
        bias: [V] float32.
        temperature, seed, first_sample, logprobs: as for ops/lm_head.py.

    The weight is read while the kernel launched before still runs: that one must not write it.

    Returns:
        tokens [B, T] int64 and log-probabilities [B, T] float32 or None, as from ops/lm_head.py; batch-invariant for one cut.

    Raises:
        ValueError: a shape, dtype or device does not fit, or T times V rounded up to a multiple of 4 is 2^32 or more.
    """
    width, vocab_size, c = packed.width, packed.outputs, packed.config
    if hidden.ndim != 3 or hidden.dtype != torch.bfloat16 or hidden.shape[-1] != width or hidden.numel() == 0:
        raise ValueError(f"hidden is {hidden.dtype} {list(hidden.shape)}; it must be a bfloat16 [B, T, {width}] and not empty")
    if not hidden.is_contiguous():
        raise ValueError(f"hidden has strides {hidden.stride()}; it must be contiguous")
    if tuple(bias.shape) != (vocab_size,) or bias.dtype != torch.float32 or not bias.is_contiguous():
        raise ValueError(f"bias is {bias.dtype} {list(bias.shape)}; it must be a contiguous float32 [{vocab_size}]")
    if width % 8:
        raise ValueError(f"the weight has a width of {width}; it must be a multiple of 8")
    if c.tile not in (FEW_ROWS.tile, MANY_ROWS.tile) or shared_bytes(c) > SHARED_BYTES:
        raise ValueError(f"the weight is packed for {c}, which lm_head_skinny has no code for")
    validate_shared(hidden, packed.data, vocab_size, bias, temperature, seed, first_sample)
    config = [*c.tile, c.stages]
    tokens, logprob = _lm_head_skinny(hidden, packed.data, bias, temperature, seed, first_sample, vocab_size, config, logprobs)
    return tokens, logprob if logprobs else None
