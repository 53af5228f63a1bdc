"""What a card offers to the kernels: by this they are chosen and divided, so that tests can ask for any card."""

from dataclasses import dataclass

import torch

from dllm_kernels.ops.extension import has_wgmma
from dllm_kernels.utils.device import multiprocessors, shared_memory

RESERVED_BYTES = 1024
"""Shared memory that the system takes of every block, beyond its own."""
SHARED_BYTES = 101_376
"""Shared memory of a block that every card we compile for has (CUDA C++ Programming Guide, Compute Capabilities)."""


@dataclass(frozen=True)
class Card:
    """A card; an H200, where nothing else is said.

    Attributes:
        multiprocessors: SMs.
        shared_memory: bytes of shared memory of an SM.
        wgmma: whether it runs code for wgmma.
    """

    multiprocessors: int = 132
    shared_memory: int = 228 * 1024
    wgmma: bool = True

    @classmethod
    def of(cls, device: torch.device) -> "Card":
        """The card `device`; an H200 elsewhere than on a card."""
        return cls(multiprocessors(device), shared_memory(device), has_wgmma(device))

    @property
    def half_bytes(self) -> int:
        """Shared memory of a block of which an SM has two."""
        return self.shared_memory // 2 - RESERVED_BYTES

    @property
    def block_bytes(self) -> int:
        """Shared memory that a block may have: as much as leaves room for the next kernel's block, where that is more than
        every card has."""
        return max(SHARED_BYTES, self.half_bytes)


RTX_5090 = Card(170, 100 * 1024, wgmma=False)
"""An RTX 5090 by its data sheet."""
