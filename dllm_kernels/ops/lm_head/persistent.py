"""The lm_head for many rows on Hopper, as a CUDA kernel that keeps no logits (reference.py has the formula).

Tiles of 128 rows and 256 entries of the vocabulary; a row's entries are divided into as many parts as fill the card, and a
second kernel merges the parts of a row in their order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_kernels.ops.dispatch import aligned
from dllm_kernels.ops.extension import launch
from dllm_kernels.ops.kernels import LIMITS, TILES
from dllm_kernels.ops.linear.persistent import unsupported_reason
from dllm_kernels.ops.lm_head.call import LmHeadCall
from dllm_kernels.utils.device import multiprocessors

(TILE,) = TILES["lm_head_persistent"]
_LIMITS = LIMITS["lm_head_persistent"]
MIN_M = 65
"""The fewest rows with which it was timed as the fastest (docs/kernels.md)."""


@dataclass(frozen=True)
class LmHeadPersistent(LmHeadCall):
    """A call of lm_head_persistent."""

    @property
    def blocks(self) -> int:
        """Blocks that the card runs at once, one an SM."""
        return multiprocessors(self.hidden.device)

    @property
    def parts(self) -> int:
        """Parts of the vocabulary."""
        return parts(self.blocks, self.m, self.vocab_size)


def supports(hidden: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether the kernel has code for a call, and is faster than the others (docs/kernels.md)."""
    m, (vocab_size, k) = hidden.shape[:-1].numel(), weight.shape
    fits = vocab_size % _LIMITS["vocab_multiple"] == 0 and k % TILE.tile_k == 0 and k >= _LIMITS["min_k"] and m >= MIN_M
    right = hidden.dtype == weight.dtype == torch.bfloat16 and bias.dtype == torch.float32
    return fits and right and unsupported_reason(hidden.device) is None and aligned(hidden, weight, bias)


def parts(multiprocessors: int, m: int, vocab_size: int) -> int:
    """Parts of the vocabulary: as many as give every SM one at most, or one where the rows alone fill the card."""
    return max(1, min(-(-vocab_size // TILE.tile_n), multiprocessors // -(-m // TILE.tile_m)))


def lm_head_persistent(
    hidden: Tensor, weight: Tensor, bias: Tensor, temperature: Tensor, seed: Tensor, first_sample: Tensor, logprobs: bool
) -> tuple[Tensor, Tensor]:
    """What op.lm_head returns, for arguments that it has looked at and that `supports` takes; hidden is contiguous."""
    call = LmHeadPersistent(hidden, weight, bias, temperature, seed, first_sample, len(weight), logprobs).with_outputs()
    launch("lm_head_persistent", call, hidden.device)
    return call.outputs()
