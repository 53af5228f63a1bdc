"""What makes a sample besides its number: a model, a solver, a seed. Every worker builds its sampler from the same job."""

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dllm_kernels.inference.checks import checked_call
from dllm_kernels.inference.encode import PromptLimit, load_encoder
from dllm_kernels.inference.load import load
from dllm_kernels.inference.options import GenerationOptions
from dllm_kernels.inference.sampler import FusedSampler
from dllm_kernels.inference.weights import source_of
from dllm_kernels.model import checkpoint
from dllm_kernels.model.config import PRESETS
from dllm_kernels.utils.validation import whole_number

CARD_BATCH, CPU_BATCH = 64, 16
"""Samples a call where no batch is given."""


@dataclass(frozen=True)
class Job(GenerationOptions):
    """Options of the samples, as plain values, so that a worker anywhere can be told them.

    On a CPU samplers are batch-invariant: PyTorch's products there give a row other bits by how many rows stand beside it,
    and a sample must be the same whatever the batch size. On a card the batch size is part of what makes a sample, since
    our own kernels give a row the same bits in any batch but the library's products, above the batch where they win, do not.
    A folder's manifest holds the whole job, so one folder never mixes the two.

    Attributes:
        model: as the options', which every worker finds under the same name.
        batch: samples a call of the sampler, the size that is captured.
        device: "cpu" or "cuda", a card a worker; without Ray "cuda:N" too.
        threads: of PyTorch in a worker on a CPU. They are part of the job: how a product is split decides its last bits.
        prompt_len: longest prompt in the encoder's tokens; a longer one is refused. 0 for no prompts.

    The others are those of GenerationOptions.
    """

    batch: int = CPU_BATCH
    device: str = "cpu"
    threads: int = 1
    prompt_len: int = 0

    def __post_init__(self):
        for name in ("model", "tokenizer"):
            value = getattr(self, name)
            if value is not None and Path(value).exists():
                object.__setattr__(self, name, os.path.abspath(value))

    @classmethod
    def of(cls, options: GenerationOptions, prompt_len: int) -> "Job":
        """The job of options with a device; a batch and threads that they leave open are those that suit it."""
        batch = options.batch or (CARD_BATCH if options.device.startswith("cuda") else CPU_BATCH)
        return cls(**vars(options) | {"batch": batch, "threads": options.threads or 1}, prompt_len=prompt_len)

    def check(self) -> int:
        """Raises the ValueError or FileNotFoundError of an option that does not fit, without packing; gives T.

        A backend is looked at for the CPU alone, since this machine may lack the card that a worker has.
        """
        checked_call(self.batch, self.seed, 0, self.temperature, self.guidance_scale)
        whole_number("threads", self.threads, 1)
        loaded = load(self, elsewhere=True)
        if self.prompt_len:
            self.prompt_limit()
        return loaded.check_sampler(self.steps, self.batch, self.prompt_len, self.guided)

    def prompt_limit(self) -> PromptLimit:
        """What refuses prompts that are too long. Raises ValueError where the model takes none."""
        return PromptLimit(source_of(self.model).config, self.prompt_len)

    def manifest(self) -> dict[str, Any]:
        """What two runs must share for their samples to be the same, as JSON values."""
        fields = dataclasses.asdict(self) | {"model": _identity(self.model), "torch": torch.__version__.partition("+")[0]}
        fields["device"] = self.device.partition(":")[0]
        if self.device != "cpu":
            del fields["threads"]
        return fields

    def build(self) -> "Generator":
        """The sampler, packed and captured, in the process that calls this."""
        return Generator(self)

    @property
    def guided(self) -> bool:
        """Whether a sample is guided by its prompt."""
        return self.guidance_scale != 1


class Generator:
    """A job's sampler in a worker: sample numbers in, rows out."""

    def __init__(self, job: Job):
        loaded, self.job = load(job), job
        self._tokenizer = loaded.tokenizer
        self.sampler = FusedSampler(
            loaded.source,
            job.steps,
            job.batch,
            context_len=job.prompt_len,
            guidance=job.guided,
            batch_invariant=loaded.device.type == "cpu",
            device=loaded.device,
            **job.sampler_arguments(),
        )
        self._encode = load_encoder(loaded.config, job.prompt_len, loaded.device) if job.prompt_len else None

    def __call__(self, first: int, count: int, prompts: list[str] | None = None) -> dict[str, Any]:
        """Samples first to first + count - 1, count up to the batch; a short batch is padded and what pads it is dropped.

        Returns:
            columns by name: sample, prompt where there are prompts, tokens [count, T] int32, text with a tokenizer.
        """
        job, context = self.job, {}
        if prompts is not None:
            hidden, mask = self._encode(prompts + prompts[-1:] * (job.batch - count))
            context = {"context": hidden, "context_mask": mask, "guidance_scale": job.guidance_scale}
        out = self.sampler(seed=job.seed, first_sample=first, temperature=job.temperature, **context)
        tokens = out.tokens[:count].to("cpu", torch.int32).numpy()
        columns = {"sample": range(first, first + count), "prompt": prompts, "tokens": tokens}
        if self._tokenizer is not None:
            columns["text"] = [self._tokenizer.text(row) for row in tokens.tolist()]
        return {name: values for name, values in columns.items() if values is not None}


def _identity(model: str) -> dict[str, Any]:
    """What tells a model from another: a preset's name and config, or the digest of its files."""
    if model in PRESETS:
        return {"preset": model, "weights": "random, seed 0", "config": PRESETS[model].to_dict()}
    path = Path(model)
    if path.is_file():
        return {"sha256": _digest(path)}
    folder = checkpoint.resolve(model)
    files = checkpoint.CONFIG_FILE, checkpoint.WEIGHTS_FILE, *checkpoint.TOKENIZER_FILES
    return {name: _digest(folder / name) for name in files if (folder / name).is_file()}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
