"""What the machine is: its device, its memory, its name."""

import os
from pathlib import Path

import torch


def resolve_device(device: torch.device | str | None) -> torch.device:
    """`device` with its index, or CUDA's current card where there is one, otherwise the CPU, for None.

    Raises:
        ValueError: CUDA is asked for and PyTorch sees no card, or none of that number.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type != "cuda":
        return device
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
