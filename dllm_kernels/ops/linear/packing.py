"""Weights in the order in which the streaming CUDA kernels read them (csrc/include/dllm/skinny_gemm.cuh)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from dllm_kernels.ops.linear.config import GemmConfig

_ORDER = [n % 8 // 2 * 4 + n // 8 * 2 + n % 2 for n in range(16)]
"""Outputs of a 16 as a warpgroup has them in its columns, so that each thread's four sums of a row are neighbours."""
_PLACES = [_ORDER.index(output) for output in range(16)]


@dataclass(frozen=True)
class PackedWeight:
    """A weight [outputs, width] in the order in which blocks read it, and what its launches share.

    Attributes:
        data: bfloat16 [ceil(outputs / o), ceil(width / depth) depth / 8, o, 8] for the o outputs and the depth of the
            config's blocks and stages: block of outputs, eight columns, output, column. Of its 16s of outputs a block has
            first the first of every warp, then the second; for a warpgroup the outputs of a 16 stand in `_ORDER`. Padding is
            zero.
        outputs, width: of the weight.
        config: the cut that it is packed for.
    """

    data: Tensor
    outputs: int
    width: int
    config: GemmConfig


def whole_shape(config: GemmConfig, outputs: int, width: int) -> tuple[int, int]:
    """A weight's shape with what is padded to whole blocks and stages."""
    return -(-outputs // config.outputs) * config.outputs, -(-width // config.depth) * config.depth


def pack(weight: Tensor, config: GemmConfig, outputs: int | None = None, width: int | None = None) -> PackedWeight:
    """Packs a weight [outputs, width], in its own memory where it has its `whole_shape`; `outputs` and `width` then say how
    much of it is not padding, which is zero."""
    outputs, width = outputs or len(weight), width or weight.shape[1]
    rows, columns = whole_shape(config, outputs, width)
    if weight.shape != (rows, columns):
        weight = F.pad(weight, (0, columns - weight.shape[1], 0, rows - len(weight)))
    packed = weight.view(rows // config.outputs, columns // 8, config.outputs, 8)
    for block, part in zip(packed, weight.split(config.outputs), strict=True):
        values = part.view(config.tile[0], config.tile[2], 16, columns // 8, 8)
        values = values[:, :, _ORDER] if config.warpgroup else values
        block.copy_(values.permute(3, 1, 0, 2, 4).contiguous().view(block.shape))
    return PackedWeight(packed, outputs, width, config)


def unpack(packed: PackedWeight) -> Tensor:
    """The weight [outputs, width] that was packed."""
    return unpack_data(packed.data, packed.config)[: packed.outputs, : packed.width]


def unpack_data(data: Tensor, config: GemmConfig) -> Tensor:
    """`PackedWeight.data` as a matrix, padding included."""
    blocks, k8, o, _ = data.shape
    values = data.view(blocks, k8, config.tile[2], config.tile[0], 16, 8)
    values = values[:, :, :, :, _PLACES] if config.warpgroup else values
    return values.permute(0, 3, 2, 4, 1, 5).reshape(blocks * o, k8 * 8)
