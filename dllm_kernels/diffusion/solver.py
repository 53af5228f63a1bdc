"""Solvers as coefficient tables, and the times that they step through.

Every solver here is one linear update, so a solver is a table with a row for each step:

    z_{i+1} = a_i z_i + b_i z0_i + c_i z0_{i-1} + s_i eps_i,

with z0_i the denoiser's prediction at t_i and eps_i standard normal. docs/sampling.md derives the rows.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dllm_kernels.diffusion.schedule import NoiseSchedule
from dllm_kernels.utils.validation import whole_number

SOLVERS = ("ddim", "ddpm", "dpmpp_2m")


def time_grid(schedule: NoiseSchedule, num_steps: int, grid: str | Sequence | Tensor = "auto") -> Tensor:
    """The times of a sampler, from noise down to data.

    Args:
        schedule: the model's noise schedule.
        num_steps: N, how often the denoiser runs.
        grid: "t" is uniform in t from 1 to 0. ("log_snr", start, end) is N times uniform in log-SNR from `start` up to `end`
            (`start` alone for N = 1), then t = 0. "auto" is ("log_snr", *schedule.sampled) where the model has such a range,
            otherwise "t". A list is the N + 1 times themselves, the last of them 0.

    Returns:
        [N + 1] float64, strictly decreasing within [0, 1], the last exactly 0.

    Raises:
        ValueError: fewer than one step; an unknown grid; ends that are not finite, out of order, or so far out that float64
            cannot tell times apart; times of the wrong number, out of order, outside [0, 1], or not ending at 0.
    """
    num_steps = whole_number("num_steps", num_steps, 1)
    if isinstance(grid, str) and grid == "auto":
        grid = "t" if schedule.sampled is None else ("log_snr", *schedule.sampled)
    match grid:
        case "t":
            return torch.arange(num_steps, -1, -1, dtype=torch.float64) / num_steps
        case ("log_snr", start, end):
            numbers = all(isinstance(end, (int, float)) for end in (start, end))
            if not (numbers and -math.inf < start < end < math.inf):
                raise ValueError(f"the log-SNR grid goes from {start!r} to {end!r}; its ends must be finite and rise")
            times = schedule.t_of_log_snr(torch.linspace(start, end, num_steps, dtype=torch.float64))
            times = torch.cat((times, times.new_zeros(1)))
            if not (times.diff() < 0).all():
                raise ValueError(f"the log-SNR grid from {start!r} to {end!r} has times that float64 cannot tell apart")
            return times
        case Tensor() | [int() | float(), *_]:
            times = _checked(grid)
            if len(times) != num_steps + 1:
                raise ValueError(f"the grid has {len(times)} times; {num_steps} steps need {num_steps + 1}")
            if times[-1] != 0:
                raise ValueError(f"the grid ends at t = {times[-1].item()}; it must end at 0")
            return times
        case _:
            raise ValueError(f"unknown grid {grid!r}; it must be 'auto', 't', ('log_snr', start, end) or a list of times")


def coefficient_table(schedule: NoiseSchedule, times: Sequence | Tensor, solver: str, eta: float = 0.0) -> Tensor:
    """A solver's table, a row (a, b, c, s) for each step. The row that ends at t = 0 is exactly (0, 1, 0, 0) for every solver.

    Args:
        schedule: the model's noise schedule.
        times: [N + 1] strictly decreasing within [0, 1].
        solver: "ddim" (arXiv:2010.02502, eq. 12 without noise); "ddpm", the same with noise (eq. 16), for eta = 1 the
            ancestral sampler of arXiv:2006.11239, for eta = 2 the multistep sampler of arXiv:2303.01469; "dpmpp_2m", the
            second-order multistep DPM-Solver++ (arXiv:2211.01095, algorithm 2).
        eta: noise of "ddpm", in [0, 2]: up to 1 the share of the posterior's standard deviation, from there on linear up to
            full re-noising at 2, where nothing of z_i is kept; 0 for the other solvers.

    Returns:
        [N, 4] float64, finite.

    Raises:
        ValueError: an unknown solver, eta out of range or given to a solver without noise, times out of order, outside
            [0, 1] or too close for float64.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; known solvers: {', '.join(SOLVERS)}")
    if solver != "ddpm" and eta != 0:
        raise ValueError(f"eta is {eta!r}; solver {solver!r} adds no noise, so it must be 0")
    if not 0 <= eta <= 2:
        raise ValueError(f"eta is {eta!r}; it must lie between 0 and 2")
    times = _checked(times)
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    h = schedule.log_snr(times).diff() / 2
    if not ((h > 0) & (sigma[:-1] > 0)).all():
        raise ValueError("two of the times are too close to each other, or to 0, for float64")

    # The share of sigma_s that is fresh noise, and what it lacks of 1. exp(-2h) is the ratio of the two SNRs. Neither form
    # of the kept share sqrt(1 - fresh^2) cancels, unlike sigma^2 - s^2.
    posterior = torch.sqrt(-torch.expm1(-2 * h))
    if eta <= 1:
        fresh, kept = eta * posterior, torch.sqrt((1 - eta) * (1 + eta) + eta**2 * torch.exp(-2 * h))
    else:
        lacking = (2 - eta) * torch.exp(-2 * h) / (1 + posterior)
        fresh, kept = 1 - lacking, torch.sqrt(lacking * (2 - lacking))
    s, a = sigma[1:] * fresh, sigma[1:] / sigma[:-1] * kept
    b = alpha[1:] - alpha[:-1] * a
    c = torch.zeros_like(b)
    if solver == "dpmpp_2m":
        previous = torch.cat((h.new_tensor([math.inf]), h[:-1]))
        c = torch.where(h.isfinite() & previous.isfinite(), -b * h / (2 * previous), 0.0)
    return torch.stack((a, b - c, c, s), dim=1)


def _checked(times: Sequence | Tensor) -> Tensor:
    try:
        times = torch.as_tensor(times, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"times are {times!r}; they must be a list of at least 2 numbers") from None
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"times have shape {list(times.shape)}; they must be a list of at least 2")
    if not ((times.diff() < 0).all() and times[0] <= 1 and times[-1] >= 0):
        raise ValueError(f"times go from {times[0].item()} to {times[-1].item()}; they must decrease strictly within [0, 1]")
    return times
