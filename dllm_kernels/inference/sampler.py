"""FusedSampler: a plan and a solver's table, run from first noise to tokens; on CUDA as one captured graph."""

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dllm_kernels.diffusion.noise import SAMPLES
from dllm_kernels.diffusion.schedule import NoiseSchedule
from dllm_kernels.diffusion.solver import coefficient_table, time_grid
from dllm_kernels.inference.fold import Numerics
from dllm_kernels.inference.inputs import CallInputs
from dllm_kernels.inference.pack import PlanOptions, pack_model
from dllm_kernels.inference.plan import Plan
from dllm_kernels.inference.weights import PACKED_MODULES, LiveModel, RandomModel, StoredModel
from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.model.ldlm import LDLM, build_module
from dllm_kernels.ops.denoise_update.op import DenoiseUpdate, denoise_update
from dllm_kernels.ops.dispatch import BACKENDS, check_backend
from dllm_kernels.ops.noise.op import initial_noise
from dllm_kernels.utils.device import free_memory, resolve_device
from dllm_kernels.utils.validation import real_number, whole_number

PLAN_OVERHEAD = 1.15
"""What a plan may allocate, as a multiple of its packed weights (docs/design.md, "Truth and plan")."""

Progress = Callable[[str, int], None]
"""Called when a phase is done, with its name ("noise", "denoise", "decode" or "lm_head") and, of "denoise", the step from 0."""


@dataclass(frozen=True)
class SamplerOutput:
    """What a call gives; fresh tensors that no later call overwrites.

    Attributes:
        tokens: [B, T] int64.
        latents: [B, T, d_z] float32 (float64 for a float64 plan), the final z0, standardised.
        logprobs: [B, T] float32, the log-softmax of the logits at each token in nats, or None.
    """

    tokens: Tensor
    latents: Tensor
    logprobs: Tensor | None


@dataclass(frozen=True)
class CapturedGraph:
    """A generation as one CUDA graph. It reads what the sampler's last call wrote into its inputs.

    Attributes:
        graph: what is replayed.
        output: what a replay writes, [B, ...] as SamplerOutput has it; the next replay overwrites it.
    """

    graph: torch.cuda.CUDAGraph
    output: SamplerOutput

    def replay(self) -> SamplerOutput:
        """Queues the generation on the current stream of the sampler's device, which must be current, and gives `output`.

        Nothing is copied or checked. No other thread may call the sampler until the replay is done.
        """
        self.graph.replay()
        return self.output


class FusedSampler:
    """Generates token sequences with a packed model (docs/design.md, "Sampling").

    Args:
        model: an LDLM, whose weights stay as they are, or a source of its parts (inference/weights.py).
        num_steps: N, steps of the solver, at least 1.
        batch_size: B, samples a call.
        seq_len: T, tokens a sample, up to the model's; None for the model's.
        solver: "ddim", "ddpm" or "dpmpp_2m" (diffusion/solver.py).
        eta: noise of "ddpm" relative to the ancestral sampler; None for 1 there and 0 elsewhere.
        grid: "auto" for the model's own, "t", ("log_snr", start, end), or a list of times (diffusion/solver.py).
        context_len: P, the longest prompt a call may bring, in tokens; 0 for none.
        guidance: classifier-free guidance (arXiv:2207.12598); needs context_len.
        logprobs: whether log-probabilities are returned.
        batch_invariant: a sample's result does not depend on the batch it is in, bit for bit.
        backend: "auto", "cuda", "triton" or "torch" (ops/dispatch.py).
        dtype: of the packed weights: bfloat16, float16, float32, or float64 on a CPU.
        device: None for CUDA where there is a card, otherwise the CPU.

    Attributes:
        config: the model's.
        plan: the packed model.
        graph: on CUDA the generation as a captured graph, which every call replays; otherwise None.

    Raises:
        ValueError: an argument does not fit the model or the machine; one sentence.
        MemoryError: too little memory for the plan and its batch; needed and free, before anything is allocated.
    """

    def __init__(
        self,
        model: LDLM | LiveModel | StoredModel | RandomModel,
        num_steps: int = 10,
        batch_size: int = 1,
        seq_len: int | None = None,
        solver: str = "ddim",
        eta: float | None = None,
        grid: str | tuple | list = "auto",
        context_len: int = 0,
        guidance: bool = False,
        logprobs: bool = False,
        batch_invariant: bool = False,
        backend: str = "auto",
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
    ):
        self.source = LiveModel(model) if isinstance(model, LDLM) else model
        self.config: LDLMConfig = self.source.config
        self.device = resolve_device(device)
        seq_len = self.config.seq_len if seq_len is None else seq_len
        check_options(self.config, num_steps, batch_size, seq_len, context_len, guidance, backend, dtype, self.device)
        check_backend(self.device, backend)
        schedule = NoiseSchedule.from_config(self.config)
        times = time_grid(schedule, num_steps, grid)
        table = coefficient_table(schedule, times, solver, (1.0 if solver == "ddpm" else 0.0) if eta is None else eta)
        self.num_steps, self.batch_size, self.seq_len, self.context_len = num_steps, batch_size, seq_len, context_len
        self.guidance, self.logprobs, self.batch_invariant, self.backend = guidance, logprobs, batch_invariant, backend
        numerics = self.numerics = Numerics.of(dtype, self.device)
        self._options = PlanOptions(seq_len, batch_size, numerics, context_len, guidance, batch_invariant, backend)
        self._times, self._table = times[:-1], self.numerics.table(table)
        self._reads_previous, self._draws_noise = ((table[:, column] != 0).any().item() for column in (2, 3))
        self._lock = threading.Lock()
        self.plan: Plan | None = None
        self.graph: CapturedGraph | None = None
        self.refresh()

    @classmethod
    def from_pretrained(cls, model_id: str | Path, *, revision: str | None = None, token: str | None = None, **options):
        """A sampler of a checkpoint folder, hub id or bundled model, packed part by part: never beside the whole model.

        `options` are the constructor's; raises what `LDLM.from_pretrained` and the constructor raise.
        """
        return cls(StoredModel(model_id, revision=revision, token=token), **options)

    def refresh(self) -> None:
        """Packs the weights again, and on CUDA captures the loop again, after the model's weights changed.

        Raises:
            ValueError: a weight holds NaN or infinity; names it.
            MemoryError: as the constructor does. The sampler then has no plan until a refresh succeeds.
        """
        with self._lock, self._on_device(), torch.no_grad():
            if self.graph is not None:
                # A replay on another stream may still read what is let go here.
                self._done.synchronize()
            self.plan = self.graph = None
            _check_memory(self.config, self._options)
            changed = self.source.watch()
            packed = pack_model(self.config, self.source, self._times, self._options)
            plan = Plan(self.config, packed, self._options)
            self._inputs = CallInputs.empty(self.config, self._options)
            self.plan, self._changed = plan, changed
            if self.device.type == "cuda":
                self.graph, self._done = self._warmed_up_graph(), torch.cuda.Event()

    def capture(self, on_phase: Progress | None = None) -> CapturedGraph:
        """Records the generation as one more CUDA graph, over the same inputs; the sampler's own graph stays as it is.

        Args:
            on_phase: called while the graph is recorded, on the stream that records: with ("begin", 0) before the first
                phase, then after each phase as `progress` is. What it queues becomes a part of the graph.

        Raises:
            RuntimeError: the sampler does not run on CUDA, or its last refresh() failed.
        """
        if self.device.type != "cuda":
            raise RuntimeError(f"a graph needs a CUDA card; this sampler runs on {self.device}")
        self._check_packed()
        with self._lock, self._on_device(), torch.no_grad():
            return self._record(torch.cuda.Stream(), on_phase)

    def __call__(
        self,
        seed: int = 0,
        first_sample: int = 0,
        *,
        noise: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        temperature: float = 0.0,
        guidance_scale: float = 1.0,
        progress: Progress | None = None,
    ) -> SamplerOutput:
        """Generates samples first_sample to first_sample + B - 1 of a seed.

        Args:
            seed: 64-bit seed, from -2^63 up to 2^64; a negative one stands for its two's complement.
            first_sample: number of the first sample, from 0; samples end at 2^56.
            noise: initial noise z_T [B, T, d_z] to use instead of the seed's.
            context: a prompt's hidden states [B, P', d_h], P' up to context_len, as the frozen encoder gives them; None
                for the learned null context.
            context_mask: [B, P'] bool, True where the prompt has a token; None for everywhere.
            temperature: of the tokens' distribution; 0 takes the most likely token.
            guidance_scale: w of z0 = u + w (c - u); 1 is no guidance. Only with guidance=True.
            progress: told of each phase when it is done. On CUDA the graph is one phase, so it is not called.

        Raises:
            ValueError: an argument does not fit; one sentence.
            RuntimeError: the model's weights changed after they were packed, or the last refresh() failed.
        """
        self._check_packed()
        changed = self._changed()
        if changed:
            raise RuntimeError(f"the model's weights changed after they were packed (first: {changed}); call refresh()")
        numbers = checked_call(self.batch_size, seed, first_sample, temperature, guidance_scale)
        seed, first_sample, temperature, guidance_scale = numbers
        if guidance_scale != 1.0 and not self.guidance:
            raise ValueError("guidance_scale needs a sampler made with guidance=True")
        self._inputs.check(noise, context, context_mask)
        with self._lock, self._on_device(), torch.no_grad():
            if self.graph is not None:
                self._done.wait()
            self._inputs.fill(seed, first_sample, temperature, guidance_scale, noise, context, context_mask)
            return _exhaust(self._run(), progress) if self.graph is None else self._replay()

    # The loop

    def _run(self) -> Iterator[tuple[str, int]]:
        """From first noise to tokens; yields each phase's name and number when it has been issued, returns the output."""
        inputs, denoiser = self._inputs, self.plan.packed.denoiser
        latents = initial_noise(
            inputs.seed,
            inputs.first_sample,
            self.batch_size,
            self.seq_len,
            self.config.latent_dim,
            self.numerics.tables,
            "auto" if self.backend == "cuda" else self.backend,
        )
        latents = torch.where(inputs.noise_given, inputs.noise, latents)
        previous = torch.zeros_like(latents) if self._reads_previous else None
        x = self.plan.first_input(latents)
        context = None
        if self.context_len:
            context = self.plan.context(inputs.context, inputs.context_mask, inputs.context_given)
        yield "noise", 0
        for step in range(self.num_steps):
            denoise_update(
                DenoiseUpdate(
                    latents,
                    self.plan.denoise(step, x, context),
                    previous,
                    x.x,
                    self._table,
                    step,
                    inputs.seed,
                    inputs.first_sample,
                    self.plan.next_shift(step),
                    inputs.guidance_scale,
                    denoiser.norm_scale,
                    denoiser.norm_shift,
                    x.stats,
                    noise=self._draws_noise,
                    backend=self.backend,
                )
            )
            yield "denoise", step
        # The latents as the last update has rounded them.
        hidden = self.plan.decode(x.x[: self.batch_size, :, : self.config.latent_dim])
        yield "decode", 0
        tokens, logprobs = self.plan.tokens(hidden, inputs.temperature, inputs.seed, inputs.first_sample, self.logprobs)
        yield "lm_head", 0
        return SamplerOutput(tokens, latents, logprobs)

    def _warmed_up_graph(self) -> CapturedGraph:
        """The loop as a graph, recorded after a run that compiles what is compiled at first use."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            _exhaust(self._run())
        side.synchronize()
        return self._record(side)

    def _record(self, stream: torch.cuda.Stream, on_phase: Progress | None = None) -> CapturedGraph:
        graph = torch.cuda.CUDAGraph()
        # Without a stream of its own PyTorch captures on one of the first card that it captured on.
        with torch.cuda.graph(graph, stream=stream):
            if on_phase is not None:
                on_phase("begin", 0)
            output = _exhaust(self._run(), on_phase)
        return CapturedGraph(graph, output)

    def _replay(self) -> SamplerOutput:
        out = self.graph.replay()
        fresh = SamplerOutput(out.tokens.clone(), out.latents.clone(), None if out.logprobs is None else out.logprobs.clone())
        # The next call, on whatever stream, writes the inputs after this one has read them.
        self._done.record()
        return fresh

    def _check_packed(self) -> None:
        if self.plan is None:
            raise RuntimeError("the last refresh() failed; call refresh() again")

    def _on_device(self):
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()


def _exhaust(run: Iterator, progress: Progress | None = None) -> SamplerOutput:
    while True:
        try:
            phase, number = next(run)
        except StopIteration as stop:
            return stop.value
        if progress is not None:
            progress(phase, number)


def check_options(config, num_steps, batch_size, seq_len, context_len, guidance, backend, dtype, device) -> None:
    """Raises the ValueError that a sampler of these options would, on a machine that may lack the device."""
    for name, value, least in (
        ("num_steps", num_steps, 1),
        ("batch_size", batch_size, 1),
        ("seq_len", seq_len, 1),
        ("context_len", context_len, 0),
    ):
        whole_number(name, value, least)
    if seq_len > config.seq_len:
        raise ValueError(f"seq_len is {seq_len}; this model has {config.seq_len} latents")
    if context_len and not config.context:
        raise ValueError("context_len needs a model with context=True in its config")
    if context_len and not config.trained_with_prompts:
        raise ValueError("this model takes no prompt: it was trained without prompts")
    if guidance and not context_len:
        raise ValueError("guidance needs context_len of at least 1: it compares with and without a prompt")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known backends: {', '.join(BACKENDS)}")
    allowed = (torch.bfloat16, torch.float16, torch.float32) + ((torch.float64,) if device.type == "cpu" else ())
    if dtype not in allowed:
        raise ValueError(f"dtype is {dtype}; on {device.type} it must be one of {', '.join(str(d) for d in allowed)}")


def checked_call(
    batch_size: int, seed: int, first_sample: int, temperature: float, guidance_scale: float = 1.0
) -> tuple[int, int, float, float]:
    """The numbers of a call as it takes them. Raises the ValueError that a call with them would."""
    return (
        whole_number("seed", seed, -(2**63), 2**64 - 1),
        whole_number("first_sample", first_sample, 0, SAMPLES - batch_size),
        real_number("temperature", temperature, least=0),
        real_number("guidance_scale", guidance_scale),
    )


def _check_memory(config: LDLMConfig, options: PlanOptions) -> None:
    numerics, rows = options.numerics, options.copies * options.batch_size * options.seq_len
    with torch.device("meta"):
        count = sum(p.numel() for name in PACKED_MODULES for p in build_module(name, config).parameters())
    # Of a row of the batch, the noise, latents and prediction, and the widest layer's input, inside and output.
    latents, layer = 3 * config.latent_dim * numerics.tables.itemsize, 6 * config.dim * numerics.activations.itemsize
    needed = int(count * numerics.weights.itemsize * PLAN_OVERHEAD) + rows * (latents + layer)
    free = free_memory(numerics.device)
    if needed > free:
        raise MemoryError(f"the plan needs about {needed / 1e9:.1f} GB on {numerics.device} and {free / 1e9:.1f} GB are free")
