"""A device: which one, its name and memory, and how fast it streams and multiplies."""

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

PROXY = os.environ.get("DLLM_PROXY") == "sm_120"
"""A developer's switch, DLLM_PROXY=sm_120: another card stands in for an RTX 5090's SMs. Kernels are chosen as for compute
capability 12.0 and its shared memory, and run with no more of it (docs/design.md, "The proxy")."""
_PROXY_SHARED_MEMORY, PROXY_CARVEOUT = 100 * 1024, 43
"""Bytes of an SM's shared memory on sm_120, and the percentage of an H200's 228 KB that makes as much of it."""


def resolve_device(device: torch.device | str | None) -> torch.device:
    """A card with its index, or the CPU; for None CUDA's current card where there is one, otherwise the CPU.

    Raises:
        ValueError: it is neither; or CUDA is asked for and PyTorch sees no card, or none of that number.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"unknown device {device!r}; known devices: cpu, cuda, cuda:N") from None
    if device.type == "cpu":
        # Without a number, as tensors have it.
        return torch.device("cpu")
    if device.type != "cuda":
        raise ValueError(f"device is {device}; it must be cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise ValueError("device is cuda, and PyTorch sees no CUDA card on this machine; device='cpu' runs everywhere")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise ValueError(f"device is {device}, and this machine has {torch.cuda.device_count()} CUDA cards")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`; on a CPU within the control group's limit where there is one."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    limit = group / "memory.max"
    if limit.exists() and limit.read_text().strip().isdigit():
        # Cached file pages count as used by the group and are given back under pressure.
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
        available = min(available, int(limit.read_text()) - int((group / "memory.current").read_text()) + int(cached))
    return available


def device_name(device: torch.device) -> str:
    """The card's or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return models[0] if models else "CPU"


def memory_size(device: torch.device) -> int:
    """Bytes of memory that the card or the machine has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_memory(device: torch.device) -> int:
    """The most bytes held so far: by PyTorch on a card, by the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def elapsed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that `call` takes, until the device has finished."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def measure_bandwidth(device: torch.device) -> float:
    """Bytes a second of the better of a copy (read and written) and a sum (read) of tensors far larger than a cache."""
    size = min(2**30 if device.type == "cuda" else 2**28, free_memory(device) // 4)
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    copied, summed = _best(lambda: target.copy_(source), device), _best(source.sum, device)
    return max(2 * source.nbytes / copied, source.nbytes / summed)


def measure_product(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a square product: 8192 wide on a card, 2048 on a CPU."""
    n = 8192 if device.type == "cuda" else 2048
    # Random operands: a product of zeros runs faster than one of data.
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / _best(lambda: torch.mm(a, b), device)


def _best(call: Callable[[], object], device: torch.device) -> float:
    # A card takes several calls a measurement, so that a launch and a wait are a small share of it.
    calls = 10 if device.type == "cuda" else 1

    def several() -> None:
        for _ in range(calls):
            call()

    several()
    return min(elapsed(several, device) for _ in range(5)) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def multiprocessors(device: torch.device) -> int:
    """SMs of a CUDA device; 132, those of an H200, elsewhere."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory in each SM of a CUDA device; those of an H200 elsewhere."""
    if device.type != "cuda":
        return 228 * 1024
    if PROXY:
        return _PROXY_SHARED_MEMORY
    return torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor


def capability(device: torch.device) -> tuple[int, int]:
    """A card's compute capability, by which kernels are chosen."""
    return (12, 0) if PROXY else torch.cuda.get_device_capability(device)
