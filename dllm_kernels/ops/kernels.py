"""What the CUDA kernels have code for, as csrc says it in kernels.json (csrc/include/dllm/describe.h)."""

import json
from dataclasses import dataclass
from pathlib import Path

_PATH = Path(__file__).with_suffix(".json")
_FOUND = json.loads(_PATH.read_text())


@dataclass(frozen=True)
class Tile:
    """A tile that a GEMM's kernel has code for, in a number of slices of K.

    Attributes:
        tile_m, tile_n: rows and outputs of a block.
        tile_k: columns of K in a stage.
        num_warps_m, num_warps_n: warps of a block along the rows and along the outputs.
        split_k: slices of K.
        wgmma: whether it multiplies by wgmma, on Hopper only.
        num_stages, input_stages: the least depth of the rings of weights and of input.
        max_stages, max_input_stages: the largest.
        ring_offset: bytes of shared memory before the rings, with a residual.
        product_bytes: of the product, which takes the rings' place.
    """

    tile_m: int
    tile_n: int
    tile_k: int
    num_warps_m: int
    num_warps_n: int
    split_k: int
    num_stages: int
    input_stages: int
    wgmma: bool
    max_stages: int
    max_input_stages: int
    ring_offset: int
    product_bytes: int

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """What tells one tile of a kernel from another, but the slices."""
        return self.tile_m, self.tile_n, self.tile_k, self.num_warps_m, self.num_warps_n


TILES: dict[str, list[Tile]] = {}
"""By kernel."""
for _tile in _FOUND["tiles"]:
    TILES.setdefault(_tile.pop("kernel"), []).append(Tile(**_tile))

LIMITS: dict[str, dict[str, int]] = {}
"""Numbers by kernel and name."""
for _limit in _FOUND["limits"]:
    LIMITS.setdefault(_limit["kernel"], {})[_limit["name"]] = _limit["value"]
