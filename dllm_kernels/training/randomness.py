"""What is drawn in a training step: keyed by (seed, step, sample), so that it does not depend on who computes the sample.

Sample i of step s's batch, over all processes, is number s B + i of the run. Its noise is sample number s B + i of the
initial noise (ops/noise/op.py), its uniforms are words of step s and sample i (diffusion/noise.py).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dllm_kernels.diffusion.noise import uniforms, words
from dllm_kernels.ops.noise.op import initial_noise

TRAINING_UNIFORMS = 3
"""The stream of the uniforms; 0 to 2 are in diffusion/noise.py."""

_KEY = 0x7472_6169_6E00_0000
"""Added to the seed, so that training's noise is not that of a sampler with the same seed."""

HELD_OUT_STEP = 2**32 - 1
"""The step of held-out losses, which are drawn alike each time."""


class Draws(NamedTuple):
    """The randomness of one process's part of a step.

    Attributes:
        noise: [B, T, d_z] float32, eps of the diffusion.
        decoder_noise: [B, T, d_z] float32, eps of the decoder's input.
        time: [B] uniform in (0, 1); u of the time.
        self_conditioned: [B] uniform; below the probability, the sample self-conditions.
        context_dropped: [B] uniform; below the probability, the sample's prompt is dropped.
        guidance: [B] uniform; the place of the sample's guidance scale in its range.
        previous_noise: [B, T, d_z] float32, eps of the self-conditioning input; None where it gets no noise.
    """

    noise: Tensor
    decoder_noise: Tensor
    time: Tensor
    self_conditioned: Tensor
    context_dropped: Tensor
    guidance: Tensor
    previous_noise: Tensor | None = None


def draw(
    seed: int,
    step: int,
    batch_size: int,
    first: int,
    batch: int,
    shape: tuple[int, int],
    device: torch.device | str,
    previous_noise: bool = False,
) -> Draws:
    """The draws of samples `first` to `first + batch` of the `batch_size` of step `step`; shape is (T, d_z), and
    `previous_noise` says whether that noise is drawn too.

    Nothing is read back to the host, and nothing is copied to the device.
    """
    length, features = shape
    # A fill is a kernel; a tensor made from a number on the host would be copied, and the copy waited for.
    key = torch.full((), (seed + _KEY) % 2**63, dtype=torch.int64, device=device)
    number = torch.full((), step * batch_size + first, dtype=torch.int64, device=device)
    parts = initial_noise(key, number, batch, length, (3 if previous_noise else 2) * features, torch.float32).split(
        features, -1
    )
    u = uniforms(words(key, first, step, TRAINING_UNIFORMS, batch, torch.arange(4, device=device)))
    return Draws(parts[0], parts[1], *u.unbind(1), *parts[2:])
