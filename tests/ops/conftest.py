"""Triton kernels run compiled on a GPU, or in Triton's interpreter in a process started with TRITON_INTERPRET=1."""

import pytest
import torch

from dllm_kernels.ops.dispatch import interpreting


@pytest.fixture(scope="session")
def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if not interpreting():
        pytest.fail("without a GPU these tests run in a process of their own, with TRITON_INTERPRET=1 (Makefile)")
    return torch.device("cpu")


@pytest.fixture
def poisoned_memory():
    """torch.empty fills with NaN, so that what a kernel does not write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
