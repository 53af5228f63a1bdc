"""Initial noise in Triton: a program writes one run of one sample's normals (definition: op.py)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels.diffusion.noise import INITIAL_NOISE
from dllm_kernels.ops.ahead_of_time import Specialization
from dllm_kernels.ops.noise.triton_philox import normals

# One Philox call a thread; a sample of 64 x 2048 values then makes 256 programs, enough for 132 to 170 SMs.
_BLOCK, _NUM_WARPS = 512, 4


@triton.jit
def initial_noise_kernel(out, seed, first_sample, size, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    tiles = tl.cdiv(size, BLOCK)
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    first = tl.program_id(0) % tiles * BLOCK
    element = first + tl.arange(0, BLOCK)
    value = normals(tl.load(seed), first, 0, tl.load(first_sample) + sample, STREAM, BLOCK)
    tl.store(out + sample * size + element, value, mask=element < size)


def initial_noise(seed: Tensor, first_sample: Tensor, batch: int, seq_len: int, dim: int) -> Tensor:
    """Launches `initial_noise_kernel`: float32 [batch, seq_len, dim]."""
    out = torch.empty(batch, seq_len, dim, dtype=torch.float32, device=seed.device)
    size = seq_len * dim
    initial_noise_kernel[(batch * triton.cdiv(size, _BLOCK),)](
        out, seed, first_sample, size, STREAM=INITIAL_NOISE, BLOCK=_BLOCK, num_warps=_NUM_WARPS, enable_fp_fusion=True
    )
    return out


def ahead_of_time():
    """The one kernel, for every shape."""
    signature = dict(out="*fp32", seed="*i64", first_sample="*i64", size="i32", STREAM="constexpr", BLOCK="constexpr")
    constants = dict(STREAM=INITIAL_NOISE, BLOCK=_BLOCK)
    yield Specialization("initial_noise[fp32]", initial_noise_kernel, signature, constants, _NUM_WARPS, 1)
