"""Which times t are trained on: uniform ones, or so that the expected loss is linear in u (arXiv:2605.07933, section 3).

With L(t) the denoiser's expected loss at t, p(t) proportional to dL/dt makes L(t(u)) linear in u uniform on (0, 1): the
sampler spends its draws where the loss changes. L is estimated in 100 bins of t.

Each bin keeps an exponential moving average of loss sums and of counts with the same decay, so that their ratio has no bias
towards the zero that an average starts from. A bin counts, besides its own losses, `PRIOR` losses of the value t, which is
what standardised latents give a denoiser that knows nothing; so p is uniform before the first loss and moves as evidence
comes. L(t) is made monotone by weighted isotonic regression, since a noisier input is never easier, and is given a slope of
`SLOPE` times its mean, so that where nothing but noise tells the bins apart p stays near uniform, and no bin is ever left
without losses.
"""

import torch
from torch import Tensor

BINS, DECAY = 100, 0.999
PRIOR = 8.0
"""Weight of the prior in each bin, in losses."""

SLOPE = 0.25
"""Rise of L from t = 0 to 1 that is added to the estimate, relative to the mean of L."""


class AdaptiveTimesteps:
    """The loss as a function of t, and times drawn by it. Everything stays on the device.

    Attributes:
        sums, counts: [BINS] float64, the decayed sums of losses and of their number.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.sums = torch.zeros(BINS, dtype=torch.float64, device=device)
        self.counts = torch.zeros_like(self.sums)
        self._middles = (torch.arange(BINS, dtype=torch.float64, device=device) + 0.5) / BINS

    def times(self, u: Tensor) -> Tensor:
        """Uniforms [B] in (0, 1) to times [B] in (0, 1), float64: the inverse of the cumulative distribution."""
        mass, u = self.probabilities(), u.double()
        cumulative = mass.cumsum(0)
        place = torch.searchsorted(cumulative, u).clamp_(max=BINS - 1)
        within = (1 - (cumulative[place] - u) / mass[place]).clamp(0, 1)
        # Rounding may not reach the ends, where the log-SNR is infinite.
        return ((place + within) / BINS).clamp(1e-6, 1 - 1e-6)

    def probabilities(self) -> Tensor:
        """The probability [BINS] of each bin."""
        loss = self.losses()
        between = (loss[1:] + loss[:-1]) / 2
        # The ends are extrapolated by half a bin.
        edges = torch.cat((2 * loss[:1] - between[:1], between, 2 * loss[-1:] - between[-1:]))
        rise = edges.diff() + SLOPE * loss.mean() / BINS
        return rise / rise.sum()

    def losses(self) -> Tensor:
        """The monotone estimate [BINS] of L(t) at the bins' middles."""
        weights = self.counts + PRIOR
        return isotonic((self.sums + PRIOR * self._middles) / weights, weights)

    def binned(self, t: Tensor, losses: Tensor) -> Tensor:
        """[2, BINS] float64: the sums of losses [B] in the bins of their times [B], and their numbers."""
        inside = (t * BINS).long().clamp(0, BINS - 1).unsqueeze(1) == torch.arange(BINS, device=t.device)
        # A product and a sum in a fixed order: an indexed addition is not deterministic on a card.
        return torch.stack((torch.where(inside, losses.double().unsqueeze(1), 0.0).sum(0), inside.double().sum(0)))

    def update(self, binned: Tensor) -> None:
        """Takes in the losses of a step, as `binned` gives them, summed over the processes."""
        self.sums.mul_(DECAY).add_(binned[0])
        self.counts.mul_(DECAY).add_(binned[1])

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint holds."""
        return {"sums": self.sums, "counts": self.counts}


def isotonic(values: Tensor, weights: Tensor) -> Tensor:
    """The non-decreasing sequence closest to `values` [n] in weighted squares: max over i <= b of min over j >= b of the
    weighted mean of i to j (Barlow et al., 1972, "Statistical inference under order restrictions", section 1.2)."""
    start = torch.zeros(1, dtype=values.dtype, device=values.device)
    sums, totals = (torch.cat((start, x.cumsum(0))) for x in (values * weights, weights))
    means = (sums[None, 1:] - sums[:-1, None]) / (totals[None, 1:] - totals[:-1, None])
    means = torch.where(torch.ones_like(means, dtype=torch.bool).triu(), means, torch.inf)
    least = means.flip(1).cummin(1).values.flip(1)
    return torch.where(torch.ones_like(least, dtype=torch.bool).triu(), least, -torch.inf).cummax(0).values.diagonal().clone()
