"""The time of each phase: what is generated stays the same, and the phases are the sampler's."""

import pytest
import torch

from dllm_kernels import FusedSampler, LDLMConfig
from dllm_kernels.inference.profile import phase_times
from tests.models import randomized

CALL = {"seed": 3, "first_sample": 2, "temperature": 0.7}


@pytest.fixture(scope="module")
def sampler():
    model = randomized(LDLMConfig.preset("tiny", seq_len=13, vocab_size=101))
    return FusedSampler(model, num_steps=3, batch_size=2, solver="ddpm", dtype=torch.float32)


def test_output_and_phases(sampler):
    out, times = phase_times(sampler, **CALL)
    expected = sampler(**CALL)
    assert torch.equal(out.tokens, expected.tokens) and torch.equal(out.latents, expected.latents)
    assert not torch.equal(out.tokens, phase_times(sampler, seed=4, temperature=0.7)[0].tokens)
    assert list(times) == ["noise", "denoise", "decode", "lm_head"]
    assert all(0 < seconds < 60 for seconds in times.values())
    # The sampler's own graph, where there is one, is as it was.
    assert torch.equal(sampler(**CALL).tokens, expected.tokens)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a captured graph tells of no phase")
def test_a_clock_is_read_once_before_and_once_after_a_phase(sampler, monkeypatch):
    """The clock stands still but where it is read, so that a phase takes 1 s, and what `progress` takes counts nowhere."""
    now, told = [0.0], []

    def clock():
        now[0] += 1
        return now[0]

    def progress(phase, number):
        now[0] += 100
        told.append((phase, number))

    monkeypatch.setattr("dllm_kernels.inference.profile.time.perf_counter", clock)
    _, times = phase_times(sampler, progress=progress)
    assert times == {"noise": 1.0, "denoise": 3.0, "decode": 1.0, "lm_head": 1.0}
    assert told == [("noise", 0), ("denoise", 0), ("denoise", 1), ("denoise", 2), ("decode", 0), ("lm_head", 0)]
