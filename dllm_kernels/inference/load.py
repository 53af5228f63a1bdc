"""From options to what runs: a model by its name, its tokenizer, and a device."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from dllm_kernels.diffusion.schedule import NoiseSchedule
from dllm_kernels.diffusion.solver import coefficient_table, time_grid
from dllm_kernels.inference.options import Dtype, SamplerOptions
from dllm_kernels.inference.sampler import check_options
from dllm_kernels.inference.weights import LiveModel, RandomModel, StoredModel
from dllm_kernels.model.checkpoint import bundled_models
from dllm_kernels.model.config import PRESETS, LDLMConfig
from dllm_kernels.model.ldlm import LDLM
from dllm_kernels.model.tokenizer import TextTokenizer, has_tokenizer
from dllm_kernels.ops.dispatch import check_backend
from dllm_kernels.utils.device import resolve_device

Source = RandomModel | StoredModel | LiveModel


@dataclass(frozen=True)
class Loaded:
    """What options name, found and opened; no sampler is packed yet.

    Attributes:
        options: those.
        source: of the model's weights.
        tokenizer: turns tokens into text; None where none was asked for and none lies beside the weights, or it cannot be read.
        tokens_only: why the tokenizer beside the weights cannot be read here; None where nothing is amiss.
        device: what runs the model.
    """

    options: SamplerOptions
    source: Source
    tokenizer: TextTokenizer | None
    tokens_only: str | None
    device: torch.device

    @property
    def config(self) -> LDLMConfig:
        """The model's."""
        return self.source.config

    def check_sampler(self, steps: int, batch: int, context_len: int = 0, guidance: bool = False) -> int:
        """Raises the ValueError that a sampler would, without packing it, whether or not its device is here; gives T."""
        arguments = {"seq_len": None, "eta": None} | self.options.sampler_arguments()
        solver, seq_len, eta = (arguments[name] for name in ("solver", "seq_len", "eta"))
        seq_len = self.config.seq_len if seq_len is None else seq_len
        schedule = NoiseSchedule.from_config(self.config)
        times = time_grid(schedule, steps, arguments["grid"])
        coefficient_table(schedule, times, solver, (1.0 if solver == "ddpm" else 0.0) if eta is None else eta)
        sizes, how = (steps, batch, seq_len, context_len, guidance), (arguments["backend"], arguments["dtype"])
        check_options(self.config, *sizes, *how, self.device)
        return seq_len


def load(options: SamplerOptions, elsewhere: bool = False) -> Loaded:
    """Finds what the options name, and sets PyTorch's threads where they say so.

    Args:
        elsewhere: whether other processes run it. Then nothing is set, and a card is taken by its name: this machine may
            lack the one that a worker has, and each worker on Ray has one of its own, whatever its number.

    Raises:
        ValueError, FileNotFoundError: a name does not fit; one sentence.
    """
    if not elsewhere:
        device = device_for(options.device, options.backend, options.threads)
    elif re.fullmatch(r"cuda(:\d+)?", options.device or ""):
        device = torch.device("cuda")
    else:
        device = device_for(options.device, options.backend, None)
    source = source_of(options.model, Dtype(options.dtype).torch)
    return Loaded(options, source, *_tokenizer(options.tokenizer, source), device)


def device_for(name: str | None, backend: str, threads: int | None) -> torch.device:
    """The device asked for, where the backend can run; where it is a CPU, with PyTorch's threads set. Raises ValueError."""
    device = resolve_device(name)
    check_backend(device, backend)
    if threads is not None and device.type == "cpu":
        torch.set_num_threads(threads)
    return device


def source_of(model: str, dtype: torch.dtype = torch.bfloat16) -> Source:
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


def is_open_dllm(model: str) -> bool:
    """Whether a model's name stands for an open-dllm file."""
    return Path(model).is_file() or Path(model).suffix in (".pt", ".pth")


def stored_model(model: str) -> StoredModel:
    """The checkpoint folder, hub id or bundled model. Raises ValueError or FileNotFoundError."""
    try:
        return StoredModel(model)
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(f"{model} is no folder here, and the hub does not give it: {error}") from error


def _tokenizer(name: str | None, source: Source) -> tuple[TextTokenizer | None, str | None]:
    """The tokenizer asked for, or the one beside the weights, or None with why that one cannot be read. Raises ValueError."""
    try:
        if name is not None:
            return TextTokenizer(name), None
        if isinstance(source, StoredModel) and has_tokenizer(source.folder):
            return TextTokenizer(source.folder), None
    except ImportError as error:
        if name is not None:
            raise ValueError(str(error)) from error
        return None, str(error)
    return None, None
