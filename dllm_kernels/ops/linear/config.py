"""How the CUDA linear cuts a GEMM into blocks: the choice by card and shape, from a table of timings or derived.

The table is stream.json beside this file, made by `dllm-kernels tune`; each entry says on which card and when it was timed.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

SHARED_BYTES = 101_376
"""Shared memory of a block that every card we compile for has (CUDA C++ Programming Guide, Compute Capabilities)."""
RESERVED_BYTES = 1024
"""Shared memory that the system takes of every block, beyond its own."""
TABLE = Path(__file__).with_name("table.json")
"""Where the timings are; `dllm-kernels tune` writes it."""
MAX_ROWS, MAX_WIDTH, MAX_VALUES = 64, 2048, 2**25
"""The most rows of a call, lesser dimension of a weight and values of it that are streamed where no layer was timed
(docs/kernels.md)."""
BARRIER_BYTES, MAX_STAGES, INPUT_STAGES, MAX_SLICES = 160, 16, 4, 8
WARPGROUP_BARRIER_BYTES = 400
TILES = (
    (8, 1, 1, 8, 2),
    (8, 1, 2, 8, 1),
    (4, 1, 1, 8, 2),
    (4, 1, 2, 8, 2),
    (4, 2, 1, 4, 2),
    (4, 2, 2, 4, 2),
    (4, 2, 2, 8, 1),
    (4, 4, 2, 4, 1),
)
"""What csrc/kernels/linear_skinny.cu has code for, as GemmConfig.tile."""
WARPGROUP_SLICES = {(1, 4, sixteens, 2, 2): (1, 2, 4, 8) if sixteens >= 8 else (1, 2, 4) for sixteens in (4, 5, 6, 8, 9, 10)}
WARPGROUP_SLICES |= {(1, 8, 4, 2, 2): (1, 2, 4)}
"""What csrc/kernels/linear_skinny_wgmma.cu has code for, 64 and 128 rows a block, and in how many slices."""
WARPGROUP_TILES = tuple(WARPGROUP_SLICES)
WARPGROUP_INPUT_STAGES = (4, 3, 2, 6, 8)
"""Rings of input that are tried with them, the usual one first."""


@dataclass(frozen=True)
class GemmConfig:
    """The cut of a GEMM (csrc/include/dllm/skinny_gemm.cuh, epilogue.cuh).

    Attributes:
        tile: warps of a block along the outputs and along the rows, how many times 16 outputs and 8 rows each has, and how
            many times 32 columns of K a stage holds.
        slices: blocks among which K is split.
        stages: depth of the ring of weights.
        input_stages: depth of the ring of input.
    """

    tile: tuple[int, int, int, int, int]
    slices: int
    stages: int
    input_stages: int = INPUT_STAGES

    @property
    def warpgroup(self) -> bool:
        """Whether it is a cut of linear_skinny_wgmma.cu, for stages without padding, on Hopper."""
        return self.tile in WARPGROUP_TILES

    @property
    def outputs(self) -> int:
        """Outputs of a block."""
        return 16 * self.tile[0] * self.tile[2]

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return 8 * self.tile[1] * self.tile[3]

    @property
    def depth(self) -> int:
        """Columns of K in a stage."""
        return 32 * self.tile[4]

    @property
    def stage_bytes(self) -> int:
        """Shared memory of a stage of weights."""
        return 2 * self.depth * self.outputs

    @property
    def input_bytes(self) -> int:
        """Shared memory of the stages of input."""
        return 2 * self.depth * self.rows * self.input_stages

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block, with a residual (Layout in csrc/kernels/linear_skinny.cu, LinearCut in epilogue.cuh)."""
        ring = self.stages * self.stage_bytes + self.input_bytes
        if self.warpgroup:
            own_rows = self.rows // self.slices
            before = (
                WARPGROUP_BARRIER_BYTES + 16 * self.outputs + 8 * (own_rows + self.rows) + 2 * own_rows * (self.outputs + 8)
            )
            return -(-before // 1024) * 1024 + ring
        own_rows = -(-self.rows // 8 // self.slices) * 8
        before = BARRIER_BYTES + 16 * self.outputs + 2 * own_rows * self.outputs
        return -(-before // 512) * 512 + max(ring, 4 * self.rows * (self.outputs + 4))


def tiles(config: GemmConfig, rows: int, outputs: int) -> int:
    """Blocks of a GEMM, not counting the split of K."""
    return -(-rows // config.rows) * -(-outputs // config.outputs)


def block_bytes(of_multiprocessor: int) -> int:
    """Shared memory that a block may have on a card with so much in each SM: as much as leaves room for the next kernel's
    block, where that is more than every card has."""
    return max(SHARED_BYTES, of_multiprocessor // 2 - RESERVED_BYTES)


def candidates(rows: int, outputs: int, width: int, shared_bytes: int = SHARED_BYTES, warpgroups: bool = False):
    """Every cut that fits the shape, each with as deep a ring as `shared_bytes` of a block allow and a slice needs; those of
    warpgroups where the card has them and the shape fills their stages and one block."""
    filled = [tile for tile in WARPGROUP_TILES if outputs >= 16 * tile[2] and width % (32 * tile[4]) == 0]
    by_warpgroups = bool(warpgroups and filled)
    for tile in filled if by_warpgroups else TILES:
        one = GemmConfig(tile, 1, 2)
        if one.rows > 64 >= rows or outputs < one.outputs > 64:
            continue
        for count in WARPGROUP_SLICES[tile] if by_warpgroups else range(1, MAX_SLICES + 1):
            if count > -(-width // one.depth):
                continue
            needed = max(2, min(MAX_STAGES, -(-width // one.depth // count)))
            for input_stages in WARPGROUP_INPUT_STAGES if by_warpgroups else (INPUT_STAGES,):
                if by_warpgroups and input_stages > needed:
                    continue
                rings = (GemmConfig(tile, count, stages, input_stages) for stages in range(needed, 1, -1))
                config = next((config for config in rings if config.shared_bytes <= shared_bytes), None)
                if config:
                    yield config


def derived(
    multiprocessors: int, rows: int, outputs: int, width: int, shared_bytes: int = SHARED_BYTES, warpgroups: bool = False
) -> GemmConfig:
    """The cut of least cost in bytes that the busiest SM moves: weights, input, and float32 sums given to and taken from
    the other slices."""

    def cost(config: GemmConfig) -> float:
        depth = -(-width // config.depth) / config.slices * config.depth
        # Clusters of four and eight find room on 120 of an H200's 132 SMs (cudaOccupancyMaxActiveClusters).
        processors = multiprocessors * 10 // 11 if config.warpgroup and config.slices > 2 else multiprocessors
        waves = -(-tiles(config, rows, outputs) * config.slices // processors)
        moved = 2 * depth * (config.outputs + config.rows)
        exchanged = 8 * config.rows * config.outputs if config.slices > 1 else 0
        return waves * (moved + exchanged)

    # Blocks of 128 rows are taken where they were timed.
    found = (
        config
        for config in candidates(rows, outputs, width, shared_bytes, warpgroups)
        if not config.warpgroup or config.rows == 64
    )
    return min(found, key=cost)


@functools.cache
def _table() -> dict[tuple[int, int, int, int], GemmConfig]:
    """The cut by SMs, row tiles, outputs and width."""
    keys = ("multiprocessors", "row_tiles", "outputs", "width")
    return {
        tuple(entry[key] for key in keys): GemmConfig(
            tuple(entry["tile"]), entry["slices"], entry["stages"], entry["input_stages"]
        )
        for entry in json.loads(TABLE.read_text())["entries"]
    }


@functools.cache
def _layers() -> dict[tuple[int, int, int], bool]:
    """Whether a whole layer was faster streamed, by SMs, row tiles and width."""
    keys = ("multiprocessors", "row_tiles", "dim")
    return {
        tuple(entry[key] for key in keys): entry["us"] < entry["library_us"]
        for entry in json.loads(TABLE.read_text())["layers"]
    }


def choose(
    multiprocessors: int, rows: int, outputs: int, width: int, shared_bytes: int = SHARED_BYTES, warpgroups: bool = False
) -> GemmConfig:
    """The cut for a GEMM of `rows` x `width` by `outputs` x `width`, in blocks of at most `shared_bytes`: the table's where
    the shape was timed, in whole tiles of 64 rows, on a card with as many SMs, otherwise the derived one."""
    timed = _table().get((multiprocessors, -(-rows // 64), outputs, width))
    if timed and timed.shared_bytes <= shared_bytes and (warpgroups or not timed.warpgroup):
        return timed
    return derived(multiprocessors, rows, outputs, width, shared_bytes, warpgroups)


def is_faster(multiprocessors: int, rows: int, outputs: int, width: int) -> bool:
    """Whether `auto` streams a layer rather than let the library multiply and other kernels do what surrounds it. A plan
    does the one or the other: what was timed is a whole layer of the weight's lesser dimension; where none was, the
    sizes decide for which it won elsewhere."""
    dim = min(outputs, width)
    small = rows <= MAX_ROWS and dim <= MAX_WIDTH and outputs * width <= MAX_VALUES
    return _layers().get((multiprocessors, -(-rows // 64), dim), small)
