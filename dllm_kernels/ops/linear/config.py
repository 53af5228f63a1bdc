"""How the skinny linear divides a GEMM into blocks: the choice by card and shape, from a table of timings or derived.

N, M and K are a GEMM's outputs, rows and depth: [M, K] times [N, K]^T. The table is table.json beside this file, made by
`dllm-kernels tune`; each entry says on which card and when it was timed.
"""

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from dllm_kernels.ops.card import Card
from dllm_kernels.ops.kernels import TILES

TABLE = Path(__file__).with_name("table.json")
"""Where the timings are; `dllm-kernels tune` writes it."""
LAYER_KEYS = ("multiprocessors", "wgmma", "row_tiles", "dim")
ENTRY_KEYS = ("multiprocessors", "wgmma", "row_tiles", "n", "k")
"""What tells entries of the table apart: of its layers, and of its shapes."""
MAX_M, MAX_M_NARROW, NARROW = 64, 128, 2048
"""The most rows of a call for which the skinny kernel is taken where no layer was timed: of any layer, and of one whose lesser
dimension is at most NARROW (docs/kernels.md)."""
SKINNY = "linear_skinny"
"""The kernel."""
INPUT_STAGES = (4, 3, 2, 6, 8)
"""Rings of input that are tried, the usual one first."""
TileShape = tuple[int, int, int, int, int]
"""tile_m, tile_n, tile_k, num_warps_m, num_warps_n."""


@dataclass(frozen=True)
class GemmConfig:
    """How a GEMM is divided, with the names of csrc/include/dllm/kernels.h.

    Attributes:
        tile_m, tile_n: rows and outputs of a block.
        tile_k: columns of K in a stage.
        num_warps_m, num_warps_n: warps of a block along the rows and along the outputs.
        split_k: blocks among which K is divided.
        num_stages: depth of the ring of weights.
        input_stages: depth of the ring of input.
    """

    tile_m: int
    tile_n: int
    tile_k: int
    num_warps_m: int
    num_warps_n: int
    split_k: int
    num_stages: int
    input_stages: int = INPUT_STAGES[0]

    @property
    def tile(self) -> TileShape:
        """What a kernel has code for."""
        return astuple(self)[:5]

    @property
    def wgmma(self) -> bool:
        """Whether it multiplies by wgmma, on Hopper only."""
        return self.tile in WGMMA_TILES

    @property
    def skinny(self) -> bool:
        """Whether it is a config of linear_skinny; otherwise it is the lm_head's."""
        return self.tile in _KERNELS[SKINNY]

    @property
    def stage_bytes(self) -> int:
        """Shared memory of a stage of weights."""
        return 2 * self.tile_k * self.tile_n

    @property
    def input_bytes(self) -> int:
        """Shared memory of the stages of input."""
        return 2 * self.tile_k * self.tile_m * self.input_stages

    def shared_bytes(self, kernel: str | None = None) -> int:
        """Shared memory of a block, with a residual; of the skinny linear, or of another kernel that has the tile."""
        tile = _KERNELS[kernel or SKINNY][self.tile][self.split_k]
        return tile.ring_offset + max(self.num_stages * self.stage_bytes + self.input_bytes, tile.product_bytes)


def _by_shape(kernel: str) -> dict:
    found: dict = {}
    for tile in TILES[kernel]:
        found.setdefault(tile.shape, {})[tile.split_k] = tile
    return found


_KERNELS = {kernel: _by_shape(kernel) for kernel in (SKINNY, "lm_head_skinny")}
"""What they have code for, by tile and slices of K."""
SKINNY_TILES, WGMMA_TILES = (
    tuple(shape for shape, slices in _KERNELS[SKINNY].items() if any(tile.wgmma for tile in slices.values()) == wgmma)
    for wgmma in (False, True)
)
"""What linear_skinny has code for by mma.sync, on every card, and by wgmma."""
MAX_TILE_N = max(tile[1] for tile in SKINNY_TILES + WGMMA_TILES)


def blocks(config: GemmConfig, m: int, n: int) -> int:
    """Blocks of a GEMM, not counting the slices of K."""
    return -(-m // config.tile_m) * -(-n // config.tile_n)


def candidates(m: int, n: int, k: int, card: Card, shared_bytes: int | None = None) -> Iterator[GemmConfig]:
    """Every config of a card's tiles that fits the shape, each with as deep a ring as `shared_bytes` of a block allow, by
    default the card's, and a slice needs."""
    shared_bytes = card.block_bytes if shared_bytes is None else shared_bytes
    for tile in WGMMA_TILES if card.wgmma else SKINNY_TILES:
        slices = _KERNELS[SKINNY][tile]
        tile_m, tile_n, tile_k, *_ = tile
        if tile_m > 64 >= m or n < tile_n > 64:
            continue
        stages_of_k = -(-k // tile_k)
        for split_k in slices:
            if split_k > stages_of_k:
                continue
            needed = max(2, min(slices[split_k].max_stages, -(-stages_of_k // split_k)))
            for input_stages in INPUT_STAGES:
                if input_stages > needed:
                    continue
                rings = (GemmConfig(*tile, split_k, stages, input_stages) for stages in range(needed, 1, -1))
                config = next((config for config in rings if config.shared_bytes() <= shared_bytes), None)
                if config:
                    yield config


def busiest_bytes(config: GemmConfig, m: int, n: int, k: int, multiprocessors: int) -> int:
    """Bytes of weights that the busiest SM reads."""
    rounds = math.ceil(blocks(config, m, n) * config.split_k / multiprocessors)
    return rounds * math.ceil(math.ceil(k / config.tile_k) / config.split_k) * config.stage_bytes


def derived(m: int, n: int, k: int, card: Card) -> GemmConfig:
    """The config of least cost in bytes of weights that the busiest SM reads. Input, from L2, counts an eighth, and float32
    sums, from a neighbour, a quarter."""

    def cost(config: GemmConfig) -> float:
        # Clusters of four and eight find room on 120 of an H200's 132 SMs (cudaOccupancyMaxActiveClusters).
        processors = card.multiprocessors * 10 // 11 if config.wgmma and config.split_k > 2 else card.multiprocessors
        weights = busiest_bytes(config, m, n, k, processors)
        exchanged = config.tile_m * config.tile_n if config.split_k > 1 else 0
        rounds = math.ceil(blocks(config, m, n) * config.split_k / processors)
        return weights * (1 + config.tile_m / config.tile_n / 8) + rounds * exchanged

    # Blocks of 128 rows are taken where they were timed.
    return min((config for config in candidates(m, n, k, card) if config.tile_m == 64), key=cost)


@functools.cache
def _table() -> dict[tuple[int, bool, int, int, int], GemmConfig]:
    """The config by SMs, whether by wgmma, row tiles, N and K."""
    fields = GemmConfig.__dataclass_fields__
    return {
        tuple(entry[key] for key in ENTRY_KEYS): GemmConfig(**{name: entry[name] for name in fields})
        for entry in json.loads(TABLE.read_text())["entries"]
    }


@functools.cache
def _layers() -> dict[tuple[int, bool, int, int], bool]:
    """Whether a whole layer was faster with the skinny kernel, by SMs, whether by wgmma, row tiles and width."""
    return {
        tuple(entry[key] for key in LAYER_KEYS): entry["us"] < entry["library_us"]
        for entry in json.loads(TABLE.read_text())["layers"]
    }


def select_config(m: int, n: int, k: int, card: Card) -> GemmConfig:
    """The config for a GEMM: the table's where the shape was timed, in whole tiles of 64 rows, on a card with as many SMs and
    the same way to multiply, otherwise the derived one."""
    timed = _table().get((card.multiprocessors, card.wgmma, -(-m // 64), n, k))
    if timed and timed.shared_bytes() <= card.block_bytes:
        return timed
    return derived(m, n, k, card)


def is_faster(m: int, n: int, k: int, card: Card) -> bool:
    """Whether `auto` takes the skinny kernel for a layer rather than the library's GEMM and other kernels around it. A plan
    does the one or the other: what was timed is a whole layer of the weight's lesser dimension; where none was, the rows
    decide."""
    few = m <= (MAX_M_NARROW if min(n, k) <= NARROW else MAX_M)
    return _layers().get((card.multiprocessors, card.wgmma, -(-m // 64), min(n, k)), few)
