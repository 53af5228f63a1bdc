"""initial_noise: z_T[j, e] = normal e of sample first_sample + j of the seed, stream INITIAL_NOISE (diffusion/noise.py)."""

import torch
from torch import Tensor

from dllm_kernels.diffusion.noise import INITIAL_NOISE, normals
from dllm_kernels.ops.dispatch import implementation, select, triton_unsupported_reason


def reference(seed: Tensor, first_sample: Tensor, batch: int, seq_len: int, dim: int, dtype: torch.dtype) -> Tensor:
    """`initial_noise` in plain PyTorch: computed in float64, rounded once."""
    values = normals(seed, first_sample, 0, INITIAL_NOISE, batch, seq_len * dim, seed.device)
    return values.view(batch, seq_len, dim).to(dtype)


@implementation("initial_noise", "triton", triton_unsupported_reason)
def _triton(seed: Tensor, first_sample: Tensor, batch: int, seq_len: int, dim: int, dtype: torch.dtype) -> Tensor:
    if dtype == torch.float64:
        raise ValueError("the triton implementation of initial_noise computes in float32, and dtype is float64")
    from dllm_kernels.ops.noise.triton import initial_noise

    with torch.cuda.device_of(seed):
        return initial_noise(seed, first_sample, batch, seq_len, dim)


implementation("initial_noise", "torch")(reference)


@torch.library.custom_op("dllm_kernels::initial_noise", mutates_args=())
def initial_noise(
    seed: Tensor, first_sample: Tensor, batch: int, seq_len: int, dim: int, dtype: torch.dtype, backend: str = "auto"
) -> Tensor:
    """The standard normals that sampling starts from, the same for a sample in every batch.

    Args:
        seed, first_sample: int64 scalar tensors on the device that gets the noise; read there, without synchronisation.
        batch, seq_len, dim: shape of the result; sample j of it is sample `first_sample + j` of the seed.
        dtype: torch.float32 or torch.float64.
        backend: "auto", "triton" or "torch"; float64 is served by "torch".

    Returns:
        [batch, seq_len, dim] of `dtype`; backends agree within 1e-6.

    Raises:
        ValueError: a shape, dtype or device does not fit, or the backend is unknown.
        RuntimeError: the backend cannot run on the device.
    """
    _validate(seed, first_sample, batch, seq_len, dim, dtype)
    if backend == "auto" and dtype == torch.float64:
        backend = "torch"
    return select("initial_noise", seed.device, backend).function(seed, first_sample, batch, seq_len, dim, dtype)


@initial_noise.register_fake
def _(seed, first_sample, batch, seq_len, dim, dtype, backend="auto"):
    _validate(seed, first_sample, batch, seq_len, dim, dtype)
    return seed.new_empty((batch, seq_len, dim), dtype=dtype)


def _validate(seed: Tensor, first_sample: Tensor, batch: int, seq_len: int, dim: int, dtype: torch.dtype) -> None:
    validate_scalars(seed, first_sample)
    if min(batch, seq_len, dim) < 1:
        raise ValueError(f"the noise's shape [{batch}, {seq_len}, {dim}] must have no dimension below 1")
    if seq_len * dim >= 2**31:
        raise ValueError(f"a sample of {seq_len} x {dim} values is too large; it must have fewer than 2^31")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype is {dtype}; it must be torch.float32 or torch.float64")


def validate_scalars(seed: Tensor, first_sample: Tensor) -> None:
    """Raises ValueError unless both are int64 scalar tensors on one device."""
    for name, scalar in (("seed", seed), ("first_sample", first_sample)):
        if scalar.dtype != torch.int64 or scalar.ndim != 0:
            raise ValueError(f"{name} is {scalar.dtype} {list(scalar.shape)}; it must be an int64 scalar tensor")
    if seed.device != first_sample.device:
        raise ValueError(f"seed is on {seed.device} and first_sample on {first_sample.device}; they must share a device")
