"""Weights in the order in which the streaming CUDA kernels read them (csrc/include/dllm/weight_stream.cuh)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from dllm_kernels.kernels.stream import StreamConfig


@dataclass(frozen=True)
class PackedWeight:
    """A weight [outputs, width] in the order in which blocks read it, and what its launches share.

    Attributes:
        data: bfloat16 [ceil(outputs / o), ceil(width / depth) depth / 32, o / 16, 2, 32, 8] for the o outputs and the depth
            of the config's blocks and stages: block of outputs, 32 columns, 16 outputs, half of each lane's columns, lane,
            values. Lane 4 g + t of half j has the columns c = 8 t + 4 j to c + 3 of the outputs g and g + 8, as one product
            reads them: c and c + 1 of g, of g + 8, then c + 2 and c + 3 of both. Padding is zero.
        outputs, width: of the weight.
        config: the cut that it is packed for.
    """

    data: Tensor
    outputs: int
    width: int
    config: StreamConfig


def whole_shape(config: StreamConfig, outputs: int, width: int) -> tuple[int, int]:
    """A weight's shape with what is padded to whole blocks and stages."""
    return -(-outputs // config.outputs) * config.outputs, -(-width // config.depth) * config.depth


def pack(weight: Tensor, config: StreamConfig, outputs: int | None = None, width: int | None = None) -> PackedWeight:
    """Packs a weight [outputs, width], in its own memory where it has its `whole_shape`; `outputs` and `width` then say how
    much of it is not padding, which is zero."""
    outputs, width = outputs or len(weight), width or weight.shape[1]
    rows, columns = whole_shape(config, outputs, width)
    if weight.shape != (rows, columns):
        weight = F.pad(weight, (0, columns - weight.shape[1], 0, rows - len(weight)))
    o = config.outputs
    packed = weight.view(rows // o, columns // 32, o // 16, 2, 32, 8)
    for tile, part in enumerate(weight.split(o)):
        # outputs: (16s, half, g); columns: (32s, t, j, pair, value)
        values = part.view(o // 16, 2, 8, columns // 32, 4, 2, 2, 2)
        packed[tile].copy_(values.permute(3, 0, 5, 2, 4, 6, 1, 7).reshape(packed.shape[1:]))
    return PackedWeight(packed, outputs, width, config)


def unpack(packed: PackedWeight) -> Tensor:
    """The weight [outputs, width] that was packed."""
    return unpack_data(packed.data)[: packed.outputs, : packed.width]


def unpack_data(data: Tensor) -> Tensor:
    """`PackedWeight.data` as a matrix, padding included."""
    n, k32, n16 = data.shape[:3]
    parts = data.view(n, k32, n16, 2, 8, 4, 2, 2, 2).permute(0, 2, 7, 4, 1, 5, 3, 6, 8)
    return parts.reshape(n * n16 * 16, k32 * 32)
