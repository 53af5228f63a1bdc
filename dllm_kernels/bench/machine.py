"""What a machine reaches, and what a call takes of it: memory and launches."""

import dataclasses
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from dllm_kernels.bench.roofline import Card, this_card
from dllm_kernels.ops.linear.library import multiplies_bfloat16
from dllm_kernels.utils.device import measure_product


def reaches(device: torch.device) -> Card:
    """What a device streams, and multiplies in bfloat16, measured now; on a CPU the better of bfloat16 and float32."""
    card = this_card(device, torch.bfloat16)
    # Where the processor has no instruction for it, a bfloat16 product takes seconds and is slower for sure.
    if device.type != "cpu" or not multiplies_bfloat16():
        return card
    rate = max(card.rates[torch.bfloat16], measure_product(device, torch.bfloat16))
    return dataclasses.replace(card, rates={torch.bfloat16: rate})


class MemoryMeter:
    """The most bytes held since it was made, above what stood then: of PyTorch on a card, of the process on a CPU."""

    def __init__(self, device: torch.device):
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        elif sys.platform == "linux":
            # 5 resets the peak of the resident set (man 5 proc_pid_clear_refs); some containers refuse, and then it is whole.
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
            self._before = _status("VmRSS")

    def peak(self) -> int | None:
        """Bytes; None where the system does not tell."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        return _status("VmHWM") - self._before if sys.platform == "linux" else None


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def launches(call: Callable[[], object], device: torch.device) -> int | None:
    """Kernels, copies and fills that a call puts on a card, as the profiler sees them; None on a CPU."""
    if device.type != "cuda":
        return None
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize(device)
    return sum(event.device_type == DeviceType.CUDA for event in seen.events())
