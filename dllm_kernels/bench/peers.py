"""The contenders of a generation: the sampler, the published code's equivalent, and what a user would take instead.

All have the same weights. All but the published loop run DDIM from the same noise, as the sampler does, so the same float64
generation checks them. The published loop draws its own noise, and its tokens depend on its last draw alone.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dllm_kernels.bench.baseline import explicit_attention, published_generate, random_model
from dllm_kernels.bench.reference import Exact, ddim_steps, exact_ddim, exact_published
from dllm_kernels.inference.sampler import FusedSampler
from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.model.layers import AttentionFunction, sdpa
from dllm_kernels.model.ldlm import LDLM

OURS, OURS_TRITON = "FusedSampler", "FusedSampler, backend triton"
PUBLISHED_FP32, PUBLISHED_BF16 = "published code, eager fp32", "published code, eager bf16"
EAGER_FP32, EAGER_BF16 = "SDPA, eager fp32", "SDPA, eager bf16"
GRAPH = "SDPA bf16, CUDA graph"
COMPILED, TUNED = "torch.compile bf16, CUDA graph", "torch.compile max-autotune bf16, CUDA graph"
FP8 = "torchao fp8, torch.compile, CUDA graph"
_NOISE_SEED = 0


class Output(NamedTuple):
    """Tokens [B, T] int64; latents [B, T, d_z], or None of a loop that does not return them."""

    tokens: Tensor
    latents: Tensor | None


@dataclass(frozen=True)
class Case:
    """A generation: N steps, B samples of T tokens, a prompt of P tokens; 0 for no prompt."""

    preset: str
    steps: int = 10
    batch: int = 1
    seq_len: int = 64
    prompt: int = 0

    def fields(self) -> dict[str, Any]:
        """The case as a row of a result has it."""
        return asdict(self)


@dataclass
class Weights:
    """A model in bfloat16 with random weights, which contenders share or widen, and the noise and prompt of all of them.

    Attributes:
        model: the model, on `device`.
        device: where contenders run.
    """

    model: LDLM
    device: torch.device
    _exact: dict = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, config: LDLMConfig, device: torch.device) -> "Weights":
        """Random weights, made on the device. Raises MemoryError where memory is too small."""
        with torch.device(device):
            return cls(random_model(config, torch.bfloat16, device).requires_grad_(False), device)

    def noise(self, case: Case) -> Tensor:
        """z_T [B, T, d_z] float32; a sample's is the same in every batch."""
        one = torch.Generator().manual_seed(_NOISE_SEED)
        shape = (case.seq_len, self.model.config.latent_dim)
        return torch.stack([torch.randn(shape, generator=one) for _ in range(case.batch)]).to(self.device)

    def context(self, case: Case) -> Tensor | None:
        """A prompt's hidden states [B, P, d_h] float32, or None."""
        if not case.prompt:
            return None
        one = torch.Generator().manual_seed(_NOISE_SEED + 1)
        hidden = torch.randn(1, case.prompt, self.model.config.hidden_dim, generator=one)
        return hidden.expand(case.batch, -1, -1).contiguous().to(self.device)

    def exact(self, case: Case) -> Exact:
        """The first sample of a DDIM generation in float64."""
        key = (case.steps, case.seq_len, case.prompt)
        if key not in self._exact:
            context = self.context(case)
            context = None if context is None else context[:1]
            self._exact[key] = exact_ddim(self.model, case.steps, self.noise(case)[:1], context)
        return self._exact[key]

    def exact_published(self, case: Case, dtype: torch.dtype) -> Exact:
        """The first sample of the published loop in float64, from noise that is drawn in `dtype`."""
        generator = torch.Generator(self.device).manual_seed(_NOISE_SEED)
        shape = (case.batch, case.seq_len, self.model.config.latent_dim)
        for _ in range(case.steps + 1):
            last = torch.randn(shape, dtype=dtype, device=self.device, generator=generator)
        return exact_published(self.model, last[:1])


Build = Callable[[LDLM, Weights, Case], Callable[[], Output]]
"""Makes a contender of a model in its dtype; what it gives runs one generation."""


@dataclass(frozen=True)
class Peer:
    """A contender.

    Attributes:
        name: its name in results.
        dtype: of its copy of the weights.
        build: makes it.
        own_loop: whether it runs the published loop.
        tolerance: the largest error against float64, relative to the largest value; beyond it a speed does not count.
        card: whether it needs a CUDA card.
        quantised_bytes: bytes of a weight where it quantises weights, otherwise None.
    """

    name: str
    dtype: torch.dtype
    build: Build
    own_loop: bool = False
    tolerance: float = 0.25
    card: bool = False
    quantised_bytes: int | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes of a weight as a generation reads it."""
        return self.quantised_bytes or self.dtype.itemsize

    def unsupported_reason(self, device: torch.device) -> str | None:
        """Why it cannot run on the device, or None."""
        if self.card and device.type != "cuda":
            return "needs a CUDA card"
        if self.name == FP8 and importlib.util.find_spec("torchao") is None:
            return "torchao is not installed"
        return None


def with_attention(model: LDLM, attention: AttentionFunction) -> LDLM:
    """The model with another attention function, on the same tensors."""
    with torch.device("meta"):
        other = LDLM(model.config, attention)
    other.load_state_dict(model.state_dict(), assign=True)
    return other.requires_grad_(False).eval()


def captured(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """Captures `call` as one CUDA graph, after three runs. What it gives replays the graph and returns the captured result,
    in tensors that each replay overwrites."""
    with torch.cuda.device(device), torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        side.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            out = call()

    def replay() -> Any:
        graph.replay()
        return out

    return replay


def _published(model: LDLM, weights: Weights, case: Case) -> Callable[[], Output]:
    shared = with_attention(model, explicit_attention)
    generator = torch.Generator(weights.device)

    def run() -> Output:
        seeded = generator.manual_seed(_NOISE_SEED)
        return Output(published_generate(shared, case.steps, case.seq_len, case.batch, seeded), None)

    return run


def ddim_loop(model: LDLM, weights: Weights, case: Case) -> Callable[[], Output]:
    """DDIM through model/ with SDPA, without anything that a CUDA graph cannot hold."""
    return _loop(with_attention(model, sdpa), weights, case, model.lm_head.weight.dtype)


def _loop(model: LDLM, weights: Weights, case: Case, dtype: torch.dtype) -> Callable[[], Output]:
    noise, context = weights.noise(case).to(dtype), weights.context(case)
    context = None if context is None else context.to(dtype)
    steps = [(torch.full((case.batch,), t, device=weights.device), a, b) for t, a, b in ddim_steps(model, case.steps)]

    @torch.no_grad()
    def run() -> Output:
        z, previous = noise, None
        for t, a, b in steps:
            previous = model.denoise(z, t, previous if model.config.self_conditioning else None, context)
            z = a * z + b * previous
        return Output(model.logits(model.decode(z)).argmax(-1), z)

    return run


def _graph(model: LDLM, weights: Weights, case: Case) -> Callable[[], Output]:
    return captured(ddim_loop(model, weights, case), weights.device)


def _compiled(mode: str | None) -> Build:
    def build(model: LDLM, weights: Weights, case: Case) -> Callable[[], Output]:
        return captured(torch.compile(ddim_loop(model, weights, case), mode=mode), weights.device)

    return build


def _fp8(model: LDLM, weights: Weights, case: Case) -> Callable[[], Output]:
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, quantize_

    # Replaces the weights of these modules alone, not of those that share tensors with them. By default it would also change
    # the compiler's settings and the precision of float32 products, for every contender after it.
    shared = with_attention(model, sdpa)
    quantize_(shared, Float8DynamicActivationFloat8WeightConfig(set_inductor_config=False))
    return captured(torch.compile(_loop(shared, weights, case, BF16)), weights.device)


def _sampled(backend: str) -> Build:
    def build(model: LDLM, weights: Weights, case: Case) -> Callable[[], Output]:
        like = {"dtype": torch.bfloat16, "device": weights.device, "backend": backend}
        sampler = FusedSampler(model, case.steps, case.batch, case.seq_len, context_len=case.prompt, **like)
        given = {"noise": weights.noise(case), "context": weights.context(case)}
        if sampler.graph is None:
            return Sampled(sampler, lambda: sampler(**given))
        # The call fills the graph's inputs; what is timed, as of the other graphs, is the replay.
        sampler(**given)
        return Sampled(sampler, sampler.graph.replay)

    return build


@dataclass(frozen=True)
class Sampled:
    """A generation by a sampler, which is kept so that its phases can be timed."""

    sampler: FusedSampler
    run: Callable[[], Any]

    def __call__(self) -> Output:
        """Generates."""
        out = self.run()
        return Output(out.tokens, out.latents)


BF16, FP32 = torch.bfloat16, torch.float32
PEERS = {
    peer.name: peer
    for peer in (
        Peer(OURS, BF16, _sampled("auto")),
        Peer(OURS_TRITON, BF16, _sampled("triton"), card=True),
        Peer(PUBLISHED_FP32, FP32, _published, own_loop=True, tolerance=1e-3),
        Peer(PUBLISHED_BF16, BF16, _published, own_loop=True),
        Peer(EAGER_FP32, FP32, ddim_loop, tolerance=1e-3),
        Peer(EAGER_BF16, BF16, ddim_loop),
        Peer(GRAPH, BF16, _graph, card=True),
        Peer(COMPILED, BF16, _compiled(None), card=True),
        Peer(TUNED, BF16, _compiled("max-autotune-no-cudagraphs"), card=True),
        Peer(FP8, BF16, _fp8, tolerance=0.5, card=True, quantised_bytes=1),
    )
}


def baseline(device: torch.device) -> str:
    """The contender that ratios are against: PyTorch's whole loop in one CUDA graph, or eager PyTorch on a CPU."""
    return GRAPH if device.type == "cuda" else EAGER_BF16
