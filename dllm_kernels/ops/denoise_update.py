"""denoise_update: one step of any solver of diffusion/solver.py, z <- a z + b z0 + c z0_previous + s eps, in one pass.

z0 is the denoiser's prediction, or u + w (c - u) of a conditional c and an unconditional u under classifier-free guidance
(Ho and Salimans, arXiv:2207.12598). The same pass writes the denoiser's next input.
"""

import torch
from torch import Tensor

from dllm_kernels.diffusion.noise import STEP_NOISE, normals
from dllm_kernels.extension import cuda_obstacle, load
from dllm_kernels.ops.dispatch import implementation, select, triton_obstacle
from dllm_kernels.ops.noise import validate_scalars

_CUDA_DTYPES = (torch.float32, torch.bfloat16)


def reference(
    latents: Tensor,
    prediction: Tensor,
    previous: Tensor,
    coefficients: Tensor,
    step: int,
    seed: Tensor,
    first_sample: Tensor,
    shift: Tensor | None = None,
    guidance_scale: Tensor | None = None,
    noise: bool = False,
    self_condition: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(new latents, z0, next input), all of latents' dtype, in plain PyTorch; arguments as in `denoise_update`."""
    z0 = prediction.to(latents.dtype)
    if guidance_scale is not None:
        conditional, unconditional = z0.chunk(2)
        z0 = unconditional + guidance_scale.to(z0.dtype) * (conditional - unconditional)
    a, b, c, s = coefficients[step].unbind()
    new = a * latents + b * z0 + c * previous
    if noise:
        eps = normals(seed, first_sample, step, STEP_NOISE, len(latents), latents[0].numel(), latents.device)
        new = new + s * eps.view_as(latents).to(latents.dtype)
    if self_condition:
        next_input = torch.cat((new, z0), dim=-1)
    else:
        next_input = new if shift is None else new + shift.to(new.dtype)
    if guidance_scale is not None:
        next_input = torch.cat((next_input, next_input))
    return new, z0, next_input


@implementation("denoise_update", "triton", triton_obstacle)
def _triton(
    latents, prediction, previous, next_input, coefficients, step, seed, first_sample, shift, guidance_scale, noise
) -> None:
    if latents.dtype == torch.float64:
        raise ValueError("the triton implementation of denoise_update computes in float32, and latents are float64")
    from dllm_kernels.kernels.denoise_update import denoise_update

    denoise_update(
        latents, prediction, previous, next_input, coefficients, step, seed, first_sample, shift, guidance_scale, noise
    )


@implementation("denoise_update", "cuda", cuda_obstacle)
def _cuda(
    latents, prediction, previous, next_input, coefficients, step, seed, first_sample, shift, guidance_scale, noise
) -> None:
    for name, tensor, dtypes in (
        ("latents", latents, _CUDA_DTYPES[:1]),
        ("prediction", prediction, _CUDA_DTYPES),
        ("next_input", next_input, _CUDA_DTYPES),
    ):
        if tensor.dtype not in dtypes:
            allowed = " or ".join(str(dtype) for dtype in dtypes)
            raise ValueError(f"the cuda implementation of denoise_update takes {name} of {allowed}, not {tensor.dtype}")
    # The kernel reads the shift in float32, which is what a plan has.
    shift = None if shift is None else shift.float()
    batch, length, width = latents.shape
    # The extension has a CUDA runtime of its own, which launches on the current device.
    with torch.cuda.device(latents.device):
        load().denoise_update(
            latents=latents.data_ptr(),
            prediction=prediction.data_ptr(),
            previous=previous.data_ptr(),
            next_input=next_input.data_ptr(),
            coefficients=coefficients.data_ptr(),
            seed=seed.data_ptr(),
            first_sample=first_sample.data_ptr(),
            shift=0 if shift is None else shift.data_ptr(),
            guidance_scale=0 if guidance_scale is None else guidance_scale.data_ptr(),
            step=step,
            batch=batch,
            length=length,
            width=width,
            prediction_dtype=str(prediction.dtype).removeprefix("torch."),
            next_input_dtype=str(next_input.dtype).removeprefix("torch."),
            noise=noise,
            self_condition=next_input.shape[-1] != width,
            stream=torch.cuda.current_stream(latents.device).cuda_stream,
        )


@implementation("denoise_update", "torch")
def _torch(
    latents, prediction, previous, next_input, coefficients, step, seed, first_sample, shift, guidance_scale, noise
) -> None:
    self_condition = next_input.shape[-1] != latents.shape[-1]
    new, z0, next_values = reference(
        latents, prediction, previous, coefficients, step, seed, first_sample, shift, guidance_scale, noise, self_condition
    )
    latents.copy_(new)
    previous.copy_(z0)
    next_input.copy_(next_values)


@torch.library.custom_op("dllm_kernels::denoise_update", mutates_args=("latents", "previous", "next_input"))
def denoise_update(
    latents: Tensor,
    prediction: Tensor,
    previous: Tensor,
    next_input: Tensor,
    coefficients: Tensor,
    step: int,
    seed: Tensor,
    first_sample: Tensor,
    shift: Tensor | None = None,
    guidance_scale: Tensor | None = None,
    noise: bool = False,
    backend: str = "auto",
) -> None:
    """Takes row `step` of a solver's table, in place, and writes the denoiser's next input.

    With (a, b, c, s) = coefficients[step]: latents <- a latents + b z0 + c previous + s eps, then previous <- z0. A row
    (0, 1, 0, 0) leaves exactly z0 in latents, provided that latents and previous are finite.

    Args:
        latents: [B, T, d_z] float32 (or float64, served by "torch"); updated.
        prediction: [B, T, d_z], any floating dtype: z0. With guidance_scale [2B, T, d_z]: B conditional samples, then the
            same B unconditional.
        previous: z0 of the step before, like latents; becomes z0.
        next_input: any floating dtype; written whole. [B, T, 2 d_z] gets the new latents and z0 side by side
            (self-conditioning), [B, T, d_z] the new latents + shift. With guidance_scale 2B samples: the same B twice.
        coefficients: [N, 4] of latents' dtype.
        step: row of coefficients, from 0, and the step number of the noise.
        seed, first_sample: int64 scalar tensors; eps is the STEP_NOISE of samples `first_sample` on (diffusion/noise.py).
        shift: [d_z], any floating dtype, or None; only without self-conditioning.
        guidance_scale: w, a float32 scalar tensor, or None for no guidance.
        noise: whether eps is drawn; without it s is ignored.
        backend: "auto", "triton", "cuda" (float32 latents, float32 or bfloat16 beside them) or "torch".

    All tensors are contiguous and on one device; seed, first_sample, guidance_scale and coefficients are read there,
    without synchronisation. latents, previous and next_input share no memory with each other or with prediction.

    Raises:
        ValueError: a shape, dtype or device does not fit, the step is out of range, or the backend is unknown.
        RuntimeError: the backend cannot run on the device.
    """
    _validate(latents, prediction, previous, next_input, coefficients, step, seed, first_sample, shift, guidance_scale)
    if backend == "auto" and latents.dtype == torch.float64:
        backend = "torch"
    select("denoise_update", latents.device, backend).function(
        latents, prediction, previous, next_input, coefficients, step, seed, first_sample, shift, guidance_scale, noise
    )


@denoise_update.register_fake
def _(
    latents,
    prediction,
    previous,
    next_input,
    coefficients,
    step,
    seed,
    first_sample,
    shift=None,
    guidance_scale=None,
    noise=False,
    backend="auto",
):
    _validate(latents, prediction, previous, next_input, coefficients, step, seed, first_sample, shift, guidance_scale)


def _validate(latents, prediction, previous, next_input, coefficients, step, seed, first_sample, shift, guidance_scale) -> None:
    if latents.ndim != 3 or latents.numel() == 0 or latents.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"latents are {latents.dtype} {list(latents.shape)}; they must be float32 or float64 [B, T, d_z] and not empty"
        )
    batch, length, width = latents.shape
    # Kernels count a sample's values of next_input in int32.
    if length * width >= 2**30:
        raise ValueError(f"a sample of {length} x {width} values is too large; it must have fewer than 2^30")
    rows = batch if guidance_scale is None else 2 * batch
    floating = "a floating-point dtype"
    for name, tensor, shapes, dtype in (
        ("previous", previous, [(batch, length, width)], latents.dtype),
        ("prediction", prediction, [(rows, length, width)], floating),
        ("next_input", next_input, [(rows, length, width), (rows, length, 2 * width)], floating),
        ("coefficients", coefficients, [(*coefficients.shape[:1], 4)], latents.dtype),
        ("shift", shift, [(width,)], floating),
        ("guidance_scale", guidance_scale, [()], torch.float32),
    ):
        if tensor is None:
            continue
        if tuple(tensor.shape) not in shapes:
            allowed = " or ".join("[N, 4]" if name == "coefficients" else str(list(shape)) for shape in shapes)
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {allowed}")
        if not (tensor.is_floating_point() if dtype is floating else tensor.dtype == dtype):
            raise ValueError(f"{name} is {tensor.dtype}; it must be {dtype}")
    if shift is not None and next_input.shape[-1] == 2 * width:
        raise ValueError(f"shift does not go with self-conditioning, a next_input of {2 * width} features")
    if not 0 <= step < len(coefficients):
        raise ValueError(f"step {step} is out of range for coefficients of {len(coefficients)} rows")
    validate_scalars(seed, first_sample)
    named = dict(prediction=prediction, previous=previous, next_input=next_input, coefficients=coefficients)
    for name, tensor in (named | dict(latents=latents, shift=shift, guidance_scale=guidance_scale, seed=seed)).items():
        if tensor is not None and tensor.device != latents.device:
            raise ValueError(f"{name} is on {tensor.device} and latents on {latents.device}; they must share a device")
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}; it must be contiguous")
