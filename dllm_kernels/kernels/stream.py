"""How the CUDA linear cuts a GEMM into blocks: the choice by card and shape, from a table of timings or derived.

The table is stream.json beside this file, made by `dllm-kernels tune`; each entry says on which card and when it was timed.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

SHARED_BYTES = 101_376
"""Shared memory of a block that every card we compile for has (CUDA C++ Programming Guide, Compute Capabilities)."""
TABLE = Path(__file__).with_suffix(".json")
"""Where the timings are; `dllm-kernels tune` writes it."""
MOST_ROWS, MOST_WIDTH, MOST_VALUES = 64, 2048, 2**25
"""The most rows of a call, lesser dimension of a weight and values of it with which a whole generation was timed
(docs/kernels.md)."""
BARRIER_BYTES, MOST_STAGES, MOST_SLICES = 128, 16, 16
TILES = (
    (8, 1, 2, 8, 1),
    (6, 1, 2, 8, 1),
    (4, 2, 2, 4, 2),
    (4, 1, 2, 8, 2),
    (2, 2, 2, 4, 2),
    (4, 2, 1, 4, 2),
    (4, 4, 2, 4, 1),
    (4, 2, 2, 8, 1),
)
"""What csrc/kernels/linear.cu has code for, as StreamConfig.tile."""


@dataclass(frozen=True)
class StreamConfig:
    """The cut of a GEMM (csrc/include/dllm/weight_stream.cuh).

    Attributes:
        tile: warps of a block along the outputs and along the rows, how many times 16 outputs and 8 rows each has, and how
            many times 32 columns of K a stage holds.
        slices: blocks among which K is split.
        stages: depth of the ring of weights.
    """

    tile: tuple[int, int, int, int, int]
    slices: int
    stages: int

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
        """Shared memory of a stage: weights and input."""
        return 2 * self.depth * (self.outputs + self.rows)

    @property
    def ring_at(self) -> int:
        """Where the ring begins: after the barriers and four vectors."""
        return -(-(BARRIER_BYTES + 16 * self.outputs) // 128) * 128

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block, with a residual (Layout in csrc/kernels/linear.cu)."""
        own_rows = -(-self.rows // 8 // self.slices) * 8
        after = own_rows * (4 * (self.outputs + 4) + 2 * self.outputs)
        return self.ring_at + max(self.stages * self.stage_bytes, after)


def tiles(config: StreamConfig, rows: int, outputs: int) -> int:
    """Blocks of a GEMM, not counting the split of K."""
    return -(-rows // config.rows) * -(-outputs // config.outputs)


def candidates(rows: int, outputs: int, width: int):
    """Every cut that fits the shape and the shared memory, each with as deep a ring as two blocks an SM allow."""
    for tile in TILES:
        config = StreamConfig(tile, 1, 2)
        if config.rows > 64 >= rows:
            continue
        if outputs < config.outputs > 64:
            continue
        stages = min(MOST_STAGES, (SHARED_BYTES - config.ring_at) // config.stage_bytes)
        for slices in range(1, min(MOST_SLICES, -(-width // config.depth)) + 1):
            config = StreamConfig(tile, slices, stages)
            if config.shared_bytes <= SHARED_BYTES:
                yield config


def derived(multiprocessors: int, rows: int, outputs: int, width: int) -> StreamConfig:
    """The cut of least cost in bytes that the busiest SM moves: weights, input, and float32 sums given to and taken from
    the other slices."""

    def cost(config: StreamConfig) -> float:
        depth = -(-width // config.depth) / config.slices * config.depth
        waves = -(-tiles(config, rows, outputs) * config.slices // multiprocessors)
        moved = 2 * depth * (config.outputs + config.rows)
        exchanged = 8 * config.rows * config.outputs if config.slices > 1 else 0
        return waves * (moved + exchanged)

    return min(candidates(rows, outputs, width), key=cost)


@functools.cache
def _timed() -> dict[tuple[int, int, int, int], StreamConfig]:
    entries = json.loads(TABLE.read_text())["entries"]
    keys = ("multiprocessors", "row_tiles", "outputs", "width")
    return {
        tuple(entry[key] for key in keys): StreamConfig(tuple(entry["tile"]), entry["slices"], entry["stages"])
        for entry in entries
    }


def choose(multiprocessors: int, rows: int, outputs: int, width: int) -> StreamConfig:
    """The cut for a GEMM of `rows` x `width` by `outputs` x `width`: the table's where the shape was timed on a card with
    as many SMs, otherwise the derived one."""
    key = (multiprocessors, -(-rows // 64), outputs, width)
    return _timed().get(key) or derived(multiprocessors, rows, outputs, width)


def wins(rows: int, outputs: int, width: int) -> bool:
    """Whether `auto` streams a layer rather than let the library multiply and other kernels do what surrounds it."""
    return rows <= MOST_ROWS and min(outputs, width) <= MOST_WIDTH and outputs * width <= MOST_VALUES
