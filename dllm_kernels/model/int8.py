"""8-bit checkpoints: every matrix as symmetric int8 with one float32 scale per output channel, all else as float32.

    W[n, k] ~ scale[n] q[n, k],    scale[n] = max_k |W[n, k]| / 127,    q in [-127, 127].

The rounding error is at most half a scale (arXiv:1712.05877, section 2.1, with a zero point of 0). The scale of `X.weight`
lies beside it in the safetensors file as `X.weight_scale` [N]. Learned vectors [1, N, K] (queries, positions) are matrices
too, with a scale [1, N] for each vector.
"""

import torch
from torch import Tensor

FORMAT = "int8-per-channel"
"""What config.json says under "weight_format" of a checkpoint like this."""

_SUFFIX = "_scale"


def quantize(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's state dict as it is stored: matrices [.., N, K] as int8 and scales [.., N] float32, vectors as float32."""
    stored = {}
    for name, tensor in state.items():
        exact = tensor.detach().float()
        if tensor.ndim < 2:
            stored[name] = exact
            continue
        scale = exact.abs().amax(dim=-1) / 127
        # A channel of zeros has any scale; 1 keeps the division finite.
        scale = torch.where(scale > 0, scale, 1.0)
        stored[name] = (exact / scale.unsqueeze(-1)).round().to(torch.int8)
        stored[name + _SUFFIX] = scale
    return stored


def dequantize(stored: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The inverse of `quantize` up to its rounding: float32 throughout.

    Args:
        prefix: what stands before the names in messages.

    Raises:
        ValueError: names an 8-bit tensor that is a vector or whose scale is missing or of another shape or dtype, or a
            scale that belongs to no 8-bit tensor.
    """
    matrices = {name for name, tensor in stored.items() if tensor.dtype == torch.int8}
    scales = {name for name in stored if name.endswith(_SUFFIX)}
    stray = sorted(scales - {name + _SUFFIX for name in matrices})
    if stray:
        raise ValueError(f"{prefix}{stray[0]} belongs to no 8-bit tensor")
    state = {}
    for name, tensor in stored.items():
        if name in scales:
            continue
        if name not in matrices:
            state[name] = tensor
            continue
        scale = stored.get(name + _SUFFIX)
        if scale is None:
            raise ValueError(f"{prefix}{name} is 8-bit and has no {prefix}{name}{_SUFFIX}")
        if tensor.ndim < 2 or scale.shape != tensor.shape[:-1] or scale.dtype != torch.float32:
            raise ValueError(
                f"{prefix}{name} is 8-bit of shape {list(tensor.shape)} and its scale is {scale.dtype} {list(scale.shape)}; "
                f"a matrix [N, K] has scales torch.float32 [N]"
            )
        state[name] = tensor * scale.unsqueeze(-1)
    return state
