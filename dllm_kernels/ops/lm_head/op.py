"""lm_head: a token for every position (reference.py has the formula), by the variant that is to compute it.

skinny      few rows: a packed weight, read once (CUDA)
persistent  many rows on Hopper: the weight as it is (CUDA)
library     everything else: Triton, chunks of a library's logits (CUDA), PyTorch
"""

import torch
from torch import Tensor

from dllm_kernels.ops.call import none_as_empty
from dllm_kernels.ops.dispatch import FLOATING, select
from dllm_kernels.ops.linear.packing import PackedWeight
from dllm_kernels.ops.lm_head import persistent
from dllm_kernels.ops.lm_head.call import validate_shared
from dllm_kernels.ops.lm_head.library import HALF
from dllm_kernels.ops.lm_head.skinny import lm_head_skinny


@torch.library.custom_op("dllm_kernels::lm_head", mutates_args=())
def _lm_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    temperature: Tensor,
    seed: Tensor,
    first_sample: Tensor,
    logprobs: bool = False,
    batch_invariant: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`lm_head`, with an empty tensor for no log-probabilities, since an op always returns as many tensors."""
    _validate(hidden, weight, bias, temperature, seed, first_sample)
    if backend == "auto" and not batch_invariant and persistent.supports(hidden, weight, bias):
        return persistent.lm_head_persistent(hidden.contiguous(), weight, bias, temperature, seed, first_sample, logprobs)
    if backend == "auto" and hidden.dtype == torch.float64:
        backend = "torch"
    function = select("lm_head", hidden.device, backend).function
    with torch.autocast(hidden.device.type, enabled=False):
        return function(hidden, weight, bias, temperature, seed, first_sample, logprobs, batch_invariant)


@_lm_head.register_fake
def _(hidden, weight, bias, temperature, seed, first_sample, logprobs=False, batch_invariant=False, backend="auto"):
    _validate(hidden, weight, bias, temperature, seed, first_sample)
    tokens = hidden.new_empty(hidden.shape[:2], dtype=torch.int64)
    return tokens, hidden.new_empty(hidden.shape[:2], dtype=torch.float32) if logprobs else none_as_empty(
        hidden, None, torch.float32
    )


def lm_head(
    hidden: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor,
    temperature: Tensor,
    seed: Tensor,
    first_sample: Tensor,
    logprobs: bool = False,
    batch_invariant: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """A token for every position, and on request its log-probability. For inference: it has no gradient.

    Args:
        hidden: [B, T, d] float32, bfloat16, float16, or float64 (served by "torch").
        weight: [V, d], contiguous, of hidden's dtype; or bfloat16 or float16 under a float32 hidden; or packed
            (skinny.select_config), with a contiguous bfloat16 hidden and a float32 bias.
        bias: [V], float32 or weight's dtype.
        temperature: float32 scalar tensor, not negative; 0 takes the largest logit.
        seed, first_sample: int64 scalar tensors; sample j of the batch is sample `first_sample + j` of the seed.
        logprobs: whether log-probabilities are returned.
        batch_invariant: a sample's result is the same bit for bit in every batch.
        backend: "auto", "cuda", "triton" or "torch".

    All tensors are on one device. The scalars are read there, without synchronisation, so a captured graph reads new values.

    Returns:
        tokens [B, T] int64. The lowest index wins a tie; NaN counts as +inf.
        log-probabilities [B, T] float32 of the tokens under softmax(logits), that is at temperature 1, or None; NaN where a
        logit is NaN or +inf or all are -inf. Logits are float32 (float64 for float64).

    Raises:
        ValueError: a shape, dtype or device does not fit, T times V rounded up to a multiple of 4 is 2^32 or more, or the
            backend is unknown.
        RuntimeError: the backend cannot run on the device.
    """
    if isinstance(weight, PackedWeight):
        return lm_head_skinny(hidden, weight, bias, temperature, seed, first_sample, logprobs)
    tokens, logprob = _lm_head(hidden, weight, bias, temperature, seed, first_sample, logprobs, batch_invariant, backend)
    return tokens, logprob if logprobs else None


def _validate(hidden, weight, bias, temperature, seed, first_sample) -> None:
    if hidden.ndim != 3 or hidden.numel() == 0 or hidden.dtype not in FLOATING:
        raise ValueError(f"hidden is {hidden.dtype} {list(hidden.shape)}; it must be a floating-point [B, T, d] and not empty")
    width = hidden.shape[-1]
    if weight.ndim != 2 or weight.shape[1] != width or len(weight) == 0:
        raise ValueError(f"weight has shape {list(weight.shape)}; it must be [V, {width}] and not empty")
    dtypes = (hidden.dtype, *(HALF if hidden.dtype == torch.float32 else ()))
    if weight.dtype not in dtypes:
        allowed = " or ".join(map(str, dtypes))
        raise ValueError(f"weight is {weight.dtype} under a {hidden.dtype} hidden; it must be {allowed}")
    if not weight.is_contiguous():
        raise ValueError(f"weight has strides {weight.stride()}; it must be contiguous")
    if tuple(bias.shape) != (len(weight),) or bias.dtype not in (torch.float32, weight.dtype) or not bias.is_contiguous():
        allowed = f"a contiguous [{len(weight)}], torch.float32 or {weight.dtype}"
        raise ValueError(f"bias is {bias.dtype} {list(bias.shape)}; it must be {allowed}")
    validate_shared(hidden, weight, len(weight), bias, temperature, seed, first_sample)
