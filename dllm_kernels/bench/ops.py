"""Each op at a preset's shapes beside PyTorch's, on the same weights and inputs.

The layers are those of a plan, so that an op runs as in a generation, with LayerNorm, bias, GELU and residual around its GEMM.
PyTorch's counterpart is a sequence of calls for the same formula. Calls go round many sets of weights and inputs, so that
caches are cold; on a card one round is one CUDA graph.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels.bench.generation import Bench, Witness, fill_times, judged
from dllm_kernels.bench.machine import launches
from dllm_kernels.bench.peers import Weights, captured
from dllm_kernels.bench.results import Row
from dllm_kernels.bench.timing import in_turns, stopwatch
from dllm_kernels.inference.fold import FoldedLinear
from dllm_kernels.inference.plan import Plan
from dllm_kernels.inference.sampler import FusedSampler
from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.model.layers import sdpa
from dllm_kernels.model.ldlm import LDLM
from dllm_kernels.ops.attention.op import attention
from dllm_kernels.ops.denoise_update.op import DenoiseUpdate, denoise_update
from dllm_kernels.ops.linear.params import Activations
from dllm_kernels.ops.linear.reference import row_statistics
from dllm_kernels.ops.modulate.op import modulate

OURS, LIBRARY = "ours", "library"
_CACHES, _MAX_LAYERS, _MIN_LAUNCHES = 3.1, 64, 16
_TOLERANCE = 0.05
Compute = Callable[[int], Tensor]
"""Computes on the set of weights and inputs with that number, and gives the result."""


@dataclass(frozen=True)
class Op:
    """An op at one shape.

    Attributes:
        name, shape: as results have them.
        ours, library: compute it, here and in PyTorch.
        exact: the result of set 0 in float64.
        count: how many sets of weights and inputs there are.
        moved: bytes of weights and activations that one call must move.
        operations: floating-point operations of one call.
    """

    name: str
    shape: dict[str, int]
    ours: Compute
    library: Compute
    exact: Callable[[], Tensor]
    count: int
    moved: int
    operations: int

    def case(self, preset: str) -> dict[str, Any]:
        """The op as a row of a result has it."""
        return {"preset": preset, "op": self.name, **self.shape}


def make_weights(config: LDLMConfig, device: torch.device, cache_bytes: int) -> Weights:
    """Random weights of `config`'s widths, with so many denoiser layers that one linear layer of each fills three caches.

    A CPU has four layers at most, a card as many as a third of its free memory takes.

    Args:
        config: of the preset.
        device: where ops run.
        cache_bytes: the last-level cache's.

    Raises:
        MemoryError: memory is too small.
    """
    smallest = 2 * config.dim**2
    most = _MAX_LAYERS if device.type == "cuda" else 4
    if device.type == "cuda":
        # The model and its plan are in memory together; a layer has 12 d^2 weights.
        free = torch.cuda.mem_get_info(device)[0] // 3
        most = max(4, min(most, free // (2 * 12 * 2 * config.dim**2)))
    layers = max(4, min(most, -(-int(_CACHES * cache_bytes) // smallest)))
    small = {"denoiser_layers": layers, "perceiver_layers": 1, "token_decoder_layers": 1}
    # adaLN's factors differ by step, so its layers are measured without them.
    small |= {"ada_ln": False, "context": False, "self_conditioning": False, "latent_dim": config.dim}
    return Weights.of(dataclasses.replace(config, **small), device)


def ops(weights: Weights, rows: int = 64) -> Iterator[Op]:
    """Every op of a generation of `rows` tokens at the model's shapes, with a batch of 1."""
    model, device, config = weights.model, weights.device, weights.model.config
    rows = min(rows, config.seq_len)
    plan = FusedSampler(model, 1, 1, rows, dtype=torch.bfloat16, device=device).plan
    inputs = _Inputs(device, plan.options.numerics.activations)
    yield from _linears(plan, model, inputs, rows)
    yield from _attentions(config, inputs, rows)
    yield _modulate(config, inputs, rows)
    yield _denoise_update(config, inputs, rows)
    yield _lm_head(plan, model, inputs, rows)


@dataclass(frozen=True)
class _Inputs:
    """Random inputs, as a plan's activations and in bfloat16 for PyTorch."""

    device: torch.device
    activations: torch.dtype

    def pair(self, *shape: int) -> tuple[Tensor, Tensor]:
        """The same values in both dtypes."""
        half = (torch.randn(shape, device=self.device) + 0.1).bfloat16()
        return half.to(self.activations), half


def _linears(plan: Plan, model: LDLM, inputs: _Inputs, rows: int) -> Iterator[Op]:
    blocks, layers, d = list(model.denoiser.blocks), plan.packed.denoiser.layers, model.config.dim
    count = len(blocks)
    for name, pick, module, norm, n, k in (
        ("linear qkv", lambda l: l.qkv, lambda b: b.self_attention.qkv, lambda b: b.self_norm, 3 * d, d),
        ("linear out", lambda l: l.out, lambda b: b.self_attention.out, None, d, d),
        ("linear up, GELU", lambda l: l.up, lambda b: b.mlp.up, lambda b: b.mlp_norm, 4 * d, d),
        ("linear down", lambda l: l.down, lambda b: b.mlp.down, None, d, 4 * d),
    ):
        wide, half = zip(*(inputs.pair(1, rows, k) for _ in range(count)), strict=True)
        gelu, residual = name.endswith("GELU"), norm is None
        added = inputs.pair(1, rows, n)

        given = [_input_of(pick(layer), x) for layer, x in zip(layers, wide, strict=True)]

        def ours(i: int, pick=pick, given=given, gelu=gelu, residual=residual, added=added) -> Tensor:
            return plan.linear(given[i], pick(layers[i]).at(0), gelu=gelu, residual=added[0] if residual else None).x

        def library(i: int, half=half, module=module, norm=norm, gelu=gelu, residual=residual, added=added) -> Tensor:
            return _formula(half[i], module(blocks[i]), norm and norm(blocks[i]), gelu, added[1] if residual else None)

        def exact(half=half, module=module, norm=norm, gelu=gelu, residual=residual, added=added) -> Tensor:
            layer, before = _double(module(blocks[0])), norm and _double(norm(blocks[0]))
            return _formula(half[0].double(), layer, before, gelu, added[1].double() if residual else None)

        shape = {"rows": rows, "outputs": n, "width": k}
        moved = 2 * (n * k + rows * (k + (2 if residual else 1) * n))
        yield Op(name, shape, ours, library, exact, count, moved, 2 * rows * n * k)


def _input_of(layer: FoldedLinear, x: Tensor) -> Activations:
    """x [B, T, K] as `layer` gets it in a plan: with row statistics where it reads them."""
    reads = layer.packed and layer.column_sums is not None
    return Activations(x, stats=row_statistics(x), stats_chunk=x.shape[-1]) if reads else Activations(x)


def _formula(x: Tensor, layer, norm, gelu: bool, residual: Tensor | None) -> Tensor:
    y = layer(x if norm is None else norm(x))
    y = F.gelu(y) if gelu else y
    return y if residual is None else y + residual


def _double(module: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(module).double()


def _attentions(config: LDLMConfig, inputs: _Inputs, rows: int) -> Iterator[Op]:
    for name, width, heads, causal in (
        ("attention", config.dim, config.num_heads, False),
        ("attention, token decoder", config.hidden_dim, config.token_decoder_heads, config.causal),
    ):
        sets = [[inputs.pair(1, rows, heads, width // heads) for _ in range(3)] for _ in range(_MIN_LAUNCHES)]

        def ours(i: int, sets=sets, causal=causal) -> Tensor:
            q, k, v = (wide for wide, _ in sets[i])
            return attention(q, k, v, causal=causal)

        def library(i: int, sets=sets, causal=causal) -> Tensor:
            q, k, v = (half for _, half in sets[i])
            return sdpa(q, k, v, None, causal)

        def exact(sets=sets, causal=causal) -> Tensor:
            q, k, v = (half.double() for _, half in sets[0])
            return sdpa(q, k, v, None, causal)

        shape = {"rows": rows, "heads": heads, "head_dim": width // heads, "causal": int(causal)}
        yield Op(name, shape, ours, library, exact, len(sets), 2 * 4 * rows * width, 4 * rows * rows * width)


def _modulate(config: LDLMConfig, inputs: _Inputs, rows: int) -> Op:
    d = config.dim
    sets = [inputs.pair(1, rows, d) for _ in range(_MIN_LAUNCHES)]
    return Op(
        "LayerNorm",
        {"rows": rows, "width": d},
        lambda i: modulate(sets[i][0]),
        lambda i: F.layer_norm(sets[i][1], (d,)),
        lambda: F.layer_norm(sets[0][1].double(), (d,)),
        len(sets),
        2 * 2 * rows * d,
        8 * rows * d,
    )


def _denoise_update(config: LDLMConfig, inputs: _Inputs, rows: int) -> Op:
    """DDIM's update without noise, which writes the next input, beside PyTorch's arithmetic."""
    d, device = config.latent_dim, inputs.device
    table = torch.tensor([[0.75, 0.25, 0.0, 0.0]], device=device)
    scalar = torch.zeros((), dtype=torch.int64, device=device)
    first = [torch.randn(1, rows, d, device=device) for _ in range(_MIN_LAUNCHES)]
    latents = [z.clone() for z in first]
    predictions = [inputs.pair(1, rows, d) for _ in first]
    shift = torch.randn(d, device=device)
    next_inputs = [torch.empty_like(wide) for wide, _ in predictions]

    def ours(i: int) -> Tensor:
        denoise_update(DenoiseUpdate(latents[i], predictions[i][0], None, next_inputs[i], table, 0, scalar, scalar, shift))
        return next_inputs[i]

    def library(i: int) -> Tensor:
        z = 0.75 * first[i] + 0.25 * predictions[i][1]
        return (z + shift).bfloat16()

    def exact() -> Tensor:
        return 0.75 * first[0].double() + 0.25 * predictions[0][1].double() + shift.double()

    # Latents are read and written in float32, the prediction read and the input written in bfloat16.
    return Op(
        "denoise_update",
        {"rows": rows, "width": d},
        ours,
        library,
        exact,
        len(first),
        rows * d * (2 * 4 + 2 * 2),
        4 * rows * d,
    )


def _lm_head(plan: Plan, model: LDLM, inputs: _Inputs, rows: int) -> Op:
    d, vocabulary, device = model.config.hidden_dim, model.config.vocab_size, inputs.device
    scalars = (torch.zeros((), device=device), *(torch.zeros((), dtype=torch.int64, device=device) for _ in range(2)))
    sets = [inputs.pair(1, rows, d) for _ in range(2)]
    weight, bias = model.lm_head.weight, model.lm_head.bias

    def ours(i: int) -> Tensor:
        return plan.tokens(sets[i][0], *scalars, False)[0]

    def library(i: int) -> Tensor:
        return F.linear(sets[i][1], weight, bias).argmax(-1)

    def exact() -> Tensor:
        parts = zip(weight.split(16_384), bias.split(16_384), strict=True)
        return torch.cat([F.linear(sets[0][1].double(), w.double(), b.double()) for w, b in parts], dim=-1)

    shape = {"rows": rows, "outputs": vocabulary, "width": d}
    return Op("lm_head, argmax", shape, ours, library, exact, 2, 2 * vocabulary * d, 2 * rows * vocabulary * d)


@torch.no_grad()
def measure_op(op: Op, preset: str, bench: Bench, witness: Witness | None = None) -> list[Row]:
    """Checks and times an op. Returns a row of ours and one of PyTorch's; a failed check gives a reason and no speed."""
    case = op.case(preset)
    rows, calls, repeats = {}, {}, max(1, -(-_MIN_LAUNCHES // op.count)) if bench.device.type == "cuda" else 1
    exact = op.exact()
    for name, compute in ((OURS, op.ours), (LIBRARY, op.library)):
        row = rows[name] = Row(case, name)
        row.reason = check(row, compute(0), exact)
        if row.reason is None:
            calls[name] = _rotation(compute, op.count, repeats, bench.device)
    if not calls:
        return list(rows.values())
    measured = in_turns(calls, stopwatch(bench.device), bench.machine.sample, bench.effort)
    against = measured.timings.get(LIBRARY)
    for name, call in calls.items():
        row, each = rows[name], op.count * repeats
        fill_times(row, measured, name, None if against is None else against.ms)
        row.ms, row.p20_ms, row.p80_ms = (value / each for value in (row.ms, row.p20_ms, row.p80_ms))
        row.gb_per_s, row.tflops = op.moved / row.ms / 1e6, op.operations / row.ms / 1e9
        row.streaming_share = row.gb_per_s * 1e9 / bench.card.bandwidth
        row.floor_ms = 1000 * max(
            op.moved / bench.card.bandwidth, op.operations / bench.card.rates.get(torch.bfloat16, float("inf"))
        )
        row.floor_share = row.floor_ms / row.ms
        if bench.details:
            seen = launches(call, bench.device)
            row.launches = None if seen is None else round(seen / each)
            _, row.watts = bench.machine.energy(call)
    if witness is not None and OURS in calls:
        witness(calls[OURS])
    return list(rows.values())


def check(row: Row, found: Tensor, exact: Tensor) -> str | None:
    """Fills in the error against float64. Returns why the speed does not count, or None.

    Args:
        row: to be filled in.
        found: the result, or tokens [B, T] int64, which are judged by their logits in `exact`.
        exact: the result in float64, or logits [B, T, V].
    """
    if found.dtype == torch.int64:
        best, chosen = exact.max(-1).values, exact.gather(-1, found.unsqueeze(-1)).squeeze(-1)
        row.token_agreement = (exact.argmax(-1) == found).double().mean().item()
        error = (best - chosen).max() / exact.abs().max()
    else:
        error = (found.double() - exact).abs().max() / exact.abs().max()
    return judged(row, error.item(), _TOLERANCE)


def _rotation(compute: Compute, count: int, repeats: int, device: torch.device) -> Callable[[], Any]:
    def run() -> None:
        for _ in range(repeats):
            for i in range(count):
                compute(i)

    return captured(run, device) if device.type == "cuda" else run
