"""Timing contenders in turns: warm-up until it settles, interleaved rounds, p20, median and p80, and whether to trust them.

A card is timed by its own events, a CPU by the host's clock. Around every call the machine is sampled; a measurement during
which the card throttled, was shared, or drifted between contenders is taken again, up to three times, and then is unstable:
it keeps its times and gives no ratio.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from dllm_kernels.utils.machine import Sample

ATTEMPTS = 3
MAX_DRIFT = 0.05
"""Between the contenders' median clocks, as a share of the slowest."""
_SETTLED, _WARM_ROUNDS = 0.03, 20
Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one contender over its rounds, and its median SM clock."""

    ms: float
    p20_ms: float
    p80_ms: float
    rounds: int
    sm_mhz: float | None


@dataclass(frozen=True)
class Measured:
    """Each contender's timing in the last attempt, and why they cannot be compared, or None."""

    timings: dict[str, Timing]
    unstable: str | None


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: calls of each contender, fewer where `budget_s` is spent, but at least `least`.
        warm_s: seconds of warm-up at most; 0 where the first call is warm-up enough.
        budget_s: seconds of one attempt.
        limit_s: seconds after which no further attempt begins.
        most_spread: (p80 - p20) / median above which a contender is unstable; None for no limit.
    """

    rounds: int = 15
    least: int = 3
    warm_s: float = 1.0
    budget_s: float = 20.0
    limit_s: float = 60.0
    most_spread: float | None = None


def spread(values: list[float]) -> tuple[float, float, float]:
    """(p20, median, p80); of one value, that value thrice."""
    if len(values) == 1:
        return (values[0],) * 3
    p20, *_, p80 = statistics.quantiles(values, n=5, method="inclusive")
    return p20, statistics.median(values), p80


def stopwatch(device: torch.device) -> Callable[[Call], float]:
    """What times one call, in seconds: by events on a card, which see the device and not the host, and a wait on both sides
    so that no launch overlaps with the next call's; by the host's clock on a CPU."""
    if device.type != "cuda":

        def on_host(call: Call) -> float:
            begin = time.perf_counter()
            call()
            return time.perf_counter() - begin

        return on_host

    def on_card(call: Call) -> float:
        with torch.cuda.device(device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            call()
            end.record()
            end.synchronize()
        return begin.elapsed_time(end) / 1000

    return on_card


def in_turns(
    calls: Mapping[str, Call],
    timed: Callable[[Call], float],
    sample: Callable[[], Sample],
    effort: Effort | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Measured:
    """Measures `calls`, one of each in every round.

    Args:
        calls: the contenders by name.
        timed: seconds of a call, as `stopwatch` gives it.
        sample: the state of the machine, asked for after every call.
        effort: how long.
        clock: seconds of the wall, for the effort's limits.
    """
    effort = effort or Effort()
    begin = clock()
    for _ in range(ATTEMPTS):
        start = clock()
        _warm_up(calls, timed, effort, clock)
        times, samples = _rounds(calls, timed, sample, effort, clock)
        unstable = trouble(times, samples, effort.most_spread)
        now = clock()
        if unstable is None or now - begin + (now - start) > effort.limit_s:
            break
    timings = {}
    for name, seconds in times.items():
        p20, median, p80 = (1000 * value for value in spread(seconds))
        timings[name] = Timing(median, p20, p80, len(seconds), _clock_of(samples[name]))
    return Measured(timings, unstable)


def _warm_up(calls, timed, effort, clock) -> None:
    """Whole rounds until no contender's time moves by more than 3%."""
    start, before = clock(), None
    for _ in range(_WARM_ROUNDS):
        if clock() - start >= effort.warm_s:
            return
        now = [timed(call) for call in calls.values()]
        if before and all(abs(a - b) <= _SETTLED * b for a, b in zip(now, before, strict=True)):
            return
        before = now


def _rounds(calls, timed, sample, effort, clock) -> tuple[dict[str, list[float]], dict[str, list[Sample]]]:
    times, samples = {name: [] for name in calls}, {name: [] for name in calls}
    # What the machine did before is not these rounds' trouble.
    sample()
    start = clock()
    # A collection of Python's garbage would count as whoever's turn it falls into.
    gc.collect()
    gc.disable()
    try:
        for number in range(effort.rounds):
            if number >= effort.least and clock() - start > effort.budget_s:
                break
            for name, call in calls.items():
                times[name].append(timed(call))
                samples[name].append(sample())
    finally:
        gc.enable()
    return times, samples


def trouble(
    times: Mapping[str, list[float]], samples: Mapping[str, list[Sample]], most_spread: float | None = None
) -> str | None:
    """Why contenders that were timed in one go cannot be compared, or None."""
    for name, seen in samples.items():
        found = next((one.trouble for one in seen if one.trouble), None)
        if found:
            return f"{found} during {name}"
    drift = clock_drift([clock for clock in map(_clock_of, samples.values()) if clock])
    if drift > MAX_DRIFT:
        return f"the SM clock differs by {drift:.0%} between contenders"
    for name, seconds in times.items():
        p20, median, p80 = spread(seconds)
        if most_spread is not None and (p80 - p20) / median > most_spread:
            return f"p20 and p80 of {name} lie {(p80 - p20) / median:.0%} of its median apart"
    return None


def clock_drift(clocks: list[float]) -> float:
    """How far the fastest clock is above the slowest, as a share of the slowest."""
    return max(clocks) / min(clocks) - 1 if clocks else 0.0


def _clock_of(samples: list[Sample]) -> float | None:
    clocks = [one.sm_mhz for one in samples if one.sm_mhz is not None]
    return statistics.median(clocks) if clocks else None
