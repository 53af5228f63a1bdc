"""tiled_lm_head: the lm_head of ops/lm_head.py for many rows on Hopper, as a CUDA kernel that keeps no logits.

Tiles of 128 rows and 256 entries of the vocabulary; a row's entries are cut into as many parts as fill the card, and a second
kernel merges the parts of a row in their order.
"""

import torch
from torch import Tensor

from dllm_kernels.device import multiprocessors
from dllm_kernels.extension import load
from dllm_kernels.ops.tiled_linear import DEPTH, TILE_OUTPUTS, TILE_ROWS, obstacle

LEAST_ROWS, LEAST_WIDTH = 65, 4 * DEPTH
_RESULT_VALUES = 5


def serves(hidden: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether the kernel has code for a call, and is faster than the others (docs/kernels.md)."""
    rows, (vocab_size, width) = hidden.shape[:-1].numel(), weight.shape
    fits = vocab_size % 4 == 0 and width % DEPTH == 0 and width >= LEAST_WIDTH and rows >= LEAST_ROWS
    right = hidden.dtype == weight.dtype == torch.bfloat16 and bias.dtype == torch.float32
    return fits and right and obstacle(hidden.device) is None


def parts(multiprocessors: int, rows: int, vocab_size: int) -> int:
    """Parts of the vocabulary: as many as give every SM one at most, or one where the rows alone fill the card."""
    return max(1, min(-(-vocab_size // TILE_OUTPUTS), multiprocessors // -(-rows // TILE_ROWS)))


def tiled_lm_head(
    hidden: Tensor, weight: Tensor, bias: Tensor, temperature: Tensor, seed: Tensor, first_sample: Tensor, logprobs: bool
) -> tuple[Tensor, Tensor]:
    """What ops/lm_head.py returns, for arguments that it has looked at and that `serves` takes; hidden is contiguous."""
    batch, length, width = hidden.shape
    rows, vocab_size, processors = batch * length, len(weight), multiprocessors(hidden.device)
    count = parts(processors, rows, vocab_size)
    workspace = hidden.new_empty((rows, -(-count // 4) * 4, _RESULT_VALUES), dtype=torch.float32)
    tokens = hidden.new_empty((batch, length), dtype=torch.int64)
    out = hidden.new_empty((batch, length) if logprobs else 0, dtype=torch.float32)
    with torch.cuda.device(hidden.device):
        load().lm_head_tiled(
            weight=weight.data_ptr(),
            hidden=hidden.data_ptr(),
            bias=bias.data_ptr(),
            temperature=temperature.data_ptr(),
            seed=seed.data_ptr(),
            first_sample=first_sample.data_ptr(),
            workspace=workspace.data_ptr(),
            tokens=tokens.data_ptr(),
            logprobs=out.data_ptr() if logprobs else 0,
            rows=rows,
            length=length,
            vocab_size=vocab_size,
            width=width,
            parts=count,
            blocks=processors,
            stream=torch.cuda.current_stream(hidden.device).cuda_stream,
        )
    return tokens, out
