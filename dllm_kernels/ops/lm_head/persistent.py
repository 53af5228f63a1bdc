"""lm_head_persistent: the lm_head of ops/lm_head.py for many rows on Hopper, as a CUDA kernel that keeps no logits.

Tiles of 128 rows and 256 entries of the vocabulary; a row's entries are cut into as many parts as fill the card, and a second
kernel merges the parts of a row in their order.
"""

import torch
from torch import Tensor

from dllm_kernels.ops.dispatch import aligned
from dllm_kernels.ops.extension import load
from dllm_kernels.ops.linear.persistent import DEPTH, TILE_OUTPUTS, TILE_ROWS, unsupported_reason
from dllm_kernels.ops.lm_head.cuda import prepare
from dllm_kernels.utils.device import multiprocessors

MIN_ROWS, MIN_WIDTH = 65, 4 * DEPTH


def supports(hidden: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether the kernel has code for a call, and is faster than the others (docs/kernels.md)."""
    rows, (vocab_size, width) = hidden.shape[:-1].numel(), weight.shape
    fits = vocab_size % 4 == 0 and width % DEPTH == 0 and width >= MIN_WIDTH and rows >= MIN_ROWS
    right = hidden.dtype == weight.dtype == torch.bfloat16 and bias.dtype == torch.float32
    return fits and right and unsupported_reason(hidden.device) is None and aligned(hidden, weight, bias)


def parts(multiprocessors: int, rows: int, vocab_size: int) -> int:
    """Parts of the vocabulary: as many as give every SM one at most, or one where the rows alone fill the card."""
    return max(1, min(-(-vocab_size // TILE_OUTPUTS), multiprocessors // -(-rows // TILE_ROWS)))


def lm_head_persistent(
    hidden: Tensor, weight: Tensor, bias: Tensor, temperature: Tensor, seed: Tensor, first_sample: Tensor, logprobs: bool
) -> tuple[Tensor, Tensor]:
    """What ops/lm_head.py returns, for arguments that it has looked at and that `serves` takes; hidden is contiguous."""
    vocab_size, processors = len(weight), multiprocessors(hidden.device)
    count = parts(processors, hidden.shape[:2].numel(), vocab_size)
    given = (hidden, weight, bias, temperature, seed, first_sample)
    arguments, tokens, out, _workspace = prepare(*given, vocab_size, count, logprobs)
    with torch.cuda.device(hidden.device):
        load().lm_head_tiled(**arguments, blocks=processors)
    return tokens, out
