"""Coefficient tables against an independent derivation in 50 digits, and against the exact solution for Gaussian data.

For data N(MEAN, DEVIATION^2) everything is known: z_t is N(alpha MEAN, v^2) with v^2 = alpha^2 DEVIATION^2 + sigma^2, the best
denoiser E[z0 | z_t] is affine, and the probability-flow ODE keeps (z_t - alpha MEAN) / v constant.
"""

import dataclasses
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dllm_kernels.diffusion import noise
from dllm_kernels.diffusion.schedule import NoiseSchedule
from dllm_kernels.diffusion.solver import coefficient_table, time_grid

mpmath.mp.dps = 50
MEAN, DEVIATION = 0.7, 2.0
SCHEDULES = [
    NoiseSchedule("tangent", 3.0),
    NoiseSchedule("cosine", 1.0),
    NoiseSchedule("power", 2.0),
    NoiseSchedule("power", 3.0),
]
LOG_SNR_GRID = ("log_snr", -11.0, 13.0)
SOLVERS_AND_ETAS = [("ddim", 0.0), ("ddpm", 0.0), ("ddpm", 0.4), ("ddpm", 1.0), ("ddpm", 1.6), ("ddpm", 2.0), ("dpmpp_2m", 0.0)]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.name}-{s.parameter}")
each_solver = pytest.mark.parametrize("solver, eta", SOLVERS_AND_ETAS)


def sample(table: Tensor, denoise, z: Tensor, step_noise=None) -> Tensor:
    """The loop that a table stands for. `denoise(step, z)` is z0_i; `step_noise(step)` is eps_i."""
    previous = torch.zeros_like(z)
    for step, (a, b, c, s) in enumerate(table.tolist()):
        prediction = denoise(step, z)
        z = a * z + b * prediction + c * previous
        if s != 0:
            z = z + s * step_noise(step)
        previous = prediction
    return z


def posterior_mean(schedule: NoiseSchedule, times: Tensor, mean: float = MEAN, deviation: float = DEVIATION):
    """(gain, offset), [N] each: E[z0 | z_t] = gain z_t + offset at each time but the last."""
    alpha, sigma = schedule.alpha(times[:-1]), schedule.sigma(times[:-1])
    gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
    return gain, mean * (1 - gain * alpha)


def exact_solution(schedule: NoiseSchedule, start: float, end: float, z: Tensor, mean=MEAN, deviation=DEVIATION) -> Tensor:
    """Where the probability-flow ODE takes z from `start` to `end`."""

    def scale(t):
        return torch.hypot(schedule.alpha(t) * deviation, schedule.sigma(t))

    return schedule.alpha(end) * mean + scale(end) / scale(start) * (z - schedule.alpha(start) * mean)


def solve_error(schedule: NoiseSchedule, times: Tensor, solver: str, mean=MEAN, deviation=DEVIATION) -> float:
    """Largest error of a noiseless solver over a few latents of the exact marginal at times[0]."""
    start, end = times[0].item(), times[-1].item()
    z = exact_solution(schedule, 1.0, start, torch.tensor([-1.7, 0.4, 2.1], dtype=torch.float64), mean, deviation)
    gain, offset = posterior_mean(schedule, times, mean, deviation)
    table = coefficient_table(schedule, times, solver)
    result = sample(table, lambda i, z: gain[i] * z + offset[i], z)
    return (result - exact_solution(schedule, start, end, z, mean, deviation)).abs().max().item()


def moments(table: Tensor, gain: Tensor, offset: Tensor) -> tuple[float, float]:
    """Mean and variance of the result from z ~ N(0, 1) under an affine denoiser: exact, for rows with c = 0."""
    mean, variance = 0.0, 1.0
    for (a, b, c, s), g, o in zip(table.tolist(), gain.tolist(), offset.tolist(), strict=True):
        assert c == 0
        mean, variance = (a + b * g) * mean + b * o, (a + b * g) ** 2 * variance + s**2
    return mean, variance


# The tables against a derivation in 50 digits.


def exact_alpha_sigma(schedule: NoiseSchedule, t: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    t, p = mpmath.mpf(t), mpmath.mpf(schedule.parameter)
    if t == 1:
        return mpmath.mpf(0), mpmath.mpf(1)
    if schedule.name == "power":
        return mpmath.sqrt(1 - t**p), t ** (p / 2)
    tan = (p if schedule.name == "tangent" else 1) * mpmath.tan(mpmath.pi * t / 2)
    return 1 / mpmath.sqrt(1 + tan**2), tan / mpmath.sqrt(1 + tan**2)


def derived_row(schedule: NoiseSchedule, times: list[float], i: int, solver: str, eta: float) -> list[mpmath.mpf]:
    """Row i, which does not arrive at t = 0, by another road than the code's.

    ddpm: Bayes' rule for the Gaussians q(z_s | z0) and q(z_t | z_s), and for eta < 1 the marginal of z at both times. The
    others: numerical integration of sigma_s int e^lambda z0(lambda) dlambda, the exact solution of the ODE in lambda =
    log(alpha / sigma), with z0(lambda) constant or, for the multistep solver, the line through the last two predictions at the
    middle of the step.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (exact_alpha_sigma(schedule, t) for t in times[i : i + 2])
    if solver == "ddpm":
        forward = alpha_t / alpha_s
        forward_variance = sigma_t**2 - (forward * sigma_s) ** 2
        variance = 1 / (1 / sigma_s**2 + forward**2 / forward_variance)
        s = min(eta, 1) * mpmath.sqrt(variance)
        s += max(mpmath.mpf(eta) - 1, 0) * (sigma_s - s)
        if eta == 2:
            return [mpmath.mpf(0), alpha_s, mpmath.mpf(0), sigma_s]
        if eta == 1:
            return [variance * forward / forward_variance, variance * alpha_s / sigma_s**2, mpmath.mpf(0), s]
        a = mpmath.sqrt(sigma_s**2 - s**2) / sigma_t
        return [a, alpha_s - a * alpha_t, mpmath.mpf(0), s]
    lam_t = mpmath.log(alpha_t / sigma_t) if alpha_t else mpmath.ninf
    lam_s = mpmath.log(alpha_s / sigma_s)
    integral = sigma_s * mpmath.quad(mpmath.exp, [lam_t, lam_s])
    c = mpmath.mpf(0)
    if solver == "dpmpp_2m" and i > 0 and times[i - 1] < 1:
        alpha_p, sigma_p = exact_alpha_sigma(schedule, times[i - 1])
        lam_p = mpmath.log(alpha_p / sigma_p)
        middle = (lam_t + lam_s) / 2
        c = integral * (middle - lam_t) / (lam_p - lam_t)
    return [sigma_s / sigma_t, integral - c, c, mpmath.mpf(0)]


@each_solver
@pytest.mark.parametrize("grid", ["t", LOG_SNR_GRID, "inner"], ids=["t", "log_snr", "inner"])
@each_schedule
def test_equals_an_independent_derivation(schedule, grid, solver, eta):
    for n, rows in ((1, [0]), (2, [0, 1]), (7, range(7)), (1000, [0, 1, 2, 499, 997, 998, 999])):
        if grid == "inner":
            times = torch.linspace(0.9, 0.1, n + 1, dtype=torch.float64)
        else:
            times = time_grid(schedule, n, grid)
        table = coefficient_table(schedule, times, solver, eta)
        for i in rows:
            if times[i + 1] == 0:
                expected = [0, 1, 0, 0]
            else:
                expected = derived_row(schedule, times.tolist(), i, solver, eta)
            for name, value, e in zip("abcs", table[i].tolist(), expected, strict=True):
                assert abs(value - e) <= 1e-12 * abs(e), (n, i, name, value, mpmath.nstr(e, 20))


@each_solver
@each_schedule
def test_rows_keep_the_marginals(schedule, solver, eta):
    """With the true z0 in place of the predictions, z = alpha z0 + sigma eps stays so from row to row."""
    times = time_grid(schedule, 37, "t")
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    a, b, c, s = coefficient_table(schedule, times, solver, eta).unbind(1)
    torch.testing.assert_close(a * alpha[:-1] + b + c, alpha[1:], rtol=1e-14, atol=0)
    torch.testing.assert_close(a**2 * sigma[:-1] ** 2 + s**2, sigma[1:] ** 2, rtol=1e-14, atol=0)


def test_log_snr_grid_gives_one_table_for_every_schedule():
    """Where the steps are stated in log-SNR, how t runs along them is nobody's business."""
    for solver, eta in SOLVERS_AND_ETAS:
        tables = [coefficient_table(s, time_grid(s, 23, ("log_snr", -6.0, 9.0)), solver, eta) for s in SCHEDULES]
        for table in tables[1:]:
            torch.testing.assert_close(table, tables[0], rtol=1e-11, atol=0)


@pytest.mark.parametrize("grid", ["t", LOG_SNR_GRID], ids=["t", "log_snr"])
@each_schedule
def test_every_length_is_finite_and_ends_in_the_prediction(schedule, grid):
    for n in range(1, 1001):
        times = time_grid(schedule, n, grid)
        assert len(times) == n + 1 and (times.diff() < 0).all() and times[-1] == 0
        for solver, eta in (("ddpm", 1.0), ("dpmpp_2m", 0.0)):
            table = coefficient_table(schedule, times, solver, eta)
            assert table.shape == (n, 4) and table.dtype == torch.float64
            assert table.isfinite().all(), (n, solver)
            assert table[-1].tolist() == [0.0, 1.0, 0.0, 0.0], (n, solver)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_any_list_of_times_is_finite(data):
    inner = data.draw(st.lists(st.integers(1, 9_999), unique=True, max_size=40))
    start = data.draw(st.sampled_from([[], [10_000]]))
    times = [i / 10_000 for i in [*start, *sorted(inner, reverse=True), 0]]
    if len(times) == 1:
        times = [0.5, 0.0]
    schedule = data.draw(st.sampled_from(SCHEDULES))
    solver, eta = data.draw(st.sampled_from(SOLVERS_AND_ETAS))
    grid = time_grid(schedule, len(times) - 1, times)
    assert grid.tolist() == times
    table = coefficient_table(schedule, grid, solver, eta)
    assert table.isfinite().all() and table[-1].tolist() == [0.0, 1.0, 0.0, 0.0]


@each_schedule
def test_multistep_falls_back_where_log_snr_is_infinite(schedule):
    c = coefficient_table(schedule, time_grid(schedule, 9, "t"), "dpmpp_2m")[:, 2]
    assert (c != 0).tolist() == [False, False, *[True] * 6, False]
    c = coefficient_table(schedule, time_grid(schedule, 9, LOG_SNR_GRID), "dpmpp_2m")[:, 2]
    assert (c != 0).tolist() == [False, *[True] * 7, False]


@each_schedule
def test_ddpm_without_noise_is_ddim(schedule):
    times = time_grid(schedule, 11, "t")
    assert torch.equal(coefficient_table(schedule, times, "ddpm", 0.0), coefficient_table(schedule, times, "ddim"))


# Grids.


def test_uniform_grid():
    assert time_grid(SCHEDULES[0], 5).tolist() == [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    assert time_grid(SCHEDULES[0], 1, "t").tolist() == [1.0, 0.0]


@each_schedule
def test_the_models_own_grid(schedule):
    ranged = dataclasses.replace(schedule, sampled=(-4.5, -2.0))
    assert torch.equal(time_grid(schedule, 6), time_grid(schedule, 6, "t"))
    assert torch.equal(time_grid(ranged, 6), time_grid(schedule, 6, ("log_snr", -4.5, -2.0)))
    assert torch.equal(time_grid(ranged, 6, "t"), time_grid(schedule, 6, "t"))


@each_schedule
def test_log_snr_grid(schedule):
    times = time_grid(schedule, 7, LOG_SNR_GRID)
    expected = torch.linspace(-11.0, 13.0, 7, dtype=torch.float64)
    torch.testing.assert_close(schedule.log_snr(times[:-1]), expected, rtol=1e-10, atol=0)
    assert len(times) == 8 and times[-1] == 0
    only = time_grid(schedule, 1, LOG_SNR_GRID)
    assert only.tolist() == [times[0].item(), 0.0]


@pytest.mark.parametrize("kind", [list, tuple, lambda x: torch.tensor(x, dtype=torch.float64)], ids=["list", "tuple", "tensor"])
def test_times_themselves(kind):
    grid = time_grid(SCHEDULES[0], 2, kind([0.9, 0.35, 0.0]))
    assert grid.dtype == torch.float64 and grid.tolist() == [0.9, 0.35, 0.0]


# The solvers against exact solutions for Gaussian data.


@pytest.mark.parametrize("solver, order, tolerance", [("ddim", 1, 0.05), ("dpmpp_2m", 2, 0.15)])
@pytest.mark.parametrize("uniform_in", ["t", "log_snr"])
@each_schedule
def test_order(schedule, uniform_in, solver, order, tolerance):
    counts, errors = (40, 80, 160, 320), []
    for n in counts:
        times = torch.linspace(0.9, 0.1, n + 1, dtype=torch.float64)
        if uniform_in == "log_snr":
            start, end = schedule.log_snr(times[[0, -1]]).tolist()
            times = schedule.t_of_log_snr(torch.linspace(start, end, n + 1, dtype=torch.float64))
        errors.append(solve_error(schedule, times, solver))
    fitted = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(fitted - order) <= tolerance, (fitted, errors)
    assert errors[-1] < (2e-2 if order == 1 else 2e-4)


@pytest.mark.parametrize("solver, constant", [("ddim", 4.5), ("dpmpp_2m", 3.5)])
@each_schedule
def test_error_from_noise_to_data(schedule, solver, constant):
    """Uniform in t from 1 to 0, data of deviation 0.5: the error of N steps on noise up to 2.1 stays below constant / N."""
    for n in (10, 20, 40, 80, 160, 320, 640):
        error = solve_error(schedule, time_grid(schedule, n), solver, deviation=0.5)
        assert error <= constant / n, (n, error)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
@each_schedule
def test_one_step_is_the_mean_of_the_data(schedule, solver):
    assert solve_error(schedule, time_grid(schedule, 1), solver) == pytest.approx(DEVIATION * 2.1, rel=1e-15)


@pytest.mark.parametrize("eta", [0.4, 1.0])
@each_schedule
def test_ddpm_gives_the_distribution_of_the_data(schedule, eta):
    """The mean is exact for every N; the error of the deviation falls with N, and stays below 20 / N."""
    errors = []
    for n in (250, 500, 1000):
        times = time_grid(schedule, n)
        table = coefficient_table(schedule, times, "ddpm", eta)
        mean, variance = moments(table, *posterior_mean(schedule, times))
        assert mean == pytest.approx(MEAN, rel=1e-12)
        errors.append(abs(math.sqrt(variance) - DEVIATION))
        assert errors[-1] <= 20 / n, (n, errors)
    assert errors[1] < 0.55 * errors[0] and errors[2] < 0.55 * errors[1], errors


@pytest.mark.parametrize("steps", [100, 1000])
@each_schedule
def test_more_noise_than_the_posteriors_narrows_the_distribution(schedule, steps):
    """The mean stays exact. The deviation falls from eta = 1 on, to that of half of the data's variance for many steps."""
    times, deviations = time_grid(schedule, steps), []
    for eta in (1.0, 1.5, 2.0):
        mean, variance = moments(coefficient_table(schedule, times, "ddpm", eta), *posterior_mean(schedule, times))
        assert mean == pytest.approx(MEAN, rel=1e-12)
        deviations.append(math.sqrt(variance))
    assert deviations[0] > deviations[1] + 0.05 > deviations[2] + 0.3
    assert deviations[2] == pytest.approx(DEVIATION / math.sqrt(2), abs=4 / steps + 0.004)


@each_schedule
def test_full_renoising_keeps_nothing_of_the_latent(schedule):
    """eta = 2: z_s = alpha_s z0 + sigma_s eps."""
    times = time_grid(schedule, 9, "t")
    a, b, c, s = coefficient_table(schedule, times, "ddpm", 2.0).unbind(1)
    assert not a.any() and not c.any()
    assert torch.equal(b, schedule.alpha(times)[1:]) and torch.equal(s, schedule.sigma(times)[1:])


def test_ddpm_with_counter_based_noise():
    """Drawn samples have the mean and the variance that the recursion predicts, within 4 standard errors of each."""
    schedule, batch, size, seed = SCHEDULES[0], 37, 211, 1234567890123
    times = time_grid(schedule, 12)
    table = coefficient_table(schedule, times, "ddpm", 1.0)
    gain, offset = posterior_mean(schedule, times)
    z = noise.normals(seed, 0, 0, noise.INITIAL_NOISE, batch, size)
    result = sample(
        table,
        lambda i, z: gain[i] * z + offset[i],
        z,
        lambda i: noise.normals(seed, 0, i, noise.STEP_NOISE, batch, size),
    )
    mean, variance = moments(table, gain, offset)
    count = batch * size
    assert abs(result.mean().item() - mean) <= 4 * math.sqrt(variance / count)
    assert abs(result.var().item() - variance) <= 4 * variance * math.sqrt(2 / count)
    assert abs(mean - MEAN) < 0.1 and abs(math.sqrt(variance) - DEVIATION) < 0.5


# Bad input.


@pytest.mark.parametrize(
    "num_steps, grid, message",
    [
        (0, "t", "num_steps is 0; it must be a whole number of at least 1"),
        (-3, "t", "num_steps is -3"),
        (2.0, "t", "num_steps is 2.0"),
        (True, "t", "num_steps is True"),
        (4, "cosine", "unknown grid 'cosine'; it must be 'auto', 't', .'log_snr', start, end. or a list of times"),
        (4, ("log_snr", 5.0), "unknown grid .'log_snr', 5.0.; it must be"),
        (4, None, "unknown grid None; it must be"),
        (4, 4, "unknown grid 4; it must be"),
        (4, ("log_snr", 5.0, -5.0), "ends must be finite and rise"),
        (4, ("log_snr", -math.inf, 5.0), "ends must be finite and rise"),
        (4, ("log_snr", -5.0, math.nan), "ends must be finite and rise"),
        (4, ("log_snr", -200.0, 5.0), "has times that float64 cannot tell apart"),
        (4, ("log_snr", -5.0, 5000.0), "has times that float64 cannot tell apart"),
        (3, [1.0, 0.5, 0.0], "the grid has 3 times; 3 steps need 4"),
        (2, [1.0, 0.5, 0.1], "the grid ends at t = 0.1; it must end at 0"),
        (2, [0.5, 1.0, 0.0], "decrease strictly within"),
        (2, [0.5, 0.5, 0.0], "decrease strictly within"),
        (2, [1.5, 0.5, 0.0], "go from 1.5 to 0.0; they must decrease strictly within"),
        (2, [1.0, 0.5, -0.1], "decrease strictly within"),
        (2, [1.0, math.nan, 0.0], "decrease strictly within"),
        (2, torch.zeros(3, 2), "must be a list of at least 2"),
        (2, ("log_snr", "a", "b"), "the log-SNR grid goes from 'a' to 'b'; its ends must be finite"),
        (2, [1, None, 0], r"times are \[1, None, 0\]; they must be a list of at least 2 numbers"),
    ],
)
def test_time_grid_rejects(num_steps, grid, message):
    with pytest.raises(ValueError, match=message):
        time_grid(SCHEDULES[0], num_steps, grid)


@pytest.mark.parametrize(
    "times, solver, eta, message",
    [
        ([1.0, 0.0], "euler", 0.0, "unknown solver 'euler'; known solvers: ddim, ddpm, dpmpp_2m"),
        ([1.0, 0.0], "ddim", 0.5, "eta is 0.5; solver 'ddim' adds no noise"),
        ([1.0, 0.0], "dpmpp_2m", 1.0, "eta is 1.0; solver 'dpmpp_2m' adds no noise"),
        ([1.0, 0.0], "ddpm", 2.5, "eta is 2.5; it must lie between 0 and 2"),
        ([1.0, 0.0], "ddpm", -0.5, "eta is -0.5; it must lie between 0 and 2"),
        ([1.0, 0.0], "ddpm", math.nan, "it must lie between 0 and 2"),
        ([0.0, 1.0], "ddim", 0.0, "decrease strictly within"),
        ([1.0], "ddim", 0.0, "must be a list of at least 2"),
        ([1.0, math.nextafter(1e-30, 1), 1e-30, 0.0], "dpmpp_2m", 0.0, "too close to each other, or to 0"),
        ([1.0, 1e-250, 1e-260, 0.0], "ddim", 0.0, "too close to each other, or to 0"),
    ],
)
def test_coefficient_table_rejects(times, solver, eta, message):
    with pytest.raises(ValueError, match=message):
        coefficient_table(NoiseSchedule("power", 3.0), times, solver, eta)
