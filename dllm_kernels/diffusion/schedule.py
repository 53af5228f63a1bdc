"""Noise schedules: how much data and how much noise a latent holds at time t.

Variance-preserving diffusion from t = 1 (noise) to t = 0 (data), with alpha^2 + sigma^2 = 1:

    z_t = alpha(t) z0 + sigma(t) eps,    log-SNR(t) = ln(alpha^2 / sigma^2).

A schedule belongs to the model's config, since the model was trained with it. docs/sampling.md has the mathematics.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_kernels.model.config import LDLMConfig

SCHEDULES = ("tangent", "cosine", "power")


@dataclass(frozen=True)
class NoiseSchedule:
    """alpha, sigma and log-SNR as functions of t, and t as a function of log-SNR.

    Each method takes a float tensor of any shape on any device; a number stands for a float64 scalar tensor. The result has
    the argument's shape, dtype and device. No method waits for the device. t lies in [0, 1].

    Attributes:
        name: "tangent": sigma / alpha = d tan(pi t / 2) (TEncDM, arXiv:2402.19097); "cosine": the same with d = 1, so
            alpha = cos(pi t / 2) (arXiv:2102.09672 without its offset); "power": sigma^2 = t^k.
        parameter: d of "tangent", k of "power"; ignored by "cosine".
        sampled: the least and the greatest log-SNR that a sampler steps through unless told otherwise, or None (solver.py).

    Raises:
        ValueError: the name is not one of SCHEDULES, or the parameter is not positive and finite.
    """

    name: str
    parameter: float
    sampled: tuple[float, float] | None = None

    def __post_init__(self):
        if self.name not in SCHEDULES:
            raise ValueError(f"unknown noise schedule {self.name!r}; known schedules: {', '.join(SCHEDULES)}")
        if not 0 < self.parameter < math.inf:
            raise ValueError(f"the parameter of a noise schedule is {self.parameter!r}; it must be positive and finite")

    @classmethod
    def from_config(cls, config: LDLMConfig) -> "NoiseSchedule":
        """The schedule that a model with this config was trained with."""
        return cls(config.noise_schedule, config.schedule_parameter, config.sampled_log_snr)

    def alpha(self, t: float | Tensor) -> Tensor:
        """The data's share of z_t: exactly 1 at t = 0 and exactly 0 at t = 1."""
        t = _tensor(t)
        if self.name == "power":
            # expm1 is never positive here. Its absolute value, unlike its negation, gives alpha(1) no negative zero.
            return torch.expm1(self.parameter * torch.log(t)).abs().sqrt()
        data, noise = self._legs(t)
        return data / torch.hypot(data, noise)

    def sigma(self, t: float | Tensor) -> Tensor:
        """The noise's share of z_t: exactly 0 at t = 0 and exactly 1 at t = 1."""
        t = _tensor(t)
        if self.name == "power":
            return t ** (self.parameter / 2)
        data, noise = self._legs(t)
        return noise / torch.hypot(data, noise)

    def log_snr(self, t: float | Tensor) -> Tensor:
        """ln(alpha^2 / sigma^2), natural logarithm: +inf at t = 0, falling to -inf at t = 1."""
        t = _tensor(t)
        if self.name == "power":
            log_variance = self.parameter * torch.log(t)
            return torch.log(torch.expm1(log_variance).abs()) - log_variance
        data, noise = self._legs(t)
        return 2 * (torch.log(data) - torch.log(noise))

    def t_of_log_snr(self, log_snr: float | Tensor) -> Tensor:
        """The inverse of `log_snr`, in closed form. Infinite values give t = 0 and t = 1."""
        log_snr = _tensor(log_snr)
        if self.name == "power":
            return torch.exp(-torch.logaddexp(log_snr, torch.zeros_like(log_snr)) / self.parameter)
        return torch.atan(torch.exp(-log_snr / 2) / self._slope) / (math.pi / 2)

    @property
    def _slope(self) -> float:
        return 1.0 if self.name == "cosine" else self.parameter

    def _legs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma up to a common factor."""
        # The sine of the complement: 1 - t is exact near t = 1, where cos(pi t / 2) would lose all its digits.
        return torch.sin(math.pi / 2 * (1 - t)), self._slope * torch.sin(math.pi / 2 * t)


def _tensor(value: float | Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
