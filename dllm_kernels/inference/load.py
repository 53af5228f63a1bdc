"""From options to what runs: a model by its name, its tokenizer, and a device."""

import re
from dataclasses import dataclass

import torch

from dllm_kernels.diffusion.schedule import NoiseSchedule
from dllm_kernels.diffusion.solver import coefficient_table, time_grid
from dllm_kernels.inference.checks import check_options
from dllm_kernels.inference.options import Dtype, SamplerOptions
from dllm_kernels.inference.weights import Source, StoredModel, source_of
from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.model.tokenizer import TextTokenizer, has_tokenizer
from dllm_kernels.ops.dispatch import check_backend
from dllm_kernels.utils.device import resolve_device


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
