"""What the two CUDA kernels of the lm_head share that cut the vocabulary into parts: what they are called with, and write."""

from typing import Any

import torch
from torch import Tensor

RESULT_VALUES = 5
"""float32 values that are kept of a row's part (csrc/include/dllm/row_result.cuh)."""


def prepare(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    temperature: Tensor,
    seed: Tensor,
    first_sample: Tensor,
    vocab_size: int,
    parts: int,
    logprobs: bool,
) -> tuple[dict[str, Any], Tensor, Tensor, Tensor]:
    """Arguments by name; tokens [B, T]; log-probabilities [B, T] or nothing; the workspace, to be kept until the launch."""
    batch, length, width = hidden.shape
    workspace = hidden.new_empty((batch * length, -(-parts // 4) * 4, RESULT_VALUES), dtype=torch.float32)
    tokens = hidden.new_empty((batch, length), dtype=torch.int64)
    out = hidden.new_empty((batch, length) if logprobs else 0, dtype=torch.float32)
    tensors = {"weight": weight, "hidden": hidden, "bias": bias, "temperature": temperature, "seed": seed}
    tensors |= {"first_sample": first_sample, "workspace": workspace, "tokens": tokens}
    arguments = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    arguments |= {"logprobs": out.data_ptr() if logprobs else 0, "rows": batch * length, "length": length}
    stream = torch.cuda.current_stream(hidden.device).cuda_stream
    return arguments | {"vocab_size": vocab_size, "width": width, "parts": parts, "stream": stream}, tokens, out, workspace
