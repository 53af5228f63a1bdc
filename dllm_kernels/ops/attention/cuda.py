"""The CUDA kernel of attention (definition: op.py)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dllm_kernels.ops.extension import launch
from dllm_kernels.ops.kernels import LIMITS

_LIMITS = LIMITS["attention"]
HEAD_DIM = range(_LIMITS["min_head_dim"], _LIMITS["max_head_dim"] + 1, _LIMITS["head_dim_multiple"])
"""The head dimensions that it has code for."""


class Strides(NamedTuple):
    """Distances between neighbours in a tensor [B, T, H, D], in elements."""

    sample: int
    row: int
    head: int


@dataclass(frozen=True)
class Attention:
    """A call of the CUDA kernel; the names are those of csrc/include/dllm/kernels.h, and `attention` explains them."""

    q: Tensor
    k: Tensor
    v: Tensor
    key_mask: Tensor | None
    out: Tensor
    causal: bool

    @property
    def q_strides(self) -> Strides:
        """Of q."""
        return Strides(*self.q.stride()[:3])

    @property
    def k_strides(self) -> Strides:
        """Of k."""
        return Strides(*self.k.stride()[:3])

    @property
    def v_strides(self) -> Strides:
        """Of v."""
        return Strides(*self.v.stride()[:3])

    @property
    def batch(self) -> int:
        """B."""
        return self.q.shape[0]

    @property
    def queries(self) -> int:
        """T."""
        return self.q.shape[1]

    @property
    def keys(self) -> int:
        """S."""
        return self.k.shape[1]

    @property
    def heads(self) -> int:
        """H."""
        return self.q.shape[2]

    @property
    def head_dim(self) -> int:
        """D."""
        return self.q.shape[3]


def attention_cuda(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, causal: bool) -> Tensor:
    """Queues the kernel; shapes as in op.py, key_mask contiguous, rows of q, k and v at multiples of 16 bytes. Nothing is
    checked."""
    call = Attention(q, k, v, key_mask, torch.empty(q.shape, dtype=q.dtype, device=q.device), causal)
    launch("attention", call, q.device)
    return call.out
