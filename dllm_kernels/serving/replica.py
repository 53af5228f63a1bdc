"""A replica: samplers of the captured sizes, and which rows of many requests share one of their calls."""

import math
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dllm_kernels.batch.ray import check_device
from dllm_kernels.inference.encode import PromptLimit, load_encoder
from dllm_kernels.inference.load import load
from dllm_kernels.inference.options import SamplerOptions
from dllm_kernels.inference.sampler import FusedSampler
from dllm_kernels.inference.weights import source_of
from dllm_kernels.model.tokenizer import TextTokenizer
from dllm_kernels.ops.noise.op import initial_noise
from dllm_kernels.utils.machine import Machine


@dataclass(frozen=True)
class Settings(SamplerOptions):
    """What a server serves, and its limits, as plain values that go to every replica.

    Attributes:
        device: "cpu" or "cuda", a card a replica.
        threads: of PyTorch in a replica on a CPU.
        steps: the step counts that a request may ask for, each with samplers of its own; the first where it asks for none.
        batches: the captured batch sizes.
        prompt_len: longest prompt in the encoder's tokens; a longer one gets 400. 0 takes no prompts.
        guidance: whether a request may ask for guidance, for which there are more samplers.
        wait_s: how long a request waits for others to share a call with.
        queue: samples that may be asked for and not yet answered, over all requests; more are refused with 429.
        deadline_s: a request not answered by then is answered with 504, and what of it did not run will not.
        most_body: bytes of a request's body.
        most_prompt: characters of a prompt.
        key_digest: SHA-256 of the API key, or None where none is asked for.

    The others are those of SamplerOptions.
    """

    device: str = "cpu"
    threads: int = 1
    steps: tuple[int, ...] = (10,)
    batches: tuple[int, ...] = (1, 8)
    prompt_len: int = 0
    guidance: bool = False
    replicas: int = 1
    wait_s: float = 0.005
    queue: int = 64
    deadline_s: float = 30.0
    most_body: int = 1 << 20
    most_prompt: int = 32_768
    key_digest: str | None = None

    def check(self) -> int:
        """Raises the ValueError or FileNotFoundError of a setting that does not fit, without packing; gives T."""
        for name in ("replicas", "queue", "threads", "most_body", "most_prompt"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.wait_s < self.deadline_s < math.inf:
            raise ValueError(f"the wait of {self.wait_s} s must be at least 0 and below the deadline of {self.deadline_s} s")
        if not self.steps or not self.batches:
            raise ValueError("a server needs at least one step count and one batch size")
        if self.solver == "ddpm":
            raise ValueError("ddpm draws noise at every step by the number of the sample, so requests cannot share a call")
        if self.guidance and not self.prompt_len:
            raise ValueError("guidance needs prompts: a model with an encoder, and a prompt_len")
        loaded = load(self, elsewhere=True)
        check_device(self.device)
        self.prompt_limit()
        for steps in self.steps:
            for batch in self.batches:
                loaded.check_sampler(steps, batch, self.prompt_len, self.guidance)
        return loaded.config.seq_len

    def prompt_limit(self) -> PromptLimit | None:
        """What refuses prompts that are too long; None where none is taken. Raises ValueError where the model takes none."""
        return PromptLimit(source_of(self.model).config, self.prompt_len) if self.prompt_len else None


@dataclass(frozen=True)
class Row:
    """One sample that a request asks for.

    Attributes:
        prompt: or None for the null context.
        seed: or None for any.
        sample: its number within the seed.
        until: when nobody waits for it any more, by time.time().
    """

    steps: int
    prompt: str | None = None
    guidance_scale: float = 1.0
    temperature: float = 0.0
    seed: int | None = None
    sample: int = 0
    until: float = math.inf


@dataclass(frozen=True)
class Answer:
    """A row's sample, and the call that made it.

    Attributes:
        tokens, logprobs: [T].
        rows, size, seconds: of the call: samples asked for, captured size, duration.
        joules: of the card in the call, or None.
        leads: whether this is the call's first row, so that a call is counted once.
    """

    tokens: list[int]
    logprobs: list[float]
    prompt_tokens: int
    rows: int
    size: int
    seconds: float
    joules: float | None
    leads: bool


def calls(rows: list[Row], largest: int) -> Iterator[list[int]]:
    """Which rows share a call, by their places in `rows`.

    A call has one step count, temperature and guidance scale, and either prompts or none. At temperature 0 every row brings
    its own first noise, so rows of any seeds share a call. Above, tokens are drawn by the call's seed and the number of the
    sample: rows with a seed share one where they are consecutive samples of it, those without share a new one.
    """
    groups: dict[tuple, list[int]] = {}
    for place, row in enumerate(rows):
        drawn = row.temperature > 0 and row.seed is not None
        key = (row.steps, row.temperature, row.guidance_scale, row.prompt is None, row.seed if drawn else None, drawn)
        groups.setdefault(key, []).append(place)
    for (*_, drawn), places in groups.items():
        if drawn:
            places.sort(key=lambda place: rows[place].sample)
        call: list[int] = []
        for place in places:
            if call and (len(call) == largest or (drawn and rows[place].sample != rows[call[-1]].sample + 1)):
                yield call
                call = []
            call.append(place)
        yield call


class Samplers:
    """A replica's samplers, all packed and captured before the first request."""

    def __init__(self, settings: Settings):
        loaded, self._settings = load(settings), settings
        self._device = loaded.device
        self._samplers = {
            (steps, size, guided): FusedSampler(
                loaded.source,
                steps,
                size,
                context_len=settings.prompt_len,
                guidance=guided,
                logprobs=True,
                batch_invariant=loaded.device.type == "cpu",
                device=loaded.device,
                **settings.sampler_arguments(),
            )
            for steps in settings.steps
            for size in settings.batches
            for guided in ((False, True) if settings.guidance else (False,))
        }
        self._encode = load_encoder(loaded.config, settings.prompt_len, loaded.device) if settings.prompt_len else None
        self._nvml = Machine(loaded.device).nvml

    def run(self, rows: list[Row]) -> list[Answer | None]:
        """Generates the rows; None for those that nobody waits for any more."""
        now, answers = time.time(), [None] * len(rows)
        wanted = [place for place, row in enumerate(rows) if row.until > now]
        for call in calls([rows[place] for place in wanted], max(self._settings.batches)):
            places = [wanted[i] for i in call]
            for place, answer in zip(places, self._call([rows[place] for place in places]), strict=True):
                answers[place] = answer
        return answers

    def _call(self, rows: list[Row]) -> list[Answer]:
        row = rows[0]
        size = min(size for size in self._settings.batches if size >= len(rows))
        sampler = self._samplers[row.steps, size, row.guidance_scale != 1]
        padded = rows + rows[-1:] * (size - len(rows))
        begin, joules = time.monotonic(), self._joules()
        options, prompt_tokens = {"temperature": row.temperature}, [0] * len(rows)
        if row.prompt is not None:
            hidden, mask = self._encode([r.prompt for r in padded])
            options |= {"context": hidden, "context_mask": mask, "guidance_scale": row.guidance_scale}
            prompt_tokens = mask.sum(dim=1).tolist()[: len(rows)]
        if row.temperature > 0:
            seed, first = (secrets.randbits(63), 0) if row.seed is None else (row.seed, row.sample)
            out = sampler(seed=seed, first_sample=first, **options)
        else:
            out = sampler(noise=torch.cat([self._noise(sampler, r) for r in padded]), **options)
        tokens, logprobs = out.tokens.tolist(), out.logprobs.tolist()
        seconds = time.monotonic() - begin
        used = None if joules is None else self._joules() - joules
        return [
            Answer(tokens[i], logprobs[i], prompt_tokens[i], len(rows), size, seconds, used, i == 0) for i in range(len(rows))
        ]

    def _noise(self, sampler: FusedSampler, row: Row) -> torch.Tensor:
        """The first noise [1, T, d_z] of a row: its seed's, as the sampler itself would draw it."""
        seed = secrets.randbits(63) if row.seed is None else row.seed
        seed, sample = (
            torch.tensor(value, dtype=torch.int64, device=self._device)
            for value in ((seed + 2**63) % 2**64 - 2**63, row.sample)
        )
        backend = "auto" if sampler.backend == "cuda" else sampler.backend
        shape = 1, sampler.seq_len, sampler.config.latent_dim
        return initial_noise(seed, sample, *shape, sampler.numerics.tables, backend)

    def _joules(self) -> float | None:
        return None if self._nvml is None else self._nvml.joules()


class Text:
    """Tokens to text: through a tokenizer, or as their numbers where there is none."""

    def __init__(self, tokenizer: TextTokenizer | None):
        self._tokenizer = tokenizer

    def __call__(self, tokens: list[int]) -> str:
        """The text of a sample."""
        return " ".join(map(str, tokens)) if self._tokenizer is None else self._tokenizer.text(tokens)

    def until_end(self, tokens: list[int]) -> tuple[list[int], bool]:
        """The tokens to the first end token, which is kept, and whether there is one; numbers have no end."""
        end = None if self._tokenizer is None else self._tokenizer.end(tokens)
        return (tokens, False) if end is None else (tokens[: end + 1], True)

    def pieces(self, tokens: list[int]) -> tuple[list[str], list[int]]:
        """The text of each token on its own, and where it begins in the text of all."""
        between = 1 if self._tokenizer is None else 0
        offsets = [len(self(tokens[:i])) + between * (i > 0) for i in range(len(tokens))]
        return [self([token]) for token in tokens], offsets
