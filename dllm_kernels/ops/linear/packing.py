"""Weights in the order in which the skinny CUDA kernels read them (csrc/include/dllm/skinny_gemm.cuh)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from dllm_kernels.ops.linear.config import GemmConfig

_ORDER = [n % 8 // 2 * 4 + n // 8 * 2 + n % 2 for n in range(16)]
"""Outputs of a 16 as linear_skinny has them in its products' columns, so that each thread's four sums of a row are
neighbours."""
_PLACES = [_ORDER.index(output) for output in range(16)]


@dataclass(frozen=True)
class PackedWeight:
    """A weight [N, K] in the order in which blocks read it, and the config that it is packed for.

    Attributes:
        data: bfloat16 [ceil(N / tile_n), ceil(K / tile_k) tile_k / 8, tile_n, 8]: block of outputs, eight columns, output,
            column. For linear_skinny the outputs of a 16 stand in `_ORDER`; for the lm_head a block has first the first 16 of
            every warp, then the second. Padding is zero.
        n, k: of the weight.
        config: the config.
    """

    data: Tensor
    n: int
    k: int
    config: GemmConfig


def whole_shape(config: GemmConfig, n: int, k: int) -> tuple[int, int]:
    """A weight's shape with what is padded to whole tiles and stages."""
    return -(-n // config.tile_n) * config.tile_n, -(-k // config.tile_k) * config.tile_k


def pack(weight: Tensor, config: GemmConfig, n: int | None = None, k: int | None = None) -> PackedWeight:
    """Packs a weight [N, K], in its own memory where it has its `whole_shape`; `n` and `k` then say how much of it is not
    padding, which is zero."""
    n, k = n or len(weight), k or weight.shape[1]
    rows, columns = whole_shape(config, n, k)
    if weight.shape != (rows, columns):
        weight = F.pad(weight, (0, columns - weight.shape[1], 0, rows - len(weight)))
    packed = weight.view(rows // config.tile_n, columns // 8, config.tile_n, 8)
    for block, part in zip(packed, weight.split(config.tile_n), strict=True):
        values = part.view(_warps(config), -1, 16, columns // 8, 8)
        values = values[:, :, _ORDER] if config.skinny else values
        block.copy_(values.permute(3, 1, 0, 2, 4).contiguous().view(block.shape))
    return PackedWeight(packed, n, k, config)


def _warps(config: GemmConfig) -> int:
    """Warps among which the lm_head deals out a block's 16s of outputs."""
    return 1 if config.skinny else config.num_warps_n


def unpack(packed: PackedWeight) -> Tensor:
    """The weight [N, K] that was packed."""
    return unpack_data(packed.data, packed.config)[: packed.n, : packed.k]


def unpack_data(data: Tensor, config: GemmConfig) -> Tensor:
    """`PackedWeight.data` as a matrix, padding included."""
    blocks, k8, n, _ = data.shape
    values = data.view(blocks, k8, -1, _warps(config), 16, 8)
    values = values[:, :, :, :, _PLACES] if config.skinny else values
    return values.permute(0, 3, 2, 4, 1, 5).reshape(blocks * n, k8 * 8)
