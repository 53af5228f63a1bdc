"""The solver's update in Triton: a program takes one run of one sample's values (definition: op.py)."""

import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels.diffusion.noise import STEP_NOISE
from dllm_kernels.ops.ahead_of_time import Specialization
from dllm_kernels.ops.noise.triton_philox import normals

# Four values, one Philox call, a thread; a sample of 64 x 2048 values makes 256 programs, enough for 132 to 170 SMs.
_BLOCK, _NUM_WARPS = 512, 4


# Triton compiles again for integers that are 1 or divisible by 16, which steps must not cause inside the sampling loop,
# and makes a 1 a constant, which cannot be widened as `batch` is.
@triton.jit(do_not_specialize=["step", "batch"])
def denoise_update_kernel(
    latents,
    prediction,
    previous,
    next_input,
    coefficients,
    seed,
    first_sample,
    shift,
    guidance_scale,
    step,
    batch,
    size,
    width,
    SELF_CONDITION: tl.constexpr,
    NOISE: tl.constexpr,
    STREAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tiles = tl.cdiv(size, BLOCK)
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    first = tl.program_id(0) % tiles * BLOCK
    element = first + tl.arange(0, BLOCK)
    inside = element < size
    here = sample * size + element
    # Guided batches hold a second half, `half` samples on.
    half = batch.to(tl.int64) * size

    z0 = tl.load(prediction + here, mask=inside).to(tl.float32)
    if guidance_scale is not None:
        unconditional = tl.load(prediction + half + here, mask=inside).to(tl.float32)
        z0 = unconditional + tl.load(guidance_scale) * (z0 - unconditional)
    a, b = tl.load(coefficients + 4 * step), tl.load(coefficients + 4 * step + 1)
    c, s = tl.load(coefficients + 4 * step + 2), tl.load(coefficients + 4 * step + 3)
    new = a * tl.load(latents + here, mask=inside) + b * z0
    if previous is not None:
        new += c * tl.load(previous + here, mask=inside)
    if NOISE:
        new += s * normals(tl.load(seed), first, step, tl.load(first_sample) + sample, STREAM, BLOCK)
    tl.store(latents + here, new, mask=inside)
    if previous is not None:
        tl.store(previous + here, z0, mask=inside)

    if SELF_CONDITION:
        there = 2 * sample * size + element // width * width + element
        tl.store(next_input + there, new, mask=inside)
        tl.store(next_input + there + width, z0, mask=inside)
        if guidance_scale is not None:
            tl.store(next_input + 2 * half + there, new, mask=inside)
            tl.store(next_input + 2 * half + there + width, z0, mask=inside)
    else:
        if shift is not None:
            new += tl.load(shift + element % width, mask=inside).to(tl.float32)
        tl.store(next_input + here, new, mask=inside)
        if guidance_scale is not None:
            tl.store(next_input + half + here, new, mask=inside)


def denoise_update(
    latents: Tensor,
    prediction: Tensor,
    previous: Tensor | None,
    next_input: Tensor,
    coefficients: Tensor,
    step: int,
    seed: Tensor,
    first_sample: Tensor,
    shift: Tensor | None,
    guidance_scale: Tensor | None,
    noise: bool,
) -> None:
    """Launches `denoise_update_kernel`; shapes as in op.py."""
    batch, length, width = latents.shape
    denoise_update_kernel[(batch * triton.cdiv(length * width, _BLOCK),)](
        latents,
        prediction,
        previous,
        next_input,
        coefficients,
        seed,
        first_sample,
        shift,
        guidance_scale,
        step,
        batch,
        length * width,
        width,
        SELF_CONDITION=next_input.shape[-1] != width,
        NOISE=noise,
        STREAM=STEP_NOISE,
        BLOCK=_BLOCK,
        num_warps=_NUM_WARPS,
        enable_fp_fusion=True,
    )


def ahead_of_time():
    """Both forms of the next input, without and with noise, guidance and the prediction before."""
    fp32 = dict.fromkeys(("latents", "previous", "coefficients"), "*fp32")
    common = fp32 | dict(prediction="*bf16", next_input="*bf16", seed="*i64", first_sample="*i64")
    common |= dict.fromkeys(("step", "batch", "size", "width"), "i32")
    common |= dict.fromkeys(("SELF_CONDITION", "NOISE", "STREAM", "BLOCK"), "constexpr")
    for self_condition in (False, True):
        for extras in (False, True):
            signature, constants = dict(common), dict(STREAM=STEP_NOISE, BLOCK=_BLOCK)
            constants |= dict(SELF_CONDITION=self_condition, NOISE=extras)
            for name, present in (("shift", not self_condition), ("guidance_scale", extras), ("previous", extras)):
                signature[name] = "*fp32" if present else "constexpr"
                constants |= {} if present else {name: None}
            form = "self-conditioned" if self_condition else "shift"
            name = f"denoise_update[bf16, {form}{', noise, guidance, previous' * extras}]"
            yield Specialization(name, denoise_update_kernel, signature, constants, _NUM_WARPS, 1)
