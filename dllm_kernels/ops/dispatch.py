"""Which implementation serves an op on a device, and why the others do not.

Every op file registers its implementations here, best first. `backend="auto"` takes the first that can run; a backend asked
for by name either runs or says in one sentence why it cannot.
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BACKENDS = ("auto", "cuda", "triton", "torch")
FLOATING = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""Dtypes that ops compute in; PyTorch has narrower ones, which it calls floating too."""


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op; `unsupported_reason(device)` is why it cannot run there, or None, and `limits` says for what
    `auto` takes it."""

    op: str
    backend: str
    function: Callable
    unsupported_reason: Callable[[torch.device], str | None]
    limits: str = ""


_implementations: dict[str, list[Implementation]] = {}


def implementation(
    op: str, backend: str, unsupported_reason: Callable[[torch.device], str | None] = lambda device: None, limits: str = ""
):
    """Registers the decorated function as `backend`'s implementation of `op`. The first registered is preferred."""

    def register(function: Callable) -> Callable:
        _implementations.setdefault(op, []).append(Implementation(op, backend, function, unsupported_reason, limits))
        return function

    return register


def select(op: str, device: torch.device, backend: str = "auto") -> Implementation:
    """The implementation of `op` for `device`.

    Raises:
        ValueError: the backend is not one of BACKENDS.
        RuntimeError: the backend cannot serve this op on this device, with the reason.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known backends: {', '.join(BACKENDS)}")
    reasons = []
    for candidate in _implementations[op]:
        if backend not in ("auto", candidate.backend):
            continue
        reason = candidate.unsupported_reason(device)
        # Triton's interpreter runs on a CPU to be tested, never because someone generates there.
        if reason is None and not (backend == "auto" and candidate.backend == "triton" and device.type == "cpu"):
            return candidate
        reasons.append(reason)
    if not reasons:
        raise RuntimeError(f"{op} has no {backend} implementation")
    raise RuntimeError(f"{op} cannot run on {device} with backend {backend!r}: {'; '.join(reasons)}")


def check_backend(device: torch.device, backend: str) -> None:
    """Raises the ValueError of a backend that cannot serve a generation on `device`."""
    try:
        for op in ("attention", "denoise_update", "lm_head"):
            select(op, device, backend)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def explain(device: torch.device) -> list[tuple[str, str, str]]:
    """A row (op, backend that serves it, why not the ones before it) for every op."""
    rows = []
    for op, candidates in sorted(_implementations.items()):
        chosen = select(op, device)
        passed = candidates[: candidates.index(chosen)]
        why = [
            f"{c.backend}: {c.unsupported_reason(device) or 'on a CPU it only runs under its interpreter, for tests'}"
            for c in passed
        ]
        rows.append((op, chosen.backend, "; ".join([chosen.limits] * bool(chosen.limits) + why) or "first choice"))
    return rows


def aligned(*tensors: Tensor | None) -> bool:
    """Whether a bulk copy can begin where each tensor does. A compiler, which knows no addresses, takes it that it can."""
    return torch.compiler.is_compiling() or all(tensor is None or tensor.data_ptr() % 16 == 0 for tensor in tensors)


def triton_unsupported_reason(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on `device`, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return None if major >= 8 else f"Triton kernels need compute capability 8.0 or more, this card has {major}.{minor}"
    return None if interpreting() else f"Triton has no compiler for {device.type}"


@functools.cache
def interpreting() -> bool:
    """Whether Triton runs its kernels in its interpreter. Triton reads the switch at import, so it holds for the process."""
    return os.environ.get("TRITON_INTERPRET") == "1"
