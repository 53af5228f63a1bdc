"""Devices by their names, in a process that may lack the card that its workers have."""

import re

import torch

from dllm_kernels.options import device_for


def worker_device(name: str, backend: str) -> torch.device:
    """What a worker's device is called, checked as far as it does not depend on this machine. Raises ValueError."""
    # A cluster's driver may have no card, and each worker has one of its own, whatever its number.
    return torch.device("cuda") if re.fullmatch(r"cuda(:\d+)?", name) else device_for(name, backend, None)
