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
from dllm_kernels.inference.plan import Plan
from dllm_kernels.inference.weights import PACKED_MODULES, LiveModel, RandomModel, StoredModel
from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.model.ldlm import LDLM, build_module
from dllm_kernels.ops.denoise_update.op import denoise_update
from dllm_kernels.ops.dispatch import BACKENDS, check_backend
from dllm_kernels.ops.noise.op import initial_noise
from dllm_kernels.utils.device import free_memory, resolve_device
from dllm_kernels.utils.validation import real_number, whole_number

PLAN_OVERHEAD = 1.15
"""What a plan may allocate, as a multiple of its packed weights (docs/design.md, "Truth and plan")."""

Progress = Callable[[str, int], None]
"""Called with a phase's name ("noise", "denoise", "decode", "lm_head") and its number within the phase, when it is done."""


@dataclass(frozen=True)
class SamplerOutput:
    """What a call gives; fresh tensors that no later call overwrites.

    Attributes:
        tokens: [B, T] int64.
        latents: [B, T, d_z] float32 (float64 for a float64 plan), the final z0, standardised.
        logprobs: [B, T] float32, the log-softmax of the logits at each token, or None.
    """

    tokens: Tensor
    latents: Tensor
    logprobs: Tensor | None


@dataclass(frozen=True)
class _Inputs:
    """What a call may change, as tensors on the device, so that a captured graph reads them anew."""

    seed: Tensor
    first_sample: Tensor
    temperature: Tensor
    guidance_scale: Tensor | None
    noise: Tensor
    noise_given: Tensor
    context: Tensor | None
    context_mask: Tensor | None
    context_given: Tensor | None


class FusedSampler:
    """Generates token sequences with a packed model.

    Args:
        model: an LDLM, whose weights stay as they are, or a source of its parts (sources.py).
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
        self.numerics = Numerics.of(dtype, self.device)
        self._times, self._table = times[:-1], self.numerics.table(table)
        self._reads_previous, self._draws_noise = ((table[:, column] != 0).any().item() for column in (2, 3))
        self._lock, self._graph = threading.Lock(), None
        self.refresh()

    @classmethod
    def from_pretrained(cls, model_id: str | Path, *, revision: str | None = None, token: str | None = None, **options):
        """A sampler of a checkpoint folder, hub id or bundled model, packed part by part: never beside the whole model.

        `options` are the constructor's; raises what `LDLM.from_pretrained` and the constructor raise.
        """
        return cls(StoredModel(model_id, revision=revision, token=token), **options)

    def refresh(self) -> None:
        """Packs the weights again, and captures the loop again, after the model's weights changed."""
        with self._lock, self._on_device(), torch.no_grad():
            if self._graph is not None:
                # A replay on another stream may still read what is let go here.
                self._done.synchronize()
            self.plan = self._graph = None
            rows = self.batch_size * self.seq_len * (2 if self.guidance else 1)
            _check_memory(self.config, self.numerics, rows)
            changed = self.source.watch()
            plan = Plan(
                self.config,
                self.source,
                self._times,
                self.seq_len,
                self.batch_size,
                self.context_len,
                self.guidance,
                self.numerics,
                self.batch_invariant,
                self.backend,
            )
            self._inputs = self._empty_inputs()
            self.plan, self._changed = plan, changed
            if self.device.type == "cuda":
                self._capture()

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
        if self.plan is None:
            raise RuntimeError("the last refresh() failed; call refresh() again")
        changed = self._changed()
        if changed:
            raise RuntimeError(f"the model's weights changed after they were packed (first: {changed}); call refresh()")
        numbers = checked_call(self.batch_size, seed, first_sample, temperature, guidance_scale)
        seed, first_sample, temperature, guidance_scale = numbers
        if guidance_scale != 1.0 and not self.guidance:
            raise ValueError("guidance_scale needs a sampler made with guidance=True")
        self._check_tensors(noise, context, context_mask)
        with self._lock, self._on_device(), torch.no_grad():
            self._fill(seed, first_sample, noise, context, context_mask, temperature, guidance_scale)
            if self._graph is None:
                return _exhaust(self._run(self._inputs), progress)
            return self._replay()

    # The loop

    def _run(self, inputs: _Inputs) -> Iterator[tuple[str, int]]:
        """From first noise to tokens; yields each phase's name and number when it has been issued, returns the output."""
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
            context = self.plan.context(inputs.context, inputs.context_mask, inputs.context_given, self.guidance)
        yield "noise", 0
        for step in range(self.num_steps):
            denoise_update(
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
                self.plan.out_scale,
                self.plan.out_shift,
                x.statistics,
                noise=self._draws_noise,
                backend=self.backend,
            )
            yield "denoise", step
        # The latents as the last update has rounded them.
        hidden = self.plan.decode(x.x[: self.batch_size, :, : self.config.latent_dim])
        yield "decode", 0
        tokens, logprobs = self.plan.tokens(hidden, inputs.temperature, inputs.seed, inputs.first_sample, self.logprobs)
        yield "lm_head", 0
        return SamplerOutput(tokens, latents, logprobs)

    def _capture(self) -> None:
        """Records the loop as one CUDA graph, after a run that compiles what is compiled at first use."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            _exhaust(self._run(self._inputs))
        side.synchronize()
        graph, self._done = torch.cuda.CUDAGraph(), torch.cuda.Event()
        # Without a stream of its own PyTorch captures on one of the first card that it captured on.
        with torch.cuda.graph(graph, stream=side):
            self._captured = _exhaust(self._run(self._inputs))
        self._graph = graph

    def _replay(self) -> SamplerOutput:
        self._graph.replay()
        out = self._captured
        fresh = SamplerOutput(out.tokens.clone(), out.latents.clone(), None if out.logprobs is None else out.logprobs.clone())
        # The next call, on whatever stream, writes the inputs after this one has read them.
        self._done.record()
        return fresh

    # Inputs

    def _empty_inputs(self) -> _Inputs:
        device, b, p = self.device, self.batch_size, self.context_len
        scalar = torch.zeros((), dtype=torch.int64, device=device)
        with_context = p > 0
        return _Inputs(
            seed=scalar,
            first_sample=scalar.clone(),
            temperature=torch.zeros((), device=device),
            guidance_scale=torch.ones((), device=device) if self.guidance else None,
            noise=torch.zeros(b, self.seq_len, self.config.latent_dim, dtype=self.numerics.tables, device=device),
            noise_given=torch.zeros((), dtype=torch.bool, device=device),
            context=torch.zeros(b, p, self.config.hidden_dim, dtype=self.numerics.activations, device=device)
            if with_context
            else None,
            context_mask=torch.zeros(b, p, dtype=torch.bool, device=device) if with_context else None,
            context_given=torch.zeros((), dtype=torch.bool, device=device) if with_context else None,
        )

    def _fill(self, seed, first_sample, noise, context, context_mask, temperature, guidance_scale) -> None:
        inputs = self._inputs
        if self._graph is not None:
            self._done.wait()
        inputs.seed.fill_((seed + 2**63) % 2**64 - 2**63)
        inputs.first_sample.fill_(first_sample)
        inputs.temperature.fill_(temperature)
        if inputs.guidance_scale is not None:
            inputs.guidance_scale.fill_(guidance_scale)
        inputs.noise_given.fill_(noise is not None)
        if noise is not None:
            inputs.noise.copy_(noise)
        if self.context_len:
            inputs.context_given.fill_(context is not None)
        if context is not None:
            length = context.shape[1]
            inputs.context[:, :length].copy_(context)
            inputs.context[:, length:].zero_()
            inputs.context_mask[:, length:].fill_(False)
            inputs.context_mask[:, :length].copy_(torch.ones_like(context[..., 0]) if context_mask is None else context_mask)

    def _check_tensors(self, noise: Tensor | None, context: Tensor | None, context_mask: Tensor | None) -> None:
        if context is not None and not self.context_len:
            raise ValueError("a context needs a sampler made with context_len of at least the prompt's length")
        if context_mask is not None and context is None:
            raise ValueError("a context_mask needs a context")
        batch, width = self.batch_size, self.config.hidden_dim
        if context is not None and not (context.ndim == 3 and 1 <= context.shape[1] <= self.context_len):
            raise ValueError(f"context has shape {list(context.shape)}; it must be [{batch}, 1 to {self.context_len}, {width}]")
        length = 0 if context is None else context.shape[1]
        for name, tensor, shape, floating in (
            ("noise", noise, (batch, self.seq_len, self.config.latent_dim), True),
            ("context", context, (batch, length, width), True),
            ("context_mask", context_mask, (batch, length), False),
        ):
            if tensor is None:
                continue
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {list(shape)}")
            if tensor.device != self.device:
                raise ValueError(f"{name} is on {tensor.device}; this sampler runs on {self.device}")
            if tensor.is_floating_point() != floating or not (floating or tensor.dtype == torch.bool):
                raise ValueError(
                    f"{name} is {tensor.dtype}; it must be {'a floating-point dtype' if floating else 'torch.bool'}"
                )

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


def _check_memory(config: LDLMConfig, numerics: Numerics, rows: int) -> None:
    with torch.device("meta"):
        count = sum(p.numel() for name in PACKED_MODULES for p in build_module(name, config).parameters())
    # Of a row of the batch, the noise, latents and prediction, and the widest layer's input, inside and output.
    latents, layer = 3 * config.latent_dim * numerics.tables.itemsize, 6 * config.dim * numerics.activations.itemsize
    needed = int(count * numerics.weights.itemsize * PLAN_OVERHEAD) + rows * (latents + layer)
    free = free_memory(numerics.device)
    if needed > free:
        raise MemoryError(f"the plan needs about {needed / 1e9:.1f} GB on {numerics.device} and {free / 1e9:.1f} GB are free")
