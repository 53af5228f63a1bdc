"""A generation in float64, part by part, so that at most one part of the model is in float64 at a time."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_kernels.diffusion.schedule import NoiseSchedule
from dllm_kernels.diffusion.solver import coefficient_table, time_grid
from dllm_kernels.inference.weights import PACKED_MODULES
from dllm_kernels.model.ldlm import LDLM
from dllm_kernels.utils.device import free_memory

_VOCABULARY_CHUNK = 16_384


@dataclass(frozen=True)
class Exact:
    """What float64 gives for one sample: tokens [T] and latents [T, d_z], the final z0."""

    tokens: Tensor
    latents: Tensor


def ddim_steps(model: LDLM, steps: int) -> list[tuple[float, float, float]]:
    """(t, a, b) of every step of a DDIM generation: z <- a z + b z0(z, t)."""
    schedule = NoiseSchedule.from_config(model.config)
    times = time_grid(schedule, steps)
    table = coefficient_table(schedule, times, "ddim")
    return [(t, a, b) for t, (a, b, _, _) in zip(times.tolist(), table.tolist(), strict=False)]


def exact_device(model: LDLM) -> torch.device:
    """Where float64 is computed: the model's device, or the CPU where the device has no room for the largest part."""
    device = model.lm_head.weight.device
    largest = max(sum(p.numel() for p in part.parameters()) for name, part in model.named_children() if name in PACKED_MODULES)
    # Eight bytes a weight, and as much again for activations and logits.
    return device if 16 * largest < free_memory(device) else torch.device("cpu")


@torch.no_grad()
def exact_ddim(model: LDLM, steps: int, noise: Tensor, context: Tensor | None = None) -> Exact:
    """DDIM (arXiv:2010.02502, eq. 12 without noise) of one sample, on the model's device.

    Args:
        model: in any dtype.
        steps: N.
        noise: z_T [1, T, d_z].
        context: a prompt's hidden states [1, P, d_h], or None.
    """
    at = exact_device(model)
    denoiser, statistics = _double(model.denoiser, at), _double(model.statistics, at)
    context = None if context is None else statistics.standardize_hidden(context.to(at).double())
    z, previous = noise.to(at).double(), None
    for t, a, b in ddim_steps(model, steps):
        time = torch.full((1,), t, dtype=torch.float64, device=z.device)
        previous = denoiser(z, time, previous if model.config.self_conditioning else None, context)
        z = a * z + b * previous
    del denoiser
    return Exact(_tokens(model, z).to(noise.device), z[0].to(noise.device))


@torch.no_grad()
def exact_published(model: LDLM, last_noise: Tensor) -> Exact:
    """The published loop (baseline.py), whose result is its last noise [1, T, d_z]: its prediction is multiplied by zero."""
    z = 0.1 * last_noise.to(exact_device(model)).double()
    return Exact(_tokens(model, z).to(last_noise.device), z[0].to(last_noise.device))


def _tokens(model: LDLM, latents: Tensor) -> Tensor:
    raw = _double(model.statistics, latents.device).restore_latents(latents)
    hidden = _double(model.latent_decoder, latents.device)(raw, seq_len=raw.shape[1])
    hidden = _double(model.token_decoder, latents.device)(hidden)[0]
    head, best, tokens = model.lm_head, None, None
    for begin in range(0, len(head.weight), _VOCABULARY_CHUNK):
        rows = slice(begin, begin + _VOCABULARY_CHUNK)
        weight, bias = (tensor[rows].to(latents.device).double() for tensor in (head.weight, head.bias))
        value, index = (hidden @ weight.T + bias).max(dim=-1)
        better = torch.ones_like(index, dtype=torch.bool) if best is None else value > best
        best = value if best is None else torch.where(better, value, best)
        tokens = index + begin if tokens is None else torch.where(better, index + begin, tokens)
    return tokens


def _double(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    # `to` would change the module that it is given.
    return copy.deepcopy(module).to(device, torch.float64)
