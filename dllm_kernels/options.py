"""Options that several commands share, and what they stand for."""

from enum import StrEnum
from typing import Annotated

import torch
import typer
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from dllm_kernels.config import PRESETS
from dllm_kernels.device import resolve_device
from dllm_kernels.ops.dispatch import select
from dllm_kernels.sources import StoredModel

DEFAULT_PRESET = "open-dllm-35b-a3b"


class Dtype(StrEnum):
    """Dtypes by their short names."""

    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"
    fp64 = "fp64"

    @property
    def torch(self) -> torch.dtype:
        """The dtype itself."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}[self]


Steps = Annotated[int, typer.Option("--steps", min=1, help="steps of the solver")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="samples generated together")]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="of the packed weights")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N; a card where there is one")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="of PyTorch on a CPU; its own choice, where not given")]
Preset = Annotated[str, typer.Option("--preset", help=", ".join(PRESETS))]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on stdout instead of a table")]


def device_for(name: str | None, backend: str, threads: int | None) -> torch.device:
    """The device asked for, where the backend can run, with PyTorch's threads set. Raises ValueError."""
    try:
        device = resolve_device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}; known devices: cpu, cuda, cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name}; it must be cpu, cuda or cuda:N")
    try:
        for op in ("attention", "denoise_update", "lm_head"):
            select(op, device, backend)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    if threads is not None:
        torch.set_num_threads(threads)
    return device


def stored_model(model: str) -> StoredModel:
    """The checkpoint folder, hub id or bundled model. Raises ValueError or FileNotFoundError."""
    try:
        return StoredModel(model)
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(f"{model} is no folder here, and the hub does not give it: {error}") from error
