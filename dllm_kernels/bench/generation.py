"""One case of a generation: every contender built, checked against float64, timed in turns, and written as rows."""

import copy
import dataclasses
import gc
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from dllm_kernels.bench.machine import MemoryMeter, launches
from dllm_kernels.bench.peers import OURS, PEERS, Case, Output, Peer, Sampled, Weights, baseline
from dllm_kernels.bench.results import Row
from dllm_kernels.bench.roofline import Card, floor, work
from dllm_kernels.bench.timing import MAX_DRIFT, Effort, Measured, clock_drift, in_turns, stopwatch
from dllm_kernels.inference.profile import phase_times
from dllm_kernels.inference.weights import PACKED_MODULES
from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.model.ldlm import build_module
from dllm_kernels.utils.device import free_memory
from dllm_kernels.utils.machine import Machine

OUR_NAMES = (OURS, "ours")
"""Our names among the contenders of a generation and of an op."""

Witness = Callable[[Callable[[], object]], object]
"""Times our call once more, in its own way: pytest-benchmark's fixture."""


@dataclass(frozen=True)
class Bench:
    """What a measurement runs on.

    Attributes:
        machine: the device, its clocks and its energy.
        card: bandwidth and rates that the device reaches, measured before.
        effort: how long a case is measured.
        details: whether phases, launches and energy are taken too.
    """

    machine: Machine
    card: Card
    effort: Effort
    details: bool = True

    @property
    def device(self) -> torch.device:
        """The device."""
        return self.machine.device


@dataclass
class _Contender:
    """A contender that is built and checked, and its row."""

    row: Row
    peer: Peer
    call: Callable[[], Output]


@torch.no_grad()
def measure(
    case: Case,
    names: Iterable[str],
    weights: Weights,
    bench: Bench,
    witness: Witness | None = None,
) -> list[Row]:
    """Builds, checks and times contenders of a generation.

    Those whose weights fit in memory together take turns. One whose copy does not fit beside them is timed after they are
    freed, from the same weights widened in place and narrowed again.

    Args:
        case: what is generated.
        names: of PEERS; ratios need the baseline among them.
        weights: the model that all share.
        bench: the machine, and how long to measure.
        witness: called with our call after it was timed.

    Returns:
        A row of each contender, in the order of `names`.

    Raises:
        Exception: whatever building or running the sampler raised; of another contender it becomes the row's reason.
    """
    rows = [Row(case.fields(), name, reason=PEERS[name].unsupported_reason(bench.device)) for name in names]
    able = [(PEERS[row.contender], row) for row in rows if row.reason is None]
    if not all(peer.own_loop for peer, _ in able):
        # Computed before anything else is in memory, and kept.
        weights.exact(case)
    alone = _time_together(able, case, weights, bench, witness)
    _free()
    for peer, row in alone:
        _time_alone(peer, row, rows, case, weights, bench)
    return rows


def _time_together(able, case, weights, bench, witness) -> list[tuple[Peer, Row]]:
    """Builds, checks and times contenders in turns. Returns those whose copies do not fit beside the others."""
    contenders, alone, rows = [], [], [row for _, row in able]
    # Contenders of one dtype share its copy of the weights.
    models = {weights.model.lm_head.weight.dtype: weights.model}
    for peer, row in able:
        if peer.dtype not in models:
            if _copy_bytes(peer, weights) > free_memory(bench.device):
                alone.append((peer, row))
                continue
            models[peer.dtype] = copy.deepcopy(weights.model).to(peer.dtype)
        if built := _build(row, peer, models[peer.dtype], weights, case, bench):
            contenders.append(built)
    contenders = [one for one in contenders if _keeps_contract(one.row, rows, bench.device)]
    _time(contenders, weights.model.config, case, bench, compare=True)
    ours = next((one for one in contenders if one.peer.name == OURS), None)
    if ours is not None and witness is not None:
        witness(lambda: (ours.call(), _wait(bench.device)))
    return alone


def _time_alone(peer, row, rows, case, weights, bench) -> None:
    clocks = [other.sm_mhz for other in rows if other.sm_mhz]
    against = next((other for other in rows if other.contender == baseline(bench.device)), None)
    weights.model.to(peer.dtype)
    if built := _build(row, peer, weights.model, weights, case, bench):
        _time([built], weights.model.config, case, bench, compare=False)
        if row.sm_mhz and clock_drift([row.sm_mhz, *clocks]) > MAX_DRIFT:
            row.unstable = "timed apart from the others, at another clock"
        if against is not None and against.ms and not (row.unstable or against.unstable):
            row.ratio = against.ms / row.ms
        del built
    # bfloat16 that is widened and narrowed again has the same bits.
    weights.model.to(torch.bfloat16)
    _free()


def _copy_bytes(peer: Peer, weights: Weights) -> int:
    """Bytes of a copy of the weights for a contender, with the copy in bfloat16 that it is made of."""
    count = sum(p.numel() for p in weights.model.parameters())
    return int(1.2 * count * (2 + peer.dtype.itemsize))


def _build(row: Row, peer: Peer, model, weights: Weights, case: Case, bench: Bench) -> _Contender | None:
    """Builds and checks a contender. On a failure it gives None, and the row has the reason."""
    meter, begin = MemoryMeter(bench.device), time.perf_counter()
    try:
        call = peer.build(model, weights, case)
        _wait(bench.device)
        row.build_s = time.perf_counter() - begin
        begin = time.perf_counter()
        out = call()
        _wait(bench.device)
        row.first_s = time.perf_counter() - begin
    except Exception as error:
        # A peer that fails is a result; a sampler that fails is a bug.
        if peer.name == OURS:
            raise
        row.reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return None
    held, shared = meter.peak(), 0 if isinstance(call, Sampled) else _bytes(model)
    row.peak_memory_bytes = None if held is None else max(held, 0) + shared
    row.reason = _check(row, peer, out, weights, case)
    return None if row.reason else _Contender(row, peer, call)


def _check(row: Row, peer: Peer, out: Output, weights: Weights, case: Case) -> str | None:
    """Fills in error and agreement of the first sample. Returns why the speed does not count, or None."""
    exact = weights.exact_published(case, peer.dtype) if peer.own_loop else weights.exact(case)
    row.token_agreement = (out.tokens[0] == exact.tokens).double().mean().item()
    if out.latents is None:
        # The loop gives no latents. Random tokens would agree once in a vocabulary.
        return None if row.token_agreement >= 0.5 else f"only {row.token_agreement:.0%} of its tokens are those of float64"
    difference = (out.latents[0].double() - exact.latents).abs().max() / exact.latents.abs().max()
    return judged(row, difference.item(), peer.tolerance)


def judged(row: Row, error: float, tolerance: float) -> str | None:
    """Fills in an error relative to the largest value. Returns why the speed does not count, or None."""
    # JSON has no NaN.
    row.max_error = error if math.isfinite(error) else None
    return None if error <= tolerance else f"its error against float64 is {error:.2g} of the largest value"


def _keeps_contract(row: Row, rows: list[Row], device: torch.device) -> bool:
    """Whether our error is at most twice the baseline's plus a unit in the last place (docs/design.md, "Numerics and tests").

    If it is more, the row has the reason.
    """
    allowed = next((other.max_error for other in rows if other.contender == baseline(device) and other.reason is None), None)
    if row.contender != OURS or allowed is None or row.max_error <= 2 * allowed + torch.finfo(torch.bfloat16).eps:
        return True
    row.reason = f"its error against float64, {row.max_error:.2g}, is more than twice the baseline's {allowed:.2g}"
    return False


def _time(contenders: list[_Contender], config: LDLMConfig, case: Case, bench: Bench, compare: bool) -> None:
    if not contenders:
        return
    calls = {one.peer.name: one.call for one in contenders}
    measured = in_turns(calls, stopwatch(bench.device), bench.machine.sample, bench.effort)
    against = measured.timings.get(baseline(bench.device)) if compare else None
    for one in contenders:
        fill_times(one.row, measured, one.peer.name, None if against is None else against.ms)
        _fill_rates(one, config, case, bench)
        if bench.details:
            one.row.launches = launches(one.call, bench.device)
            joules, one.row.watts = bench.machine.energy(one.call)
            one.row.joules_per_token = None if joules is None else joules / (case.batch * case.seq_len)
            if isinstance(one.call, Sampled) and not case.prompt:
                _, phases = phase_times(one.call.sampler)
                one.row.phases_ms = {name: 1000 * seconds for name, seconds in phases.items()}


def fill_times(row: Row, measured: Measured, name: str, against_ms: float | None) -> None:
    """Fills in times, clock and, where the measurement is steady and `against_ms` is there, the ratio to it."""
    timing = measured.timings[name]
    row.ms, row.p20_ms, row.p80_ms, row.rounds = timing.ms, timing.p20_ms, timing.p80_ms, timing.rounds
    row.sm_mhz, row.unstable = timing.sm_mhz, measured.unstable
    if against_ms is not None and measured.unstable is None:
        row.ratio = against_ms / timing.ms


def _fill_rates(one: _Contender, config: LDLMConfig, case: Case, bench: Bench) -> None:
    row = one.row
    seconds = row.ms / 1000
    row.tokens_per_s = case.batch * case.seq_len / seconds
    if case.prompt:
        # The roofline knows no prompt.
        return
    # The model may have more latents than the case generates.
    config = dataclasses.replace(config, seq_len=case.seq_len)
    with torch.device("meta"):
        parts = {name: build_module(name, config) for name in PACKED_MODULES}
    folded = work(config, parts, case.steps, case.batch)
    done = folded if isinstance(one.call, Sampled) else work(config, parts, case.steps, case.batch, folded=False)
    row.gb_per_s = sum(part.weights for part in done) * one.peer.weight_bytes / seconds / 1e9
    row.tflops = sum(part.operations for part in done) / seconds / 1e12
    row.streaming_share = row.gb_per_s * 1e9 / bench.card.bandwidth
    # One floor for all: the least time in bfloat16, whatever the contender computes in.
    row.floor_ms = 1000 * floor(folded, bench.card, torch.bfloat16).seconds
    row.floor_share = row.floor_ms / row.ms


def _bytes(model) -> int:
    return sum(t.numel() * t.element_size() for name in PACKED_MODULES for t in getattr(model, name).parameters())


def _free() -> None:
    # Compiled loops hold their models. Where nothing was compiled, the compiler is not imported.
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def failed(rows: Iterable[Row]) -> list[str]:
    """A line for each of our own rows that failed its check; failures of peers are not counted."""
    return [f"{row.case}: {row.reason}" for row in rows if row.contender in OUR_NAMES and row.reason]
