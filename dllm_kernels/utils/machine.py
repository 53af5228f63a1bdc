"""The machine: what it is and what runs on it, what state it is in, and the energy that it takes."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dllm_kernels.utils.device import device_name, memory_size
from dllm_kernels.utils.version import __version__

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_ENERGY_S, _MIN_S = 1.0, 0.2
MAX_OTHERS = 0.1
"""Of all cores, what other processes may take while a CPU with no core to spare is measured."""


@dataclass(frozen=True)
class Sample:
    """The machine at one moment: the SM clock in MHz where there is one, and what makes a time worthless, or None."""

    sm_mhz: float | None = None
    trouble: str | None = None


class Nvml:
    """NVML's view of one card (nvidia-ml-py).

    Raises:
        ImportError: nvidia-ml-py is not installed.
        pynvml.NVMLError: NVML does not answer for the card.
    """

    def __init__(self, device: torch.device):
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        # Heat and hardware's own brakes; a power cap shows in the clock, which is compared between contenders.
        self._brakes = (
            pynvml.nvmlClocksThrottleReasonHwSlowdown
            | pynvml.nvmlClocksThrottleReasonSwThermalSlowdown
            | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown
            | pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
        )
        # What the card does not tell is found out now, and not in the middle of a measurement.
        self.sample()

    def sample(self) -> Sample:
        """The SM clock, and whether the card is slowed down or shared."""
        nvml, handle = self._nvml, self._handle
        clock = float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
        trouble = None
        if nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) & self._brakes:
            trouble = "the card was throttled"
        # In a container NVML numbers processes as the host does, so that ours is known by being the only one.
        elif len(nvml.nvmlDeviceGetComputeRunningProcesses(handle)) > 1:
            trouble = "another process computed on the card"
        return Sample(clock, trouble)

    def joules(self) -> float | None:
        """The card's energy counter, or None where it has none."""
        millijoules = self._asked(self._nvml.nvmlDeviceGetTotalEnergyConsumption, self._handle)
        return None if millijoules is None else millijoules / 1000

    def _asked(self, question: Callable, *arguments) -> Any:
        try:
            return question(*arguments)
        except self._nvml.NVMLError:
            return None

    def describe(self) -> dict[str, Any]:
        """Driver, clocks in MHz, power limit in watts; None for what the card does not tell."""
        nvml, handle, asked = self._nvml, self._handle, self._asked
        limit = asked(nvml.nvmlDeviceGetPowerManagementLimit, handle)
        return {
            "driver": asked(nvml.nvmlSystemGetDriverVersion),
            "sm_mhz": asked(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": asked(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
            "most_sm_mhz": asked(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
            "power_limit_w": None if limit is None else limit / 1000,
        }


class Host:
    """A CPU's view of itself: whether other processes take the cores that the measurement needs."""

    def __init__(self):
        self._last, self._trouble = self._read(), None

    def sample(self) -> Sample:
        """What was so since the last sample, or over the last while where that is too short for the system's counters."""
        now = self._read()
        seconds, own, busy = (a - b for a, b in zip(now, self._last, strict=True))
        if seconds >= _MIN_S:
            cores = (os.cpu_count() or 1) * seconds
            others = max(0.0, busy - own) / cores
            crowded = busy / cores > 0.9 and others > MAX_OTHERS
            self._trouble = "other processes computed on the CPU" if crowded else None
            self._last = now
        return Sample(None, self._trouble)

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """Seconds of the clock, of this process on cores, and of all processes on cores."""
        times = os.times()
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        # user, nice, system, idle, iowait, irq, softirq, steal (man 5 proc_stat)
        busy = sum(map(int, first[:8])) - int(first[3]) - int(first[4])
        return time.monotonic(), times.user + times.system, busy / os.sysconf("SC_CLK_TCK")


class Machine:
    """One device of this machine.

    Attributes:
        device: what is measured.
        nvml: its `Nvml`, or None on a CPU and where NVML does not answer.
        unsupported_reason: why `nvml` is None on a card, or None.
    """

    def __init__(self, device: torch.device):
        self.device, self.nvml, self.unsupported_reason = device, None, None
        if device.type == "cuda":
            try:
                self.nvml = Nvml(device)
            except Exception as error:  # a missing package, a missing library, a card in a container without NVML
                self.unsupported_reason = f"no clocks, throttling or energy: {error or type(error).__name__}"
        self._host = Host() if device.type == "cpu" and sys.platform == "linux" else None

    def sample(self) -> Sample:
        """The state of the device now."""
        watch = self.nvml or self._host
        return Sample() if watch is None else watch.sample()

    def energy(self, call: Callable[[], object]) -> tuple[float | None, float | None]:
        """(joules a call, mean watts) over a second of calls, or Nones: the counter is too slow for one call."""
        if self.nvml is None or self.nvml.joules() is None:
            return None, None
        torch.cuda.synchronize(self.device)
        joules, begin, calls = self.nvml.joules(), time.perf_counter(), 0
        while time.perf_counter() - begin < _ENERGY_S:
            call()
            torch.cuda.synchronize(self.device)
            calls += 1
        taken, seconds = self.nvml.joules() - joules, time.perf_counter() - begin
        return taken / calls, taken / seconds

    def describe(self) -> dict[str, Any]:
        """What a result needs to say of the machine, and of what ran on it."""
        cuda = self.device.type == "cuda"
        return {
            "device": self.device.type,
            "name": device_name(self.device),
            "memory_bytes": memory_size(self.device),
            "cache_bytes": cache_size(self.device),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load_average": None if cuda else round(os.getloadavg()[0], 2),
            "capability": ".".join(map(str, torch.cuda.get_device_capability(self.device))) if cuda else None,
            **({} if self.nvml is None else self.nvml.describe()),
            "nvml_obstacle": self.unsupported_reason,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": version("triton"),
            "cuda": torch.version.cuda,
            "dllm_kernels": __version__,
            "commit": commit(),
        }


def version(package: str) -> str | None:
    """The installed version of a package, or None."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def commit() -> str | None:
    """The commit of the package's checkout, with "-dirty" where its code was changed since, or None outside of a checkout."""
    root = Path(__file__).parents[2]
    command = ("git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12")
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return None


def cache_size(device: torch.device) -> int:
    """Bytes of the last cache before memory: a card's L2, a processor's L3; 0 where it is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [int(path.read_text().strip().removesuffix("K")) * 1024 for path in _CACHES.glob("index*/size")]
    return max(sizes, default=0)
