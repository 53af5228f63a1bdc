"""Adaptive times: the inverse of the distribution, its first updates, and what it may never do."""

import pytest
import torch

from dllm_kernels.training.timesteps import BINS, DECAY, PRIOR, SLOPE, AdaptiveTimesteps, isotonic


def uniforms(count, seed=0):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def curve(t):
    """A loss as a denoiser has it: small near the data, close to 1 near noise, steepest in between."""
    return 0.05 + 0.9 / (1 + torch.exp(-12 * (t - 0.6)))


def trained(batch, steps, noise=0.0, loss=curve, seed=0):
    times = AdaptiveTimesteps()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        t = times.times(torch.rand(batch, generator=generator, dtype=torch.float64))
        jitter = noise * torch.randn(batch, generator=generator, dtype=torch.float64)
        times.update(times.binned(t, loss(t) * (1 + jitter)))
    return times


def test_before_any_loss_times_are_uniform():
    u = uniforms(1000)
    torch.testing.assert_close(AdaptiveTimesteps().times(u), u, rtol=0, atol=1e-12)


def test_times_invert_the_distribution():
    times = trained(64, 50)
    u = torch.linspace(0.001, 0.999, 997, dtype=torch.float64)
    t = times.times(u)
    assert (t.diff() > 0).all()
    edges = torch.cat((torch.zeros(1, dtype=torch.float64), times.probabilities().cumsum(0)))
    position = t * BINS
    place = position.long()
    back = edges[place] + (position - place) * times.probabilities()[place]
    torch.testing.assert_close(back, u, rtol=0, atol=1e-12)


def test_the_loss_becomes_linear_in_u():
    """L(t(u)) plus the stated slope rises by equal amounts over equal parts of u."""
    times = trained(256, 400)
    t = times.times(torch.linspace(0, 1, 11, dtype=torch.float64))
    level = curve(t) + SLOPE * curve((torch.arange(BINS) + 0.5) / BINS).mean() * t
    rises = level.diff() / (level[-1] - level[0])
    assert (rises - 0.1).abs().max() < 0.012
    # Without adaption the same parts rise from 0.02 to 0.26.
    even = curve(torch.linspace(0, 1, 11)).diff()
    assert even.max() / even.sum() > 0.2


def test_one_update_counts_each_loss_once():
    times = AdaptiveTimesteps()
    t, loss = torch.tensor([0.105, 0.101, 0.995]), torch.tensor([0.5, 0.3, 2.0])
    times.update(times.binned(t, loss))
    assert times.counts[10] == 2 and times.counts[99] == 1 and times.counts.sum() == 3
    assert times.sums[10].item() == pytest.approx(0.8) and times.sums[99] == 2
    estimate = times.losses()
    assert estimate[99].item() == pytest.approx((2 + PRIOR * 0.995) / (1 + PRIOR))
    times.update(times.binned(t, loss))
    # Sums and counts decay alike, so a mean of equal losses is that loss: no bias to zero.
    assert (times.sums[99] / times.counts[99]).item() == pytest.approx(2)
    assert times.counts[99].item() == pytest.approx(1 + DECAY)


def covered(times):
    """How many bins hold 90% of the probability."""
    cumulative = times.probabilities().sort(descending=True).values.cumsum(0)
    return int((cumulative < 0.9).sum()) + 1


@pytest.mark.parametrize("batch", (1, 4, 512))
@pytest.mark.parametrize("noise", (0.0, 0.3))
def test_sampling_never_collapses(batch, noise):
    """From the first update on, at every batch size, with a loss that is flat at first as an untrained model's is."""

    def loss(t):
        return (1 - progress) * torch.ones_like(t) + progress * curve(t)

    times, generator = AdaptiveTimesteps(), torch.Generator().manual_seed(1)
    for step in range(150):
        progress = max(0, (step - 50) / 100)
        t = times.times(torch.rand(batch, generator=generator, dtype=torch.float64))
        jitter = noise * torch.randn(batch, generator=generator, dtype=torch.float64)
        times.update(times.binned(t, loss(t) * (1 + jitter)))
        mass = times.probabilities()
        assert mass.min() > 1e-4 and mass.sum().item() == pytest.approx(1)
        assert covered(times) >= 25, step


def test_the_public_port_collapses():
    """What the tests above rule out: an average that starts at zero, without correction, gives two bins everything."""
    average = torch.zeros(BINS, dtype=torch.float64)
    t = uniforms(2)
    average[(t * BINS).long()] = (1 - DECAY) * 1.0
    rise = average.diff().clamp(min=0)
    assert (rise > 0).sum() <= 2
    ours = AdaptiveTimesteps()
    ours.update(ours.binned(t, torch.ones(2, dtype=torch.float64)))
    assert covered(ours) > 60


def test_isotonic_regression():
    values = torch.tensor([1.0, 3.0, 2.0, 2.0, 5.0, 4.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 1.0, 1.0, 2.0, 1.0, 3.0], dtype=torch.float64)
    expected = torch.tensor([1.0, 2.25, 2.25, 2.25, 4.25, 4.25], dtype=torch.float64)
    torch.testing.assert_close(isotonic(values, weights), expected)
    rising = uniforms(50).sort().values
    torch.testing.assert_close(isotonic(rising, uniforms(50, 1) + 0.1), rising)
