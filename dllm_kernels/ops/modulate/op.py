"""modulate: y = LayerNorm(x) (1 + scale) + shift, the LayerNorm without gain or bias of its own.

With scale and shift it is the adaptive LayerNorm of DiT (Peebles and Xie, arXiv:2212.09748, section 3.2), without them a
plain LayerNorm. Variance is the mean of centred squares, never E[x^2] - mean^2, which cancels where the mean is large.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels.ops.dispatch import FLOATING, implementation, select, triton_unsupported_reason


def reference(x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """`modulate` in plain PyTorch, computed in float32 (float64 for float64) and rounded once."""
    y = F.layer_norm(x.to(torch.promote_types(x.dtype, torch.float32)), x.shape[-1:], eps=eps)
    if scale is not None:
        y = y * (1 + _rows(scale, x).to(y.dtype))
    if shift is not None:
        y = y + _rows(shift, x).to(y.dtype)
    return y.to(x.dtype)


def _rows(vectors: Tensor, x: Tensor) -> Tensor:
    """scale or shift in a shape that broadcasts over the tokens of x."""
    return vectors.unsqueeze(1) if vectors.ndim == 2 and x.ndim == 3 else vectors


@implementation("modulate", "triton", triton_unsupported_reason)
def _triton(x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float) -> Tensor:
    if x.dtype == torch.float64:
        raise ValueError("the triton implementation of modulate computes in float32, and x is float64")
    from dllm_kernels.ops.modulate.triton import modulate

    with torch.cuda.device_of(x):
        return modulate(x, scale, shift, eps)


implementation("modulate", "torch")(reference)


@torch.library.custom_op("dllm_kernels::modulate", mutates_args=())
def modulate(
    x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, eps: float = 1e-5, backend: str = "auto"
) -> Tensor:
    """LayerNorm over the last dimension without gain and bias, then * (1 + scale) + shift. For inference: it has no gradient.

    Args:
        x: [B, T, K] or [B, K], bfloat16, float16, float32 or float64, contiguous in its last dimension.
        scale, shift: [K], or [B, K] for a vector of its own for each sample, in any of these dtypes.
        eps: added to the variance.
        backend: "auto", "triton" or "torch"; float64 is served by "torch".

    Returns:
        A new contiguous tensor of x's shape and dtype; statistics and arithmetic are float32 (float64 for float64).

    Raises:
        ValueError: a shape, dtype or device does not fit, or the backend is unknown.
        RuntimeError: the backend cannot run on x's device.
    """
    _validate(x, scale, shift)
    if backend == "auto" and x.dtype == torch.float64:
        backend = "torch"
    return select("modulate", x.device, backend).function(x, scale, shift, eps)


@modulate.register_fake
def _(x, scale=None, shift=None, eps=1e-5, backend="auto"):
    _validate(x, scale, shift)
    return x.new_empty(x.shape)


def _validate(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> None:
    if x.ndim not in (2, 3) or x.numel() == 0 or x.dtype not in FLOATING:
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; it must be a floating-point [B, T, K] or [B, K] that is not empty")
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise ValueError(f"x has strides {x.stride()}; its last dimension must be contiguous")
    batch, width = x.shape[0], x.shape[-1]
    for name, vectors in (("scale", scale), ("shift", shift)):
        if vectors is None:
            continue
        if tuple(vectors.shape) not in ((width,), (batch, width)) or vectors.dtype not in FLOATING:
            raise ValueError(
                f"{name} is {vectors.dtype} {list(vectors.shape)}; it must be a floating-point [{width}] or [{batch}, {width}]"
            )
        if vectors.stride(-1) != 1 and width > 1:
            raise ValueError(f"{name} has strides {vectors.stride()}; its last dimension must be contiguous")
        if vectors.device != x.device:
            raise ValueError(f"{name} is on {vectors.device} and x on {x.device}; they must share a device")
