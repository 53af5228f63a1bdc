"""The harness's timing on a made-up machine: a clock that only calls move, and a card that says its state."""

import gc

import pytest
import torch

from dllm_kernels.bench.timing import Effort, Sample, clock_drift, in_turns, spread, stopwatch, trouble


class Bench:
    """Calls that take the seconds they are told, an event log, and a state that each call leaves behind."""

    def __init__(self, state=lambda bench: Sample(1500.0)):
        self.now, self.log, self.state = 0.0, [], state

    def call(self, name, seconds):
        def run():
            took = seconds if isinstance(seconds, float) else next(seconds)
            self.now += took
            self.log.append(name)

        return run

    def timed(self, call):
        begin = self.now
        call()
        return self.now - begin

    def measure(self, calls, **effort):
        effort = Effort(**({"rounds": 5, "warm_s": 0.0, "budget_s": 1e9, "limit_s": 1e9} | effort))
        named = {name: self.call(name, seconds) for name, seconds in calls.items()}
        return in_turns(named, self.timed, lambda: self.state(self), effort, lambda: self.now)


def test_a_spread_is_the_middle_and_both_fifths():
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == (2.0, 3.5, 5.0)
    assert spread([2.5]) == (2.5, 2.5, 2.5)


def test_contenders_take_turns_and_give_medians():
    bench = Bench()
    found = bench.measure({"a": iter([0.1, 0.5, 0.2, 0.4, 0.3]), "b": 1.0})
    assert bench.log == ["a", "b"] * 5 and found.unstable is None
    a = found.timings["a"]
    assert (a.ms, a.p20_ms, a.p80_ms, a.rounds, a.sm_mhz) == pytest.approx((300, 180, 420, 5, 1500))
    assert found.timings["b"].ms == pytest.approx(1000)


def test_a_planted_slow_down_of_a_tenth_is_seen():
    noise = [1.0, 1.004, 0.997, 1.002, 0.999]
    found = Bench().measure({"fast": iter(noise), "slow": iter(1.1 * n for n in noise)})
    assert found.timings["slow"].ms / found.timings["fast"].ms == pytest.approx(1.1, rel=1e-9)


def test_warm_up_ends_when_times_settle():
    bench = Bench()
    found = bench.measure({"a": iter([4.0, 2.0, 1.01, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])}, warm_s=1e9)
    assert len(bench.log) == 4 + 5 and found.timings["a"].ms == pytest.approx(1000)


def test_warm_up_ends_with_its_time():
    bench = Bench()
    bench.measure({"a": iter([8.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0])}, warm_s=10.0)
    assert len(bench.log) == 2 + 5


def test_the_budget_ends_the_rounds_but_not_before_the_least():
    assert Bench().measure({"a": 1.0}, rounds=50, budget_s=6.5, least=3).timings["a"].rounds == 7
    assert Bench().measure({"a": 1.0}, rounds=50, budget_s=0.5, least=3).timings["a"].rounds == 3


def drifting(bench):
    return Sample(1400.0 if bench.log[-1:] == ["b"] else 1500.0)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (drifting, "the SM clock differs by 7% between contenders"),
        (lambda bench: Sample(1500.0, "the card was throttled"), "the card was throttled during a"),
    ],
)
def test_what_stays_unsteady_is_measured_three_times_and_says_so(state, said):
    bench = Bench(state)
    found = bench.measure({"a": 1.0, "b": 1.0})
    assert found.unstable == said and len(bench.log) == 3 * 2 * 5


def test_what_becomes_steady_is_measured_again_and_kept():
    bench = Bench(lambda bench: Sample(1500.0, "another process computed on the card" if len(bench.log) <= 4 else None))
    found = bench.measure({"a": iter([9.0, 9.0, 1.0, 1.0, 1.0]), "b": 1.0}, rounds=2)
    assert found.unstable is None and found.timings["a"].ms == 1000


def test_no_attempt_begins_that_would_pass_the_limit():
    bench = Bench(drifting)
    assert bench.measure({"a": 1.0, "b": 1.0}, limit_s=15.0).unstable is not None
    assert len(bench.log) == 2 * 5


def test_a_drift_of_a_twentieth_is_let_pass():
    assert clock_drift([1500.0, 1575.0]) == pytest.approx(0.05) and clock_drift([]) == 0
    seen = {"a": [Sample(1500.0)], "b": [Sample(1574.0)]}
    assert trouble({"a": [1.0], "b": [1.0]}, seen) is None
    assert trouble({"a": [1.0], "b": [1.0]}, {"a": [Sample(1500.0)], "b": [Sample(1580.0)]}) is not None


def test_a_wide_spread_is_unsteady_where_it_stands_for_a_clock():
    times = {"a": [1.0, 1.0, 1.0], "b": [1.0, 2.0, 3.0]}
    quiet = {name: [Sample()] for name in times}
    assert trouble(times, quiet) is None
    assert trouble(times, quiet, 0.25) == "p20 and p80 of b lie 60% of its median apart"


def test_the_host_is_timed_by_its_own_clock(monkeypatch):
    ticks = iter([10.0, 12.5])
    monkeypatch.setattr("dllm_kernels.bench.timing.time.perf_counter", lambda: next(ticks))
    assert stopwatch(torch.device("cpu"))(lambda: None) == 2.5


def test_no_garbage_is_collected_in_anybodys_turn():
    seen = []
    in_turns({"one": lambda: seen.append(gc.isenabled())}, stopwatch(torch.device("cpu")), Sample, Effort(rounds=3, warm_s=0))
    assert len(seen) >= 3 and not any(seen[-3:]) and gc.isenabled()

    def fails():
        raise RuntimeError("a contender that fails")

    with pytest.raises(RuntimeError, match="a contender"):
        in_turns({"one": fails}, stopwatch(torch.device("cpu")), Sample, Effort(rounds=3, warm_s=0))
    assert gc.isenabled()
