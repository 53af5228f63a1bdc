"""From what is typed or configured to what runs: a model by its name, a device, a dtype, a grid, a tokenizer."""

import logging
from enum import StrEnum
from pathlib import Path

import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from dllm_kernels.inference.weights import LiveModel, RandomModel, StoredModel
from dllm_kernels.model.checkpoint import bundled_models
from dllm_kernels.model.config import PRESETS, LDLMConfig
from dllm_kernels.model.ldlm import LDLM
from dllm_kernels.model.tokenizer import TextTokenizer, has_tokenizer
from dllm_kernels.ops.dispatch import check_backend
from dllm_kernels.utils.device import resolve_device


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


def device_for(name: str | None, backend: str, threads: int | None) -> torch.device:
    """The device asked for, where the backend can run, with PyTorch's threads set. Raises ValueError."""
    device = resolve_device(name)
    check_backend(device, backend)
    if threads is not None:
        torch.set_num_threads(threads)
    return device


def stored_model(model: str) -> StoredModel:
    """The checkpoint folder, hub id or bundled model. Raises ValueError or FileNotFoundError."""
    try:
        return StoredModel(model)
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(f"{model} is no folder here, and the hub does not give it: {error}") from error


def is_open_dllm(model: str) -> bool:
    """Whether a model's name stands for an open-dllm file."""
    return Path(model).is_file() or Path(model).suffix in (".pt", ".pth")


def source_of(model: str, dtype: torch.dtype) -> RandomModel | StoredModel | LiveModel:
    """What a model's name stands for: a preset, a folder, a hub id or a file. Raises ValueError or FileNotFoundError."""
    if model in PRESETS:
        return RandomModel(LDLMConfig.preset(model), dtype=dtype)
    if is_open_dllm(model):
        return LiveModel(LDLM.from_open_dllm(model))
    if Path(model).exists() or "/" in model or model in bundled_models():
        return stored_model(model)
    raise ValueError(
        f"unknown preset {model!r}, and no such file or folder; known presets: {', '.join(PRESETS)}; "
        f"models in this package: {', '.join(bundled_models()) or 'none'}"
    )


def grid_of(text: str) -> str | tuple | list[float]:
    """A sampler's grid from what is typed. Raises ValueError."""
    name, *ends = text.split(":")
    try:
        if name == "log_snr":
            start, end = map(float, ends)
            return name, start, end
        return text if text in ("auto", "t") else [float(t) for t in text.split(",")]
    except ValueError:
        raise ValueError(f"grid is {text!r}; it must be auto, t, log_snr:START:END, or times such as 1,0.5,0") from None


def tokenizer_of(tokenizer: str | None, source: RandomModel | StoredModel | LiveModel) -> TextTokenizer | None:
    """What turns tokens into text: the tokenizer asked for, or the one beside the weights, or None. Raises ValueError."""
    try:
        if tokenizer is not None:
            return TextTokenizer(tokenizer)
        if isinstance(source, StoredModel) and has_tokenizer(source.folder):
            return TextTokenizer(source.folder)
    except ImportError as error:
        if tokenizer is not None:
            raise ValueError(str(error)) from error
        logging.getLogger(__name__).warning("Tokens only: %s", error)
    return None
