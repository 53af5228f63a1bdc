"""Devices by their names, in a process that may lack the card that its workers have."""

import re

import torch

from dllm_kernels.inference.load import device_for
from dllm_kernels.utils.device import resolve_device


def worker_device(name: str, backend: str) -> torch.device:
    """What a worker's device is called, checked as far as it does not depend on this machine. Raises ValueError."""
    # A cluster's driver may have no card, and each worker has one of its own, whatever its number.
    return torch.device("cuda") if re.fullmatch(r"cuda(:\d+)?", name) else device_for(name, backend, None)


def check_on_ray(name: str) -> None:
    """Raises the ValueError of a device that Ray cannot give to every worker."""
    if name.startswith("cuda:"):
        raise ValueError(f"device is {name}; Ray chooses each worker's card: it must be cpu or cuda")


def device_name(name: str | None) -> str:
    """What a worker on Ray runs on: the device that was asked for, otherwise cuda or cpu as this machine has it."""
    return resolve_device(None).type if name is None else name
