"""Counter-based noise: any value of any sample can be made on its own, on any backend, in any batch.

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a 64-bit key and a 128-bit
counter to four 32-bit words. The key is the seed. Value e of a sample's row-major array is word e % 4 of the counter

    (e // 4, step, sample, stream),

so one Philox call serves four neighbours. A sample's number has 56 bits: the upper 24 are in the upper bits of the stream's
word. This file is the truth in PyTorch integer arithmetic; ops/noise/triton_philox.py is the same in Triton.
"""

import math

import torch
from torch import Tensor

INITIAL_NOISE, STEP_NOISE, GUMBEL_NOISE = 0, 1, 2
"""Streams, one for each use of noise, so that no use repeats another's values."""

SAMPLES = 2**56
"""How many samples a seed has; their numbers begin at 0."""

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox(seed: int | Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of Philox 4x32-10.

    Args:
        seed: the 64-bit key, an int or an int64 scalar tensor (negative values stand for their two's complement).
        counter: four int64 tensors of values in [0, 2^32), broadcast against each other.

    Returns:
        Four int64 tensors of values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        # int64 products wrap modulo 2^64; the mask after the arithmetic shift leaves the unsigned upper half.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def uniforms(words: Tensor) -> Tensor:
    """Words in [0, 2^32) of any shape to float32 in (0, 1): odd multiples of 2^-24, which are exact and never 0 or 1."""
    return ((words >> 9).to(torch.float32) + 0.5) * 2.0**-23


def words(seed: int | Tensor, first_sample: int | Tensor, step: int, stream: int, batch: int, elements: Tensor) -> Tensor:
    """Random words of some values of `batch` samples.

    Args:
        seed: the 64-bit key, as of `philox`.
        first_sample: number of the first sample, an int or an int64 scalar tensor.
        step: of the solver, from 0.
        stream: one of the streams above.
        batch: samples.
        elements: [n] int64, numbers of the values within a sample: runs of 4 that begin at multiples of 4.

    Returns:
        [batch, len(elements)] int64 in [0, 2^32).
    """
    device = elements.device
    sample = torch.arange(batch, device=device).unsqueeze(1) + first_sample
    block = (elements[::4] // 4).unsqueeze(0).expand(batch, -1)
    four = philox(seed, (block, torch.full_like(block, step), (sample & _MASK), (stream | (sample >> 32) << 8) & _MASK))
    return torch.stack(torch.broadcast_tensors(*four), dim=-1).reshape(batch, -1)


def normals(
    seed: int | Tensor,
    first_sample: int | Tensor,
    step: int,
    stream: int,
    batch: int,
    size: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normals of `batch` samples from `first_sample` on, by the Box-Muller transform of neighbouring uniforms.

    Values 2i and 2i + 1 are sqrt(-2 ln u_2i) times the cosine and the sine of 2 pi u_(2i+1).

    Args:
        seed, first_sample, step, stream, batch: as of `words`.
        size: values of a sample.
        device: of the result.

    Returns:
        [batch, size] float64.
    """
    elements = torch.arange((size + 3) // 4 * 4, device=device)
    u = uniforms(words(seed, first_sample, step, stream, batch, elements)).double()
    radius, angle = torch.sqrt(-2 * torch.log(u[:, 0::2])), 2 * math.pi * u[:, 1::2]
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1).reshape(batch, -1)[:, :size].contiguous()


def gumbels(uniform: Tensor) -> Tensor:
    """Standard Gumbel values -ln(-ln u) of uniforms u in (0, 1), of any shape and floating-point dtype."""
    return -torch.log(-torch.log(uniform))
