"""The compiled CUDA kernels, dllm_kernels._C: whether they are there, for which cards, and if not, why."""

import functools
import importlib
import re
from types import ModuleType
from typing import Any

import torch

from dllm_kernels.utils.device import PROXY, PROXY_CARVEOUT, capability


@functools.cache
def load() -> ModuleType:
    """The module dllm_kernels._C.

    Raises:
        RuntimeError: it is absent or cannot be loaded, with the reason.
    """
    name = "dllm_kernels._C"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise RuntimeError("dllm-kernels was installed without its CUDA kernels: they need nvcc 12.8 or newer") from None
    except ImportError as error:
        raise RuntimeError(f"the CUDA kernels cannot be loaded: {error}") from error
    if PROXY:
        module.set_carveout(PROXY_CARVEOUT)
    return module


def launch(kernel: str, call: Any, device: torch.device) -> None:
    """Queues a kernel on `device`'s current stream; nothing is checked.

    Args:
        kernel: its name, that of a file in csrc/kernels.
        call: an object with the fields of the kernel's struct in csrc/include/dllm/kernels.h.
    """
    # The extension has a CUDA runtime of its own, which launches on the current device.
    with torch.cuda.device(device):
        getattr(load(), kernel)(call, torch.cuda.current_stream(device).cuda_stream)


def architectures() -> tuple[str, ...]:
    """What the CUDA kernels were compiled for, e.g. ("sm_90a", "sm_120a"). Raises RuntimeError as `load` does."""
    return load().architectures()


def cuda_unsupported_reason(device: torch.device) -> str | None:
    """Why the CUDA kernels cannot run on `device`, or None."""
    if device.type != "cuda":
        return f"CUDA kernels do not run on {device.type}"
    try:
        built = architectures()
    except RuntimeError as error:
        return str(error)
    capability = torch.cuda.get_device_capability(device)
    if any(supports(architecture, capability) for architecture in built):
        return None
    return f"the CUDA kernels were compiled for {', '.join(built)}, and this card is sm_{capability[0]}{capability[1]}"


def has_wgmma(device: torch.device) -> bool:
    """Whether kernels can run in which four warps multiply at once (wgmma): on Hopper, with code for it. Elsewhere than on a
    card as there."""
    if device.type != "cuda":
        return True
    try:
        return capability(device) == (9, 0) and "sm_90a" in architectures()
    except RuntimeError:
        return False


@functools.cache
def max_cluster(device: torch.device) -> int:
    """The most blocks of a cluster that run on a card, up to 8; 1 where clusters do not run. 8 elsewhere than on a card."""
    if device.type != "cuda":
        return 8
    try:
        module = load()
    except RuntimeError:
        return 1
    with torch.cuda.device(device):
        return module.max_cluster()


def supports(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for `architecture` ("sm_90a", "sm_80") runs on a card of `capability` (major, minor).

    Machine code runs from its own minor version on; with the suffix "a" on that very version only (CUDA C++ Programming
    Guide, "Compute Capabilities").
    """
    major, minor, suffix = re.fullmatch(r"sm_(\d+)(\d)([af]?)", architecture).groups()
    if suffix == "a":
        return (int(major), int(minor)) == capability
    return int(major) == capability[0] and int(minor) <= capability[1]
