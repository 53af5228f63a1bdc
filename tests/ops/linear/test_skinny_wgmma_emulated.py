"""The CUDA linear by warpgroups on a CPU (tests/emulator), against float64."""

import dataclasses

import pytest
import torch

from dllm_kernels.ops.linear.config import SHARED_BYTES, WARPGROUP_SLICES, WARPGROUP_TILES, GemmConfig
from tests.emulator import emulate
from tests.numerics import assert_contract
from tests.ops.linear.test_skinny_emulated import EPILOGUES, KERNEL, SEEDS, WARPGROUP, check, expected, problem, run, written

pytestmark = pytest.mark.skipif(emulate.COMPILER is None, reason="no g++: the CUDA kernels were not run")

ROWS = (1, 8, 13, 63, 64, 65, 130)


@pytest.fixture(scope="module")
def emulator() -> emulate.Emulator:
    return emulate.build(KERNEL, WARPGROUP, flags=emulate.CARDS["hopper"])


def cut(outputs: int, slices: int = 1, stages: int = 3, input_stages: int = 2, rows: int = 64) -> GemmConfig:
    return GemmConfig((1, rows // 16, outputs // 16, 2, 2), slices, stages, input_stages)


def problems_of(tile: tuple[int, int, int, int, int]) -> list[dict]:
    """Every number of rows, slice counts, rings, epilogues and padding of the last block in turn; of blocks of 128 rows every
    slice count with a full one and one that is not."""
    outputs, slices, problems = 16 * tile[2], WARPGROUP_SLICES[tile], []
    shift = outputs // 32
    for i, rows in enumerate(ROWS):
        config = GemmConfig(tile, slices[(i + shift) % len(slices)], 2 + i % 2, 2 + i // 2 % 2)
        config = config if config.shared_bytes <= SHARED_BYTES else dataclasses.replace(config, stages=2, input_stages=2)
        stages = config.slices + (0, 5, 2)[(i + shift) % 3]
        after = EPILOGUES[(i + 2 * shift) % len(EPILOGUES)]
        problems.append(problem(config, rows, outputs * (1 + i % 2) + (0, 8, 40)[i % 3], stages * config.depth, **after))
    if tile[1] == 8:
        after = dict(chunk=40, residual=7, next_scale=True, left=True)
        problems += [problem(GemmConfig(tile, s, 2, 2), 128 + 69, outputs + 8, (s + 1) * 64, **after) for s in slices]
    return problems


@pytest.mark.parametrize("tile", WARPGROUP_TILES, ids=str)
def test_values(emulator, tile):
    problems = problems_of(tile)
    run(emulator, *problems, seed=WARPGROUP_TILES.index(tile))
    for p in problems:
        check(p)


def two_in_a_row() -> list[dict]:
    """Calls the second of which reads what the first writes, in several blocks and stages, the second's rings deeper than
    its slices."""
    a = problem(cut(64, 2), 75, 128, 384, chunk=40, gelu=True, residual=5, next_scale=True, left=True)
    b = problem(cut(64, 4, 2, 3), 75, 64, 256, chunk=24, gate=True, left=True)
    c = problem(cut(64, 2, 3), 75, 64, 128, a, chunk=1, scaled=True, gate=True, residual=75, left=True)
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
    p = problem(cut(64, 4), 13, 64, 320)
    p["x"].view(torch.int16)[7, 100] = -1
    run(emulator, p, seed=1)
    rest = torch.arange(13) != 7
    assert p["y"][7].isnan().all()
    assert_contract(p["y"][rest], expected(p, torch.float64)[rest], expected(p, torch.float32).bfloat16()[rest])


def test_bits_depend_on_the_slices_only(emulator):
    """Neither on the rings nor on the rows of a block, nor on the rows beside a row."""
    alone = problem(cut(64, 4, 2, 2), 130, 72, 576)
    run(emulator, alone)
    for stages, input_stages, rows, of_a_block in (3, 4, 130, 64), (2, 3, 13, 64), (2, 3, 130, 128), (3, 2, 13, 128):
        p = problem(cut(64, 4, stages, input_stages, of_a_block), 130, 72, 576)
        p["x"], p["y"] = p["x"][:rows].clone(), p["y"][:rows].clone()
        run(emulator, p)
        assert torch.equal(p["y"], alone["y"][:rows])


@pytest.mark.parametrize(
    ("config", "outputs", "width", "message"),
    [
        (cut(64, stages=1), 64, 128, "linear takes rings of 2 to 16 stages and of 2 to 8 of input"),
        (cut(64, stages=17), 64, 128, "linear takes rings of 2 to 16 stages and of 2 to 8 of input"),
        (cut(64, input_stages=1), 64, 128, "linear takes rings of 2 to 16 stages and of 2 to 8 of input"),
        (cut(64, input_stages=9), 64, 128, "linear takes rings of 2 to 16 stages and of 2 to 8 of input"),
        (cut(64, 4), 64, 192, "and slices of at least a stage"),
        (cut(64, 3), 64, 256, "linear has no code for this shape of warps in so many slices"),
        (cut(64, 8), 64, 512, "linear has no code for this shape of warps in so many slices"),
        (cut(64, 8, rows=128), 64, 512, "linear has no code for this shape of warps in so many slices"),
        (cut(80, 2, rows=128), 80, 512, "linear has no code for this shape of warps$"),
        (cut(64), 68, 128, "linear takes octets of outputs and fills stages"),
        (cut(64), 64, 96, "linear takes octets of outputs and fills stages"),
        (dataclasses.replace(cut(64), tile=(1, 4, 2, 2, 2)), 64, 128, "linear has no code for this shape of warps$"),
    ],
)
def test_cuts_that_are_refused(emulator, config, outputs, width, message):
    p = problem(config, 5, outputs, width)
    with pytest.raises(emulate.EmulationError, match=message):
        run(emulator, p)


def test_a_card_without_warpgroups_refuses_them():
    p = problem(cut(64), 5, 64, 128)
    with pytest.raises(emulate.EmulationError, match="linear has this shape of warps on Hopper only"):
        run(emulate.build(KERNEL, WARPGROUP), p)
