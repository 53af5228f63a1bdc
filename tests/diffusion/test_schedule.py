"""Noise schedules against their definitions in 50 digits, and the properties that samplers and training lean on."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_kernels.diffusion.schedule import NoiseSchedule
from dllm_kernels.model.config import LDLMConfig

mpmath.mp.dps = 50
SCHEDULES = [
    NoiseSchedule("tangent", 3.0),
    NoiseSchedule("tangent", 0.4),
    NoiseSchedule("cosine", 7.0),
    NoiseSchedule("power", 2.0),
    NoiseSchedule("power", 3.0),
    NoiseSchedule("power", 0.7),
]
NEAR_ENDS = [2.0**-e for e in (1, 2, 7, 20, 30, 52, 300)] + [1 - 2.0**-e for e in (3, 7, 20, 30, 52, 53)]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.name}-{s.parameter}")


def exact(schedule: NoiseSchedule, t: float) -> tuple[mpmath.mpf, mpmath.mpf, mpmath.mpf]:
    """alpha, sigma and log-SNR straight from the definitions, in 50 digits and enough more for 1 - t^k near its ends."""
    with mpmath.workdps(400):
        t, p = mpmath.mpf(t), mpmath.mpf(schedule.parameter)
        if schedule.name == "power":
            alpha, sigma = mpmath.sqrt(1 - t**p), t ** (p / 2)
        elif schedule.name == "cosine":
            alpha, sigma = mpmath.cos(mpmath.pi * t / 2), mpmath.sin(mpmath.pi * t / 2)
        else:
            tan = mpmath.tan(mpmath.pi * t / 2)
            alpha = 1 / mpmath.sqrt(1 + (p * tan) ** 2)
            sigma = p * tan * alpha
        return alpha, sigma, 2 * mpmath.log(alpha / sigma)


@each_schedule
@pytest.mark.parametrize("times", [NEAR_ENDS, [i / 101 for i in range(1, 101)]], ids=["near the ends", "uniform"])
def test_equals_the_definition(schedule, times):
    t = torch.tensor(times, dtype=torch.float64)
    for i, (alpha, sigma, log_snr) in enumerate(exact(schedule, x) for x in times):
        assert abs(schedule.alpha(t)[i].item() - alpha) <= 2e-15 * alpha
        assert abs(schedule.sigma(t)[i].item() - sigma) <= 2e-15 * max(1, abs(mpmath.log(sigma))) * sigma
        assert abs(schedule.log_snr(t)[i].item() - log_snr) <= 2e-15 * max(1, abs(log_snr))


@each_schedule
def test_ends_are_exact(schedule):
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        assert schedule.alpha(ends.to(dtype)).tolist() == [1.0, 0.0]
        assert schedule.sigma(ends.to(dtype)).tolist() == [0.0, 1.0]
        assert schedule.log_snr(ends.to(dtype)).tolist() == [math.inf, -math.inf]
        assert schedule.t_of_log_snr(torch.tensor([math.inf, -math.inf], dtype=dtype)).tolist() == [0.0, 1.0]
    assert not schedule.alpha(ends).signbit().any(), "a negative zero would turn +inf into -inf wherever it divides"


@each_schedule
@given(t=st.floats(0, 1), u=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_preserves_variance_and_is_monotone(schedule, t, u):
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert abs(alpha.item() ** 2 + sigma.item() ** 2 - 1) <= 2e-15
    low, high = min(t, u), max(t, u)
    # Neighbouring floats may round past each other, by a few units in the last place.
    assert schedule.alpha(low) >= schedule.alpha(high) * (1 - 1e-15)
    assert schedule.sigma(low) <= schedule.sigma(high) * (1 + 1e-15)
    assert schedule.log_snr(low) - schedule.log_snr(high) >= -1e-15 * schedule.log_snr(low).abs() or low == high


@each_schedule
def test_log_snr_falls_strictly(schedule):
    log_snr = schedule.log_snr(torch.linspace(0, 1, 1009, dtype=torch.float64))
    assert (log_snr.diff() < 0).all()


@each_schedule
@given(log_snr=st.floats(-700, 700))
@settings(max_examples=100, deadline=None)
def test_inverse(schedule, log_snr):
    with mpmath.workdps(700):
        ratio, p = mpmath.exp(mpmath.mpf(log_snr)), mpmath.mpf(schedule.parameter)
        if schedule.name == "power":
            expected = (1 / (1 + ratio)) ** (1 / p)
        else:
            expected = 2 / mpmath.pi * mpmath.atan(1 / ((p if schedule.name == "tangent" else 1) * mpmath.sqrt(ratio)))
        t = schedule.t_of_log_snr(log_snr).item()
        # exp of a rounded exponent x is off by |x| units in the last place, which is what log-SNR itself resolves; a t below
        # the smallest normal number has fewer digits still.
        assert abs(t - expected) <= 2e-15 * max(1, abs(mpmath.log(expected))) * expected + 2.0**-1074
    if abs(log_snr) < 20:
        # t itself resolves log-SNR no better than a unit in its last place does: d log-SNR / dt grows like 1 / (1 - t).
        error = abs(schedule.log_snr(t).item() - log_snr)
        assert error <= 4e-15 * (max(1, abs(log_snr)) + t / (1 - t))


@each_schedule
def test_follows_the_tensor_it_is_given(schedule):
    t = torch.rand(5, 1, 3, generator=torch.Generator().manual_seed(0)) * 0.98 + 0.01
    for method in (schedule.alpha, schedule.sigma, schedule.log_snr):
        single = method(t)
        assert single.dtype == torch.float32 and single.shape == t.shape
        torch.testing.assert_close(single.double(), method(t.double()), rtol=1e-5, atol=1e-6)
        # A meta tensor has no values, so a method that read one back to the host would raise.
        assert method(t.to("meta")).device.type == "meta"
        assert method(0.3).dtype == torch.float64 and method(0.3) == method(torch.tensor([0.3], dtype=torch.float64))


@pytest.mark.parametrize("preset", ["open-dllm-35b-a3b", "ldlm-gpt2"])
def test_from_config(preset):
    config = LDLMConfig.preset(preset)
    schedule = NoiseSchedule.from_config(config)
    assert (schedule.name, schedule.parameter) == (config.noise_schedule, config.schedule_parameter)
    # sigma(1/2)^2 is 0.5^2 for the published checkpoints, d^2 / (1 + d^2) at d = 3 for the tangent schedule.
    assert schedule.sigma(0.5).item() ** 2 == pytest.approx({"power": 0.25, "tangent": 0.9}[schedule.name], rel=1e-15)


@pytest.mark.parametrize(
    "name, parameter, message",
    [
        ("linear", 1.0, "unknown noise schedule 'linear'; known schedules: tangent, cosine, power"),
        ("power", 0.0, "must be positive and finite"),
        ("tangent", -3.0, "must be positive and finite"),
        ("tangent", math.inf, "must be positive and finite"),
        ("power", math.nan, "must be positive and finite"),
    ],
)
def test_rejects(name, parameter, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(name, parameter)
