"""denoise_update: one step of any solver of diffusion/solver.py, z <- a z + b z0 + c z0_previous + s eps, in one pass.

z0 is the denoiser's prediction, or u + w (c - u) of a conditional c and an unconditional u under classifier-free guidance
(Ho and Salimans, arXiv:2207.12598); the prediction may come before its output norm (ops/modulate/op.py), which is then applied
here. The same pass writes the denoiser's next input, and the row statistics that a folded LayerNorm needs of it.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dllm_kernels.diffusion.noise import STEP_NOISE, normals
from dllm_kernels.ops.call import custom_op
from dllm_kernels.ops.dispatch import FLOATING, implementation, select, triton_unsupported_reason
from dllm_kernels.ops.extension import cuda_unsupported_reason, launch
from dllm_kernels.ops.kernels import LIMITS
from dllm_kernels.ops.linear.reference import row_statistics
from dllm_kernels.ops.modulate.op import modulate
from dllm_kernels.ops.modulate.op import reference as modulate_reference
from dllm_kernels.ops.noise.op import validate_scalars

_CUDA_DTYPES = (torch.float32, torch.bfloat16)
_LIMITS = LIMITS["denoise_update"]


def reference(
    latents: Tensor,
    prediction: Tensor,
    previous: Tensor | None,
    coefficients: Tensor,
    step: int,
    seed: Tensor,
    first_sample: Tensor,
    shift: Tensor | None = None,
    guidance_scale: Tensor | None = None,
    norm_scale: Tensor | None = None,
    norm_shift: Tensor | None = None,
    noise: bool = False,
    self_condition: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(new latents, z0, next input), all of latents' dtype, in plain PyTorch; arguments as in `denoise_update`."""
    z0 = prediction.to(latents.dtype)
    if norm_scale is not None:
        z0 = modulate_reference(z0, norm_scale, norm_shift)
    if guidance_scale is not None:
        conditional, unconditional = z0.chunk(2)
        z0 = unconditional + guidance_scale.to(z0.dtype) * (conditional - unconditional)
    a, b, c, s = coefficients[step].unbind()
    new = a * latents + b * z0
    if previous is not None:
        new = new + c * previous
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


@dataclass(frozen=True)
class DenoiseUpdate:
    """A call of denoise_update; the names are those of csrc/include/dllm/kernels.h, and `denoise_update` explains them."""

    latents: Tensor
    prediction: Tensor
    previous: Tensor | None
    next_input: Tensor
    coefficients: Tensor
    step: int
    seed: Tensor
    first_sample: Tensor
    shift: Tensor | None
    guidance_scale: Tensor | None
    norm_scale: Tensor | None
    norm_shift: Tensor | None
    statistics: Tensor | None
    noise: bool
    backend: str

    @property
    def batch(self) -> int:
        """B."""
        return self.latents.shape[0]

    @property
    def length(self) -> int:
        """T."""
        return self.latents.shape[1]

    @property
    def width(self) -> int:
        """d_z."""
        return self.latents.shape[2]

    @property
    def prediction_dtype(self) -> torch.dtype:
        """Of the prediction."""
        return self.prediction.dtype

    @property
    def next_input_dtype(self) -> torch.dtype:
        """Of the next input."""
        return self.next_input.dtype

    @property
    def self_condition(self) -> bool:
        """Whether the next input holds z0 beside the latents."""
        return self.next_input.shape[-1] != self.width


def _cuda_unsupported_reason(call: DenoiseUpdate) -> str | None:
    """Why the CUDA kernel does not take these tensors, or None."""
    for name, dtypes in (("latents", _CUDA_DTYPES[:1]), ("prediction", _CUDA_DTYPES), ("next_input", _CUDA_DTYPES)):
        dtype = getattr(call, name).dtype
        if dtype not in dtypes:
            return f"takes {name} of {' or '.join(str(dtype) for dtype in dtypes)}, not {dtype}"
    width = call.latents.shape[-1]
    multiple, most = _LIMITS["width_multiple"], _LIMITS["max_width"]
    if width % multiple or width > most:
        return f"takes widths that are multiples of {multiple} up to {most}, not {width}"
    for name, tensor in vars(call).items():
        # Four values are one access.
        if isinstance(tensor, Tensor) and tensor.ndim > 0 and tensor.data_ptr() % (4 * tensor.element_size()):
            return f"takes {name} at an address that is a multiple of four values"
    return None


# The vectors reach the kernel in float32, which is what a plan has.
@implementation("denoise_update", "cuda", cuda_unsupported_reason)
def _cuda(call: DenoiseUpdate) -> None:
    reason = _cuda_unsupported_reason(call)
    if reason is not None:
        raise ValueError(f"the cuda implementation of denoise_update {reason}")
    vectors = {name: getattr(call, name) for name in ("shift", "norm_scale", "norm_shift")}
    call = replace(call, **{name: None if vector is None else vector.float() for name, vector in vectors.items()})
    launch("denoise_update", call, call.latents.device)


@implementation("denoise_update", "triton", triton_unsupported_reason)
def _triton(call: DenoiseUpdate) -> None:
    if call.latents.dtype == torch.float64:
        raise ValueError("the triton implementation of denoise_update computes in float32, and latents are float64")
    from dllm_kernels.ops.denoise_update.triton import denoise_update

    prediction = call.prediction
    if call.norm_scale is not None:
        # In float32, since the normalised prediction is not rounded.
        prediction = modulate(prediction.float(), call.norm_scale, call.norm_shift, backend="triton")
    with torch.cuda.device_of(call.latents):
        denoise_update(
            call.latents,
            prediction,
            call.previous,
            call.next_input,
            call.coefficients,
            call.step,
            call.seed,
            call.first_sample,
            call.shift,
            call.guidance_scale,
            call.noise,
        )
    if call.statistics is not None:
        call.statistics.copy_(row_statistics(call.next_input))


@implementation("denoise_update", "torch")
def _torch(call: DenoiseUpdate) -> None:
    inputs = {name: value for name, value in vars(call).items() if name not in ("next_input", "statistics", "backend")}
    next_input, statistics = call.next_input, call.statistics
    new, z0, values = reference(**inputs, self_condition=call.self_condition)
    call.latents.copy_(new)
    if call.previous is not None:
        call.previous.copy_(z0)
    next_input.copy_(values)
    if statistics is not None:
        statistics.copy_(row_statistics(next_input))


def _backend(call: DenoiseUpdate) -> str:
    """What "auto" stands for where the first implementation that runs on the device does not take these tensors."""
    if call.backend != "auto":
        return call.backend
    if call.latents.dtype == torch.float64:
        return "torch"
    if call.latents.is_cuda and _cuda_unsupported_reason(call) is not None:
        return "triton" if triton_unsupported_reason(call.latents.device) is None else "torch"
    return "auto"


def _run(call: DenoiseUpdate) -> None:
    _validate(call)
    select("denoise_update", call.latents.device, _backend(call)).function(call)


_denoise_update = custom_op(
    "denoise_update",
    DenoiseUpdate,
    _run,
    lambda call: _validate(call),
    "()",
    ("latents", "previous", "next_input", "statistics"),
)


def denoise_update(
    latents: Tensor,
    prediction: Tensor,
    previous: Tensor | None,
    next_input: Tensor,
    coefficients: Tensor,
    step: int,
    seed: Tensor,
    first_sample: Tensor,
    shift: Tensor | None = None,
    guidance_scale: Tensor | None = None,
    norm_scale: Tensor | None = None,
    norm_shift: Tensor | None = None,
    statistics: Tensor | None = None,
    noise: bool = False,
    backend: str = "auto",
) -> None:
    """Takes row `step` of a solver's table, in place, and writes the denoiser's next input.

    With (a, b, c, s) = coefficients[step]: latents <- a latents + b z0 + c previous + s eps, then previous <- z0. A row
    (0, 1, 0, 0) leaves exactly z0 in latents, provided that latents and previous are finite.

    Args:
        latents: [B, T, d_z] float32 (or float64, served by "torch"); updated.
        prediction: [B, T, d_z], bfloat16 to float64: z0. With guidance_scale [2B, T, d_z]: B conditional samples, then the
            same B unconditional.
        previous: z0 of the step before, like latents; becomes z0. None for a solver that does not read it: c is ignored.
        next_input: bfloat16 to float64; written whole. [B, T, 2 d_z] gets the new latents and z0 side by side
            (self-conditioning), [B, T, d_z] the new latents + shift. With guidance_scale 2B samples: the same B twice.
        coefficients: [N, 4] of latents' dtype.
        step: row of coefficients, from 0, and the step number of the noise.
        seed, first_sample: int64 scalar tensors; eps is the STEP_NOISE of samples `first_sample` on (diffusion/noise.py).
        shift: [d_z], bfloat16 to float64, or None; only without self-conditioning.
        guidance_scale: w, a float32 scalar tensor, or None for no guidance.
        norm_scale, norm_shift: [d_z], bfloat16 to float64, both or neither: the prediction is normalised first, each row
            as LayerNorm(x) (1 + norm_scale) + norm_shift with eps 1e-5, not rounded.
        statistics: [B T, 1, 2] float32 ([2B T, 1, 2] with guidance_scale) or None; written: of each row of next_input as it
            was rounded, the mean and the sum of squared deviations from it. Only without self-conditioning.
        noise: whether eps is drawn; without it s is ignored.
        backend: "auto", "cuda" (float32 latents, float32 or bfloat16 beside them, d_z a multiple of 4 up to 8192), "triton"
            or "torch".

    All tensors are contiguous and on one device; seed, first_sample, guidance_scale and coefficients are read there,
    without synchronisation. latents, previous, next_input and statistics share no memory with each other or with prediction.

    Raises:
        ValueError: a shape, dtype or device does not fit, the step is out of range, or the backend is unknown.
        RuntimeError: the backend cannot run on the device.
    """
    _denoise_update(
        DenoiseUpdate(
            latents,
            prediction,
            previous,
            next_input,
            coefficients,
            step,
            seed,
            first_sample,
            shift,
            guidance_scale,
            norm_scale,
            norm_shift,
            statistics,
            noise,
            backend,
        )
    )


def _validate(call: DenoiseUpdate) -> None:
    latents, next_input, coefficients = call.latents, call.next_input, call.coefficients
    if latents.ndim != 3 or latents.numel() == 0 or latents.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"latents are {latents.dtype} {list(latents.shape)}; they must be float32 or float64 [B, T, d_z] and not empty"
        )
    batch, length, width = latents.shape
    # Kernels count a sample's values of next_input in int32.
    if length * width >= 2**30:
        raise ValueError(f"a sample of {length} x {width} values is too large; it must have fewer than 2^30")
    rows = batch if call.guidance_scale is None else 2 * batch
    floating = "a floating-point dtype"
    for name, tensor, shapes, dtype in (
        ("previous", call.previous, [(batch, length, width)], latents.dtype),
        ("prediction", call.prediction, [(rows, length, width)], floating),
        ("next_input", next_input, [(rows, length, width), (rows, length, 2 * width)], floating),
        ("coefficients", coefficients, [(*coefficients.shape[:1], 4)], latents.dtype),
        ("shift", call.shift, [(width,)], floating),
        ("guidance_scale", call.guidance_scale, [()], torch.float32),
        ("norm_scale", call.norm_scale, [(width,)], floating),
        ("norm_shift", call.norm_shift, [(width,)], floating),
        ("statistics", call.statistics, [(rows * length, 1, 2)], torch.float32),
    ):
        if tensor is None:
            continue
        if tuple(tensor.shape) not in shapes:
            allowed = " or ".join("[N, 4]" if name == "coefficients" else str(list(shape)) for shape in shapes)
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {allowed}")
        if not (tensor.dtype in FLOATING if dtype is floating else tensor.dtype == dtype):
            raise ValueError(f"{name} is {tensor.dtype}; it must be {dtype}")
    for name in ("shift", "statistics"):
        if getattr(call, name) is not None and next_input.shape[-1] == 2 * width:
            raise ValueError(f"{name} does not go with self-conditioning, a next_input of {2 * width} features")
    if (call.norm_scale is None) != (call.norm_shift is None):
        raise ValueError("norm_scale and norm_shift go together: both or neither")
    if not 0 <= call.step < len(coefficients):
        raise ValueError(f"step {call.step} is out of range for coefficients of {len(coefficients)} rows")
    validate_scalars(call.seed, call.first_sample)
    for name, tensor in vars(call).items():
        if not isinstance(tensor, Tensor):
            continue
        if tensor.device != latents.device:
            raise ValueError(f"{name} is on {tensor.device} and latents on {latents.device}; they must share a device")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}; it must be contiguous")
