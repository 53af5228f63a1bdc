"""What a generation is told, as plain values: names of a model, a dtype, a grid and a device, and numbers."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch

from dllm_kernels.utils.keywords import as_dtype


class Dtype(StrEnum):
    """Dtypes by their short names; `Dtype(name)` takes PyTorch's names too."""

    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"
    fp64 = "fp64"

    @property
    def torch(self) -> torch.dtype:
        """The dtype itself."""
        return as_dtype(self.value)

    @classmethod
    def _missing_(cls, value: object) -> "Dtype":
        dtype = as_dtype(value)
        return next(name for name in cls if name.torch == dtype)


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


@dataclass(frozen=True)
class SamplerOptions:
    """A model, how it is sampled and on what, so that a process anywhere can be told them.

    Attributes:
        model: a preset, a checkpoint folder, a hub id, a bundled model or an open-dllm file.
        solver: as FusedSampler's.
        grid: as it is typed (`grid_of`).
        dtype: of the packed weights, by its short name (`Dtype`).
        device: "cpu", "cuda" or "cuda:N"; None for a card where there is one, otherwise the CPU.
        backend: as FusedSampler's.
        threads: of PyTorch on a CPU; None for its own choice.
        tokenizer: folder or hub id of what turns tokens into text; None for the one beside the weights, where there is one.
    """

    model: str
    solver: str = "ddim"
    grid: str = "auto"
    dtype: str = "bf16"
    device: str | None = None
    backend: str = "auto"
    threads: int | None = None
    tokenizer: str | None = None

    def sampler_arguments(self) -> dict[str, Any]:
        """Arguments of every FusedSampler of these options, by their names. Raises ValueError."""
        return {"solver": self.solver, "grid": grid_of(self.grid), "backend": self.backend, "dtype": Dtype(self.dtype).torch}


@dataclass(frozen=True)
class GenerationOptions(SamplerOptions):
    """Options of samples: what makes each of them, besides its number.

    Attributes:
        steps: of the solver.
        batch: samples generated together; None for what the program takes.
        seq_len: tokens a sample; None for the model's.
        eta: as FusedSampler's.
        seed: of the samples, 64 bits.
        temperature: of the tokens' distribution; 0 takes the most likely token.
        guidance_scale: of classifier-free guidance by a prompt; 1 is none.
    """

    steps: int = 10
    batch: int | None = None
    seq_len: int | None = None
    eta: float | None = None
    seed: int = 0
    temperature: float = 0.0
    guidance_scale: float = 1.0

    def sampler_arguments(self) -> dict[str, Any]:
        """Those of every sampler, and how long and how noisy its samples are."""
        return super().sampler_arguments() | {"seq_len": self.seq_len, "eta": self.eta}
