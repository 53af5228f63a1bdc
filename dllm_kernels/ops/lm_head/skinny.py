"""The lm_head for few rows and a packed weight, as a CUDA kernel that reads each weight once (reference.py has the formula).

The vocabulary is divided into as many parts as blocks run at once on the card, however many rows there are: each row's result
is the same bit for bit whatever stands beside it. A second kernel merges the parts of a row in their order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_kernels.ops.call import custom_op, none_as_empty
from dllm_kernels.ops.card import RESERVED_BYTES, SHARED_BYTES
from dllm_kernels.ops.dispatch import implementation, select
from dllm_kernels.ops.extension import cuda_unsupported_reason, launch
from dllm_kernels.ops.kernels import TILES
from dllm_kernels.ops.linear.config import GemmConfig
from dllm_kernels.ops.linear.packing import PackedWeight, unpack
from dllm_kernels.ops.lm_head.call import LmHeadCall, validate_shared
from dllm_kernels.utils.device import multiprocessors, shared_memory

KERNEL = "lm_head_skinny"
_FEW, _MANY = (tile.shape for tile in TILES[KERNEL])
FEW_ROWS, MANY_ROWS = GemmConfig(*_FEW, 1, 4), GemmConfig(*_MANY, 1, 7)
"""Its tiles, 64 rows by 256 entries and 128 by 128, with rings as deep as two blocks an SM allow."""
LARGEST_K = 5120
"""The largest width of hidden states with which it was timed, and faster than the library (docs/kernels.md)."""
MAX_M = 64
"""The most rows for which `auto` takes it."""
BLOCKS = 2
"""Blocks of an SM, where its shared memory allows."""


@dataclass(frozen=True)
class _Fields:
    config: GemmConfig


@dataclass(frozen=True)
class LmHeadSkinny(LmHeadCall, _Fields):
    """A call of lm_head_skinny.

    Attributes:
        config: what the weight is packed for.
    """

    @property
    def parts(self) -> int:
        """Parts of the vocabulary."""
        device = self.hidden.device
        return parts(len(self.weight), self.config, multiprocessors(device), shared_memory(device))


def unsupported_reason(k: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why there is no code for a weight [V, K] on a device, or None."""
    if dtype != torch.bfloat16:
        return f"lm_head_skinny computes in bfloat16, not {dtype}"
    if k % 8:
        return f"lm_head_skinny needs a K that is a multiple of 8, not {k}"
    return cuda_unsupported_reason(device)


def config_for(m: int, batch_invariant: bool) -> GemmConfig:
    """The config to pack a weight for. With `batch_invariant` it is the same for any number of rows."""
    return FEW_ROWS if m <= FEW_ROWS.tile_m or batch_invariant else MANY_ROWS


def select_config(
    m: int, k: int, dtype: torch.dtype, device: torch.device, backend: str, as_for: int | None = None
) -> GemmConfig | None:
    """The config to pack a weight [V, K] for, or None where it is left as it is: see ops/linear/skinny.py."""
    m = as_for or m
    wanted = backend == "cuda" or (backend == "auto" and m <= MAX_M and k <= LARGEST_K)
    return config_for(m, as_for is not None) if wanted and unsupported_reason(k, dtype, device) is None else None


def parts(packed_tiles: int, config: GemmConfig, multiprocessors: int, shared_bytes_of_one: int) -> int:
    """Parts of a vocabulary of `packed_tiles` blocks of entries, on a card of so many SMs and so much shared memory in each."""
    blocks = min(BLOCKS, shared_bytes_of_one // (config.shared_bytes(KERNEL) + RESERVED_BYTES))
    return min(packed_tiles, blocks * multiprocessors)


@implementation(KERNEL, "cuda", cuda_unsupported_reason, f"bfloat16, up to {MAX_M} rows and a width of {LARGEST_K}")
def _cuda(call: LmHeadSkinny) -> tuple[Tensor, Tensor]:
    call = call.with_outputs()
    launch(KERNEL, call, call.hidden.device)
    return call.outputs()


@implementation(KERNEL, "torch", limits="for tests: no plan packs weights here")
def _torch(call: LmHeadSkinny) -> tuple[Tensor, Tensor]:
    weight = unpack(PackedWeight(call.weight, call.vocab_size, call.k, call.config)).contiguous()
    function = select("lm_head", call.hidden.device, "torch").function
    return function(call.hidden, weight, call.bias, call.temperature, call.seed, call.first_sample, call.with_logprobs, True)


def _fake(call: LmHeadSkinny) -> tuple[Tensor, Tensor]:
    tokens, logprobs = call.empty_outputs()
    return tokens, none_as_empty(call.hidden, logprobs, torch.float32)


_lm_head_skinny = custom_op(
    KERNEL,
    LmHeadSkinny,
    lambda call: select(KERNEL, call.hidden.device).function(call),
    _fake,
    "(Tensor, Tensor)",
)


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
        packed: the weight [V, d], packed for what `select_config` gave.
        bias: [V] float32.
        temperature, seed, first_sample, logprobs: as for op.lm_head.

    The weight is read while the kernel launched before still runs: that one must not write it.

    Returns:
        tokens [B, T] int64 and log-probabilities [B, T] float32 or None, as from op.lm_head; batch-invariant for one config.

    Raises:
        ValueError: a shape, dtype or device does not fit, or T times V rounded up to a multiple of 4 is 2^32 or more.
    """
    k, vocab_size, config = packed.k, packed.n, packed.config
    if hidden.ndim != 3 or hidden.dtype != torch.bfloat16 or hidden.shape[-1] != k or hidden.numel() == 0:
        raise ValueError(f"hidden is {hidden.dtype} {list(hidden.shape)}; it must be a bfloat16 [B, T, {k}] and not empty")
    if not hidden.is_contiguous():
        raise ValueError(f"hidden has strides {hidden.stride()}; it must be contiguous")
    if tuple(bias.shape) != (vocab_size,) or bias.dtype != torch.float32 or not bias.is_contiguous():
        raise ValueError(f"bias is {bias.dtype} {list(bias.shape)}; it must be a contiguous float32 [{vocab_size}]")
    if k % 8:
        raise ValueError(f"the weight has a width of {k}; it must be a multiple of 8")
    if config.tile not in (_FEW, _MANY) or config.split_k != 1 or config.shared_bytes(KERNEL) > SHARED_BYTES:
        raise ValueError(f"the weight is packed for {config}, which lm_head_skinny has no code for")
    validate_shared(hidden, packed.data, vocab_size, bias, temperature, seed, first_sample)
    call = LmHeadSkinny(config, hidden, packed.data, bias, temperature, seed, first_sample, vocab_size, logprobs)
    tokens, logprob = _lm_head_skinny(call)
    return tokens, logprob if logprobs else None
