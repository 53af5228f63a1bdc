"""The CUDA kernel of linear on a CPU (tests/emulator), against float64."""

import pytest
import torch
from torch import Tensor

from dllm_kernels.ops.linear.config import SHARED_BYTES, SKINNY_TILES, GemmConfig, TileShape
from dllm_kernels.ops.linear.packing import pack
from dllm_kernels.ops.linear.reference import reference, row_statistics
from dllm_kernels.ops.linear.skinny import LinearSkinny, empty_workspace, workspace_elements
from tests.emulator import emulate
from tests.numerics import assert_contract, poisoned

pytestmark = pytest.mark.skipif(emulate.COMPILER is None, reason="no g++: the CUDA kernels were not run")

KERNEL, WARPGROUP = "csrc/kernels/linear_skinny.cu", "csrc/kernels/linear_skinny_wgmma.cu"
SEEDS = range(8)  # every pair of copies' and launches' extremes; tests/emulator/machine.cpp, make_policy
ROWS = (1, 8, 13, 63, 64, 65, 130)
SLICES = (1, 2, 3, 5, 8)
EPILOGUES = (
    {},
    dict(chunk=40, gelu=True, stats_out=True),
    dict(residual=5, stats_out=True),
    dict(chunk=24, scaled=True, gate=True, residual=64, next_scale=True, stats_out=True),
    dict(gate=True, next_scale=True),
    dict(chunk=512),
    dict(gelu=True, residual=1),
)


@pytest.fixture(scope="module", params=emulate.CARDS)
def emulator(request) -> emulate.Emulator:
    return emulate.build(KERNEL, WARPGROUP, flags=emulate.CARDS[request.param])


def config_of(tile: TileShape, split_k: int, stages: int = 3) -> GemmConfig:
    """The closest to what is asked for that shared memory allows."""
    fits = [s for s in range(split_k, 9) if GemmConfig(*tile, s, stages).shared_bytes() <= SHARED_BYTES]
    return GemmConfig(*tile, fits[0], stages)


def problem(
    config: GemmConfig,
    rows: int,
    outputs: int,
    width: int,
    after: dict | None = None,
    chunk: int = 0,
    scaled: bool = False,
    gate: bool = False,
    gelu: bool = False,
    residual: int = 0,
    next_scale: bool = False,
    stats_out: bool = False,
) -> dict:
    """Tensors of a call, by name. With a `chunk` the input is normalised, and its rows' mean is many times their deviation.

    The input is what the call `after` writes, if one is given; it is then normalised with the statistics that it left.
    """
    generator = torch.Generator().manual_seed(rows * width + outputs)

    def random(*shape: int, mean: float = 0.3) -> Tensor:
        return torch.randn(shape, generator=generator) + mean

    weight = random(outputs, width) / width**0.5
    weight = (weight - weight.mean(dim=1, keepdim=True) if chunk else weight).bfloat16()
    if after:
        plain, scale, chunk = after["y"], after["next_scale"], after["config"].tile_n if chunk else 0
        x, statistics = after["scaled"] if scaled else plain, after["stats_out"]
    else:
        # The columns' trend makes the chunks' means differ.
        plain = (random(rows, width, mean=100 if chunk else 0.5) + torch.linspace(-2, 2, width)).bfloat16()
        scale = random(width) / 4
        x, statistics = (plain * (1 + scale)).bfloat16() if scaled else plain, row_statistics(plain, chunk)
    factor = 1 + scale.double() if scaled else torch.ones(width, dtype=torch.float64)
    return dict(
        config=config,
        weight=weight,
        plain=plain,
        x=x,
        bias=random(outputs),
        column_sums=(weight.double() @ factor).float() if chunk else None,
        statistics=statistics if chunk else None,
        stats_chunk=chunk,
        gate=random(outputs) if gate else None,
        gelu=gelu,
        residual=random(residual, outputs, mean=1).bfloat16() if residual else None,
        next_scale=random(outputs) if next_scale else None,
        y=poisoned(rows, outputs, dtype=torch.bfloat16),
        scaled=poisoned(rows, outputs, dtype=torch.bfloat16) if next_scale else None,
        stats_out=poisoned(rows, -(-outputs // config.tile_n), 2, dtype=torch.float32) if stats_out else None,
    )


def call_of(p: dict, workspace: Tensor) -> emulate.Call:
    config, names = p["config"], ("column_sums", "stats_chunk", "gate", "gelu", "residual", "next_scale")
    outputs = {"output": p["y"], "scaled_out": p["scaled"], "stats_out": p["stats_out"]}
    weight = pack(p["weight"].clone(), config).data
    around = {name: p[name] for name in names} | {"stats": p["statistics"]}
    call = LinearSkinny(p["x"], weight, p["bias"], workspace, p["y"].shape[1], config, **around, **outputs)
    return emulate.Call("linear_skinny_wgmma" if config.wgmma else "linear_skinny", call)


def workspace_for(problems: list[dict]) -> Tensor:
    elements = [workspace_elements(pack(p["weight"].clone(), p["config"]), len(p["x"])) for p in problems]
    return empty_workspace(max(elements), "cpu")


def run(emulator: emulate.Emulator, *problems: dict, seed: int = 0, **options: int) -> None:
    """Runs calls in a row, which share the workspace."""
    workspace = workspace_for(problems)
    emulator.run(*(call_of(p, workspace) for p in problems), seed=seed, **options)
    assert workspace.view(torch.int32).eq(-1).all()


def expected(p: dict, dtype: torch.dtype) -> Tensor:
    """The formula in `dtype`."""
    rows = len(p["x"])
    plain = p["plain"].to(dtype)
    tensors = {name: p[name] for name in ("x", "weight", "bias", "column_sums", "gate")}
    tensors["residual"] = None if p["residual"] is None else p["residual"][torch.arange(rows) % len(p["residual"])]
    tensors = {name: None if tensor is None else tensor.to(dtype) for name, tensor in tensors.items()}
    variance, mean = torch.var_mean(plain, dim=1, correction=0, keepdim=True)
    return reference(**tensors, mean=mean, variance=variance, gelu=p["gelu"])


def check(p: dict) -> None:
    y = p["y"]
    assert_contract(y, expected(p, torch.float64), expected(p, torch.float32).bfloat16())
    if p["next_scale"] is not None:
        assert torch.equal(p["scaled"], (y.float() * (1 + p["next_scale"])).bfloat16())
    if p["stats_out"] is not None:
        exact = row_statistics(y, p["config"].tile_n)
        torch.testing.assert_close(p["stats_out"], exact, rtol=1e-5, atol=1e-5)


def problems_of(tile: tuple[int, int, int, int, int]) -> list[dict]:
    """Every number of rows, slice counts and epilogues in turn; outputs and width that fill neither tiles nor stages."""
    shift, problems = SKINNY_TILES.index(tile), []
    for i, rows in enumerate(ROWS):
        config = config_of(tile, SLICES[(i + shift) % len(SLICES)], stages=2 + i % 2)
        outputs = (config.tile_n - 24, 2 * config.tile_n - 8, 8)[(i + shift) % 3]
        width = config.tile_k * (config.split_k + (i + shift) % 4) - (24, 0, 8)[i % 3]
        problems.append(problem(config, rows, outputs, width, **EPILOGUES[(i + 2 * shift) % len(EPILOGUES)]))
    return problems


@pytest.mark.parametrize("tile", SKINNY_TILES, ids=str)
def test_values(emulator, tile):
    problems = problems_of(tile)
    run(emulator, *problems, seed=SKINNY_TILES.index(tile))
    for p in problems:
        check(p)


def three_in_a_row(third: tuple[int, int, int, int, int]) -> list[dict]:
    """Calls each of which reads what those before it write, in several blocks and stages."""
    a = problem(config_of((64, 64, 64, 1, 4), 2), 13, 200, 392, chunk=40, gelu=True, next_scale=True, stats_out=True)
    b = problem(
        config_of((128, 128, 32, 2, 4), 3, 2), 13, 136, 200, a, chunk=1, scaled=True, gate=True, residual=5, stats_out=True
    )
    c = problem(config_of(third, 1), 13, 200, 136, b, chunk=1, next_scale=True, stats_out=True)
    return [a, b, c | dict(residual=a["y"])]


def written(problems: list[dict]) -> list[Tensor]:
    return [p[name] for p in problems for name in ("y", "scaled", "stats_out") if p[name] is not None]


@pytest.mark.parametrize("count", [2, 3])
def test_calls_in_a_row_are_what_they_are_alone(emulator, count):
    """Though each may start before the last is done; the last writes what the first reads."""
    alone = three_in_a_row((64, 128, 64, 1, 8))[:count]
    for p in alone:
        run(emulator, p)
        check(p)
    for seed in SEEDS:
        problems = three_in_a_row((64, 128, 64, 1, 8))[:count]
        problems[-1]["y"] = problems[0]["x"].view(-1)[: problems[-1]["y"].numel()].view_as(problems[-1]["y"])
        run(emulator, *problems, seed=seed)
        for ours, theirs in zip(written(problems), written(alone), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bits", [0x7FC0, 0xFFC0, 0xFFFF])
def test_a_row_of_nan_stays_a_row_of_nan(emulator, bits):
    """Also for the NaN whose bits mean that nothing was handed over yet."""
    p = problem(config_of(SKINNY_TILES[4], 3), 13, 40, 256)
    p["x"].view(torch.int16)[7, 100] = bits if bits < 0x8000 else bits - 0x10000
    run(emulator, p, seed=1)
    rest = torch.arange(13) != 7
    assert p["y"][7].isnan().all()
    assert_contract(p["y"][rest], expected(p, torch.float64)[rest], expected(p, torch.float32).bfloat16()[rest])


def test_bits_depend_on_the_slices_only(emulator):
    """Neither on the ring nor on the rows beside a row."""
    for tile in (64, 128, 64, 1, 4), (64, 64, 64, 2, 4):
        alone = problem(config_of(tile, 3, 2), 130, 40, 520)
        run(emulator, alone)
        for stages, rows in (3, 130), (2, 13):
            p = problem(config_of(tile, 3, stages), 130, 40, 520)
            p["x"], p["y"] = p["x"][:rows].clone(), p["y"][:rows].clone()
            run(emulator, p)
            assert torch.equal(p["y"], alone["y"][:rows])


@pytest.mark.parametrize(
    ("slices", "stages", "message"),
    [
        (1, 1, "linear_skinny takes rings of 2 to 16 stages"),
        (1, 17, "linear_skinny takes rings of 2 to 16 stages"),
        (11, 2, "slices of K of at least a stage"),
    ],
)
def test_cuts_that_are_refused(slices, stages, message):
    p = problem(GemmConfig(128, 128, 32, 2, 4, slices, stages), 5, 8, 320)
    with pytest.raises(emulate.EmulationError, match=message):
        run(emulate.build(KERNEL, WARPGROUP, flags=emulate.CARDS["hopper"]), p)
