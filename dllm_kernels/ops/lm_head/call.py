"""What the CUDA kernels of the lm_head are called with that divide the vocabulary into parts, and what every call must have."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dllm_kernels.ops.call import WRITTEN, none_as_empty
from dllm_kernels.ops.kernels import LIMITS
from dllm_kernels.ops.lm_head.reference import fours
from dllm_kernels.ops.noise.op import validate_scalars

_RESULT_VALUES = LIMITS["lm_head_skinny"]["result_values"]
"""float32 values that are kept of a row's part."""


@dataclass(frozen=True)
class LmHeadCall:
    """The fields that lm_head_skinny and lm_head_persistent share; the names are those of csrc/include/dllm/kernels.h.

    Attributes:
        hidden: [B, T, K] bfloat16, contiguous.
        weight: [V, K], or a packed weight's data.
        bias: [V] float32.
        temperature: float32 scalar tensor.
        seed, first_sample: int64 scalar tensors.
        vocab_size: V.
        with_logprobs: asks for logprobs.
        workspace: float32 [B T, parts rounded up to a multiple of 4, 5].
        tokens: [B, T] int64.
        logprobs: [B, T] float32.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    temperature: Tensor
    seed: Tensor
    first_sample: Tensor
    vocab_size: int
    with_logprobs: bool
    workspace: Tensor | None = field(default=None, metadata=WRITTEN)
    tokens: Tensor | None = field(default=None, metadata=WRITTEN)
    logprobs: Tensor | None = field(default=None, metadata=WRITTEN)

    @property
    def m(self) -> int:
        """Rows."""
        return self.hidden.shape[:-1].numel()

    @property
    def length(self) -> int:
        """Tokens of a sample."""
        return self.hidden.shape[1]

    @property
    def k(self) -> int:
        """Columns of the hidden states."""
        return self.hidden.shape[-1]

    def with_outputs(self):
        """The call with memory for what it writes."""
        workspace = self.hidden.new_empty((self.m, fours(self.parts), _RESULT_VALUES), dtype=torch.float32)
        return replace(self, workspace=workspace, **dict(zip(("tokens", "logprobs"), self.empty_outputs(), strict=True)))

    def empty_outputs(self) -> tuple[Tensor, Tensor | None]:
        """Memory for tokens and, where they are asked for, log-probabilities."""
        shape = self.hidden.shape[:2]
        logprobs = self.hidden.new_empty(shape, dtype=torch.float32) if self.with_logprobs else None
        return self.hidden.new_empty(shape, dtype=torch.int64), logprobs

    def outputs(self) -> tuple[Tensor, Tensor]:
        """What the op returns."""
        return self.tokens, none_as_empty(self.hidden, self.logprobs, torch.float32)


def validate_shared(hidden, weight, vocab_size: int, bias, temperature, seed, first_sample) -> None:
    """Raises ValueError unless what every variant is given fits: scalars, devices and the size of the noise."""
    if temperature.dtype != torch.float32 or temperature.ndim != 0:
        raise ValueError(f"temperature is {temperature.dtype} {list(temperature.shape)}; it must be a float32 scalar tensor")
    validate_scalars(seed, first_sample)
    for name, tensor in (("weight", weight), ("bias", bias), ("temperature", temperature), ("seed", seed)):
        if tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device} and hidden on {hidden.device}; they must share a device")
    if hidden.shape[1] * fours(vocab_size) >= 2**32:
        raise ValueError(f"{hidden.shape[1]} tokens x {vocab_size} entries of the vocabulary must be below 2^32")
