"""How long each phase of a generation takes."""

import itertools
import time
from collections import defaultdict
from typing import Any

import torch

from dllm_kernels.inference.sampler import FusedSampler, Progress, SamplerOutput


def phase_times(
    sampler: FusedSampler, seed: int = 0, first_sample: int = 0, temperature: float = 0.0, progress: Progress | None = None
) -> tuple[SamplerOutput, dict[str, float]]:
    """Generates once and times it.

    On CUDA the generation is captured once more, with events between its phases: too slow for a hot path. The sampler's own
    graph stays as it is. No other thread may call the sampler meanwhile.

    Args:
        sampler: the sampler, which generates without a context.
        seed, first_sample, temperature: as the sampler's call takes them.
        progress: told of each phase when it is done, outside the times; on CUDA never.

    Returns:
        The output, and seconds by phase: "noise", "denoise" (all steps together), "decode", "lm_head".
    """
    call = {"seed": seed, "first_sample": first_sample, "temperature": temperature}
    return _on_cuda(sampler, call) if sampler.device.type == "cuda" else _on_cpu(sampler, call, progress)


def _on_cpu(sampler: FusedSampler, call: dict[str, Any], progress: Progress | None) -> tuple[SamplerOutput, dict[str, float]]:
    times = defaultdict(float)
    start = time.perf_counter()

    def done(phase: str, number: int) -> None:
        nonlocal start
        times[phase] += time.perf_counter() - start
        if progress is not None:
            progress(phase, number)
        start = time.perf_counter()

    output = sampler(**call, progress=done)
    return output, dict(times)


def _on_cuda(sampler: FusedSampler, call: dict[str, Any]) -> tuple[SamplerOutput, dict[str, float]]:
    output = sampler(**call)
    phases, events = [], []

    def mark(phase: str, number: int) -> None:
        phases.append(phase)
        # An external event becomes a node of the graph, so that every replay records it.
        events.append(torch.cuda.Event(enable_timing=True, external=True))
        events[-1].record()

    with torch.cuda.device(sampler.device):
        captured = sampler.capture(mark)
        # The first replay also uploads the graph.
        for _ in range(2):
            captured.replay()
        torch.cuda.synchronize()
    times = defaultdict(float)
    # The first mark is the beginning.
    for phase, (begin, end) in zip(phases[1:], itertools.pairwise(events), strict=True):
        times[phase] += begin.elapsed_time(end) / 1000
    return output, dict(times)
