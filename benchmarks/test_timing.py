"""The harness measures itself: a copy of known bytes, and a slow-down that was planted."""

import pytest
import torch

from dllm_kernels.bench.groups import ON_CARD, ON_CPU
from dllm_kernels.bench.peers import captured
from dllm_kernels.bench.timing import in_turns, stopwatch
from dllm_kernels.utils.device import elapsed, free_memory

PARTS = 20


@pytest.fixture(scope="module")
def parts(machine):
    """PARTS pairs (source, target), which together are far larger than a cache."""
    size = min(2**31 if machine.device.type == "cuda" else 2**28, free_memory(machine.device) // 4) // PARTS // 4
    return [tuple(torch.randn(size, device=machine.device) for _ in range(2)) for _ in range(PARTS)]


def copies(parts, device):
    def run():
        for source, target in parts:
            target.copy_(source)

    return captured(run, device) if device.type == "cuda" else run


def measured(calls, machine):
    found = in_turns(calls, stopwatch(machine.device), machine.sample, ON_CARD if machine.device.type == "cuda" else ON_CPU)
    if found.unstable:
        pytest.skip(f"the machine is not quiet enough to test the harness on: {found.unstable}")
    return found.timings


def test_a_copy_of_known_bytes(parts, machine, benchmark):
    copy, device = copies(parts, machine.device), machine.device
    moved = sum(2 * source.nbytes for source, _ in parts)

    def several():
        for _ in range(10):
            copy()

    def rates():
        """(by the harness, by the host's clock over calls so long that a launch is nothing), bytes a second."""
        by_host = 10 * moved / elapsed(several, device)
        return moved / measured({"copy": copy}, machine)["copy"].ms * 1000, by_host

    for _ in range(3):
        harness, host = rates()
        if harness == pytest.approx(host, rel=0.05):
            break
    benchmark.extra_info.update(gb_per_s=harness / 1e9, rate_gb_per_s=host / 1e9)
    benchmark.pedantic(lambda: elapsed(copy, device), rounds=3)
    # A CPU that others use changes its rate from second to second.
    assert harness == pytest.approx(host, rel=0.05 if device.type == "cuda" else 0.25)


def test_a_planted_slow_down_is_seen(parts, machine, benchmark):
    slow = copies([*parts, *parts[: PARTS // 10]], machine.device)
    calls = {"fast": copies(parts, machine.device), "slow": slow}
    timings = measured(calls, machine)
    ratio = timings["slow"].ms / timings["fast"].ms
    benchmark.extra_info.update(ratio=ratio)
    benchmark.pedantic(lambda: elapsed(slow, machine.device), rounds=3)
    assert ratio == pytest.approx(1.1, abs=0.03)
