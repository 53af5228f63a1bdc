"""Sampling written out from docs/design.md, section "Sampling", on the model itself: what a plan must reproduce."""

import torch

from dllm_kernels.diffusion.noise import INITIAL_NOISE, STEP_NOISE, normals
from dllm_kernels.diffusion.schedule import NoiseSchedule
from dllm_kernels.diffusion.solver import coefficient_table, time_grid


@torch.no_grad()
def reference_sample(
    model,
    num_steps=10,
    batch_size=1,
    seq_len=None,
    solver="ddim",
    eta=0.0,
    grid="t",
    seed=0,
    first_sample=0,
    noise=None,
    context=None,
    context_mask=None,
    guidance_scale=None,
):
    """(latents [B, T, d_z], logits [B, T, V]) in the model's dtype; the solver's state in float64 for a float64 model."""
    config, parameter = model.config, next(model.parameters())
    dtype, state = parameter.dtype, torch.promote_types(parameter.dtype, torch.float32)
    seq_len = seq_len or config.seq_len
    schedule = NoiseSchedule.from_config(config)
    times = time_grid(schedule, num_steps, grid)
    table = coefficient_table(schedule, times, solver, eta)
    shape = (batch_size, seq_len, config.latent_dim)

    def draw(step, stream):
        return normals(seed, first_sample, step, stream, batch_size, seq_len * config.latent_dim).view(shape).to(state)

    z = draw(0, INITIAL_NOISE) if noise is None else noise.to(state)
    previous = None
    for step, (a, b, c, s) in enumerate(table.tolist()):
        t = times[step].expand(batch_size)
        condition = previous.to(dtype) if previous is not None and config.self_conditioning else None
        z0 = model.denoise(z.to(dtype), t, condition, context, context_mask).to(state)
        if guidance_scale is not None:
            unconditional = model.denoise(z.to(dtype), t, condition).to(state)
            z0 = unconditional + guidance_scale * (z0 - unconditional)
        z = a * z + b * z0 + (0 if previous is None else c * previous)
        if s:
            z = z + s * draw(step, STEP_NOISE)
        previous = z0
    return z, model.logits(model.decode(z.to(dtype)))
