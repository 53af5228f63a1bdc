"""The CUDA linear by warpgroups on a CPU (tests/emulator), against float64."""

import dataclasses

import pytest
import torch

from dllm_kernels.ops.kernels import TILES
from dllm_kernels.ops.linear.config import SHARED_BYTES, WGMMA_TILES, GemmConfig, TileShape
from tests.emulator import emulate
from tests.numerics import assert_contract
from tests.ops.linear.test_skinny_emulated import EPILOGUES, KERNEL, SEEDS, WARPGROUP, check, expected, problem, run, written

pytestmark = pytest.mark.skipif(emulate.COMPILER is None, reason="no g++: the CUDA kernels were not run")

ROWS = (1, 8, 13, 63, 64, 65, 130)


@pytest.fixture(scope="module")
def emulator() -> emulate.Emulator:
    return emulate.build(KERNEL, WARPGROUP, flags=emulate.CARDS["hopper"])


def config_of(tile_n: int, split_k: int = 1, stages: int = 3, input_stages: int = 2, tile_m: int = 64) -> GemmConfig:
    return GemmConfig(tile_m, tile_n, 64, tile_m // 16, 1, split_k, stages, input_stages)


def problems_of(tile: TileShape) -> list[dict]:
    """Every number of rows, slice counts, rings, epilogues and padding of the last block in turn; of blocks of 128 rows every
    slice count with a full one and one that is not."""
    slices = [found.split_k for found in TILES["linear_skinny_wgmma"] if found.shape == tile]
    n, problems = tile[1], []
    shift = n // 32
    for i, rows in enumerate(ROWS):
        config = GemmConfig(*tile, slices[(i + shift) % len(slices)], 2 + i % 2, 2 + i // 2 % 2)
        if config.shared_bytes() > SHARED_BYTES:
            config = dataclasses.replace(config, num_stages=2, input_stages=2)
        stages = config.split_k + (0, 5, 2)[(i + shift) % 3]
        after = EPILOGUES[(i + 2 * shift) % len(EPILOGUES)]
        problems.append(problem(config, rows, n * (1 + i % 2) + (0, 8, 40)[i % 3], stages * config.tile_k, **after))
    if config.tile_m == 128:
        after = dict(chunk=40, residual=7, next_scale=True, stats_out=True)
        problems += [problem(GemmConfig(*tile, s, 2, 2), 128 + 69, n + 8, (s + 1) * 64, **after) for s in slices]
    return problems


@pytest.mark.parametrize("tile", WGMMA_TILES, ids=str)
def test_values(emulator, tile):
    problems = problems_of(tile)
    run(emulator, *problems, seed=WGMMA_TILES.index(tile))
    for p in problems:
        check(p)


def two_in_a_row() -> list[dict]:
    """Calls the second of which reads what the first writes, in several blocks and stages, the second's rings deeper than
    its slices."""
    a = problem(config_of(64, 2), 75, 128, 384, chunk=40, gelu=True, residual=5, next_scale=True, stats_out=True)
    b = problem(config_of(64, 4, 2, 3), 75, 64, 256, chunk=24, gate=True, stats_out=True)
    c = problem(config_of(64, 2, 3), 75, 64, 128, a, chunk=1, scaled=True, gate=True, residual=75, stats_out=True)
    return [a, b, c]


def test_calls_in_a_row_are_what_they_are_alone(emulator):
    """Though each may start before the last is done; the last writes what the first reads."""
    alone = two_in_a_row()
    for p in alone:
        run(emulator, p)
        check(p)
    for seed in SEEDS:
        problems = two_in_a_row()
        problems[-1]["y"] = problems[0]["x"].view(-1)[: problems[-1]["y"].numel()].view_as(problems[-1]["y"])
        run(emulator, *problems, seed=seed)
        for ours, theirs in zip(written(problems), written(alone), strict=True):
            assert torch.equal(ours, theirs)


def test_a_row_of_nan_stays_a_row_of_nan(emulator):
    p = problem(config_of(64, 4), 13, 64, 320)
    p["x"].view(torch.int16)[7, 100] = -1
    run(emulator, p, seed=1)
    rest = torch.arange(13) != 7
    assert p["y"][7].isnan().all()
    assert_contract(p["y"][rest], expected(p, torch.float64)[rest], expected(p, torch.float32).bfloat16()[rest])


def test_bits_depend_on_the_slices_only(emulator):
    """Neither on the rings nor on the rows of a block, nor on the rows beside a row."""
    alone = problem(config_of(64, 4, 2, 2), 130, 72, 576)
    run(emulator, alone)
    for stages, input_stages, rows, of_a_block in (3, 4, 130, 64), (2, 3, 13, 64), (2, 3, 130, 128), (3, 2, 13, 128):
        p = problem(config_of(64, 4, stages, input_stages, of_a_block), 130, 72, 576)
        p["x"], p["y"] = p["x"][:rows].clone(), p["y"][:rows].clone()
        run(emulator, p)
        assert torch.equal(p["y"], alone["y"][:rows])


@pytest.mark.parametrize(
    ("config", "outputs", "width", "message"),
    [
        (config_of(64, stages=1), 64, 128, "linear_skinny_wgmma takes rings of 2 to 16 stages, of input 2 to 8"),
        (config_of(64, stages=17), 64, 128, "linear_skinny_wgmma takes rings of 2 to 16 stages, of input 2 to 8"),
        (config_of(64, input_stages=1), 64, 128, "linear_skinny_wgmma takes rings of 2 to 16 stages, of input 2 to 8"),
        (config_of(64, input_stages=9), 64, 128, "linear_skinny_wgmma takes rings of 2 to 16 stages, of input 2 to 8"),
        (config_of(64, 4), 64, 192, "slices of K of at least a stage"),
        (config_of(64, 3), 64, 256, "linear_skinny_wgmma has no code for tiles of .* slices$"),
        (config_of(64, 8), 64, 512, "linear_skinny_wgmma has no code for tiles of .* slices$"),
        (config_of(64, 8, tile_m=128), 64, 512, "linear_skinny_wgmma has no code for tiles of .* slices$"),
        (config_of(80, 2, tile_m=128), 80, 512, "linear_skinny has no code for tiles of 128 x 80"),
        (config_of(64), 68, 128, "takes n that is a multiple of 8 and k of tile_k"),
        (config_of(64), 64, 96, "takes n that is a multiple of 8 and k of tile_k"),
        (dataclasses.replace(config_of(64), tile_n=32), 64, 128, "linear_skinny has no code for tiles of 64 x 32"),
    ],
)
def test_cuts_that_are_refused(emulator, config, outputs, width, message):
    """A tile that is none of linear_skinny_wgmma's is a call of linear_skinny, which has no code for these."""
    p = problem(config, 5, outputs, width)
    with pytest.raises(emulate.EmulationError, match=message):
        run(emulator, p)


def test_a_card_without_warpgroups_refuses_them():
    p = problem(config_of(64), 5, 64, 128)
    with pytest.raises(emulate.EmulationError, match="linear_skinny_wgmma runs on Hopper only"):
        run(emulate.build(KERNEL, WARPGROUP), p)
