"""The CUDA kernel of linear on a CPU (tests/emulator), against float64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dllm_kernels.ops.card import SHARED_BYTES
from dllm_kernels.ops.kernels import TILES
from dllm_kernels.ops.linear.config import SKINNY_TILES, WGMMA_TILES, GemmConfig, TileShape
from dllm_kernels.ops.linear.packing import pack
from dllm_kernels.ops.linear.reference import reference, row_statistics
from dllm_kernels.ops.linear.skinny import LinearSkinny, empty_workspace, workspace_elements
from tests.emulator import emulate
from tests.numerics import assert_contract, poisoned

pytestmark = pytest.mark.skipif(emulate.COMPILER is None, reason="no g++: the CUDA kernels were not run")

KERNEL = "csrc/kernels/linear_skinny.cu"
SEEDS = range(8)  # every pair of copies' and launches' extremes; tests/emulator/machine.cpp, make_policy
ROWS = (1, 8, 13, 63, 64, 65, 130)
EPILOGUES = (
    {},
    dict(chunk=40, gelu=True, stats_out=True),
    dict(residual=5, stats_out=True),
    dict(chunk=24, scaled=True, gate=True, residual=64, next_scale=True, stats_out=True),
    dict(gate=True, next_scale=True),
    dict(chunk=512),
    dict(gelu=True, residual=1),
)


@pytest.fixture(scope="module")
def portable() -> emulate.Emulator:
    return emulate.build(KERNEL)


@pytest.fixture(scope="module")
def hopper() -> emulate.Emulator:
    return emulate.build(KERNEL, flags=emulate.CARDS["hopper"])


def config_of(tile_n: int, split_k: int = 1, stages: int = 3, input_stages: int = 2, tile_m: int = 64) -> GemmConfig:
    """By mma.sync."""
    return GemmConfig(tile_m, tile_n, 64, tile_m // 32, 2, split_k, stages, input_stages)


def wgmma_config_of(config: GemmConfig) -> GemmConfig:
    """The same by wgmma."""
    return replace(config, num_warps_m=config.tile_m // 16, num_warps_n=1)


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


def call_of(p: dict, workspace: Tensor, clusters: bool = True) -> emulate.Call:
    config, names = p["config"], ("column_sums", "stats_chunk", "gate", "gelu", "residual", "next_scale")
    outputs = {"output": p["y"], "scaled_out": p["scaled"], "stats_out": p["stats_out"]}
    weight = pack(p["weight"].clone(), config).data
    around = {name: p[name] for name in names} | {"stats": p["statistics"]}
    call = LinearSkinny(p["x"], weight, p["bias"], workspace, p["y"].shape[1], config, clusters=clusters, **around, **outputs)
    return emulate.Call("linear_skinny", call)


def workspace_for(problems: list[dict], max_cluster: int) -> Tensor:
    elements = [workspace_elements(pack(p["weight"].clone(), p["config"]), len(p["x"]), max_cluster) for p in problems]
    return empty_workspace(max(elements), "cpu")


def run(emulator: emulate.Emulator, *problems: dict, seed: int = 0, clusters: bool = True, **options: int) -> None:
    """Runs calls in a row, which share the workspace."""
    workspace = workspace_for(problems, 8 if clusters else 1)
    emulator.run(*(call_of(p, workspace, clusters) for p in problems), seed=seed, **options)
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


def problems_of(tile: TileShape) -> list[dict]:
    """Every number of rows, slice counts, rings, epilogues and padding in turn; of blocks of 128 rows every slice count with a
    full one and one that is not."""
    slices = [found.split_k for found in TILES["linear_skinny"] if found.shape == tile]
    n, problems = tile[1], []
    shift = n // 32 + tile[4]
    for i, rows in enumerate(ROWS):
        config = GemmConfig(*tile, slices[(i + shift) % len(slices)], 2 + i % 2, 2 + i // 2 % 2)
        if config.shared_bytes() > SHARED_BYTES:
            config = replace(config, num_stages=2, input_stages=2)
        outputs = (n, 2 * n + 8, n + 40, 2 * n, 8)[i % 5]
        width = (config.split_k + (0, 5, 2)[(i + shift) % 3]) * config.tile_k - (0, 24, 8)[(i + tile[4]) % 3]
        problems.append(problem(config, rows, outputs, width, **EPILOGUES[(i + 2 * shift) % len(EPILOGUES)]))
    if config.tile_m == 128:
        after = dict(chunk=40, residual=7, next_scale=True, stats_out=True)
        problems += [problem(GemmConfig(*tile, s, 2, 2), 128 + 69, n + 8, (s + 1) * 64, **after) for s in slices]
    return problems


def check_values(emulator: emulate.Emulator, tile: TileShape, seed: int, clusters: bool = True) -> list[dict]:
    problems = problems_of(tile)
    run(emulator, *problems, seed=seed, clusters=clusters)
    for p in problems:
        check(p)
    return problems


@pytest.mark.parametrize("tile", SKINNY_TILES, ids=str)
def test_values(portable, tile):
    check_values(portable, tile, SKINNY_TILES.index(tile))


@pytest.mark.parametrize("tile", SKINNY_TILES[::2], ids=str)
def test_values_without_clusters(portable, tile):
    """They are those of clusters, bit for bit."""
    problems = check_values(portable, tile, SKINNY_TILES.index(tile), clusters=False)
    for ours, theirs in zip(written(problems), written(check_values(portable, tile, 0)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("tile", WGMMA_TILES, ids=str)
def test_values_by_wgmma(hopper, tile):
    check_values(hopper, tile, WGMMA_TILES.index(tile))


def three_in_a_row() -> list[dict]:
    """Calls the last of which reads what the first writes, in several blocks and stages, the second's rings deeper than its
    slices."""
    a = problem(config_of(64, 2), 75, 128, 384, chunk=40, gelu=True, residual=5, next_scale=True, stats_out=True)
    b = problem(config_of(64, 4, 2, 3), 75, 64, 256, chunk=24, gate=True, stats_out=True)
    c = problem(config_of(64, 2, 3), 75, 64, 128, a, chunk=1, scaled=True, gate=True, residual=75, stats_out=True)
    return [a, b, c]


def written(problems: list[dict]) -> list[Tensor]:
    return [p[name] for p in problems for name in ("y", "scaled", "stats_out") if p[name] is not None]


@pytest.mark.parametrize("clusters", [True, False])
def test_calls_in_a_row_are_what_they_are_alone(portable, clusters):
    """Though each may start before the last is done; the last writes what the first reads."""
    alone = three_in_a_row()
    for p in alone:
        run(portable, p, clusters=clusters)
        check(p)
    for seed in SEEDS:
        problems = three_in_a_row()
        problems[-1]["y"] = problems[0]["x"].view(-1)[: problems[-1]["y"].numel()].view_as(problems[-1]["y"])
        run(portable, *problems, seed=seed, clusters=clusters)
        for ours, theirs in zip(written(problems), written(alone), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("clusters", [True, False])
@pytest.mark.parametrize("bits", [0x7FC0, 0xFFC0, 0xFFFF])
def test_a_row_of_nan_stays_a_row_of_nan(portable, bits, clusters):
    """Also for the NaN whose bits mean that nothing was handed over yet."""
    p = problem(config_of(64, 4), 13, 64, 320)
    p["x"].view(torch.int16)[7, 100] = bits if bits < 0x8000 else bits - 0x10000
    run(portable, p, seed=1, clusters=clusters)
    rest = torch.arange(13) != 7
    assert p["y"][7].isnan().all()
    assert_contract(p["y"][rest], expected(p, torch.float64)[rest], expected(p, torch.float32).bfloat16()[rest])


@pytest.mark.parametrize("wgmma", [False, True])
def test_bits_depend_on_the_slices_only(hopper, wgmma):
    """Neither on the rings nor on the rows of a block, nor on the rows beside a row."""

    def of(*rings: int) -> dict:
        config = wgmma_config_of(config_of(64, 4, *rings)) if wgmma else config_of(64, 4, *rings)
        if not wgmma and config.tile_m == 128:
            config = replace(config, num_warps_m=4)
        return problem(config, 130, 72, 576)

    alone = of(2, 2)
    run(hopper, alone)
    for stages, input_stages, rows, of_a_block in (3, 4, 130, 64), (2, 3, 13, 64), (2, 3, 130, 128), (3, 2, 13, 128):
        p = of(stages, input_stages, of_a_block)
        p["x"], p["y"] = p["x"][:rows].clone(), p["y"][:rows].clone()
        run(hopper, p)
        assert torch.equal(p["y"], alone["y"][:rows])


@pytest.mark.parametrize(
    ("config", "outputs", "width", "message"),
    [
        (config_of(64, stages=1), 64, 128, "linear_skinny takes rings of 2 to 16 stages, of input 2 to 8"),
        (config_of(64, stages=17), 64, 128, "linear_skinny takes rings of 2 to 16 stages, of input 2 to 8"),
        (config_of(64, input_stages=1), 64, 128, "linear_skinny takes rings of 2 to 16 stages, of input 2 to 8"),
        (config_of(64, input_stages=9), 64, 128, "linear_skinny takes rings of 2 to 16 stages, of input 2 to 8"),
        (config_of(64, 4), 64, 192, "slices of K of at least a stage"),
        (config_of(96, 7), 64, 512, "linear_skinny has no code for tiles of .* slices$"),
        (config_of(64, 6), 64, 512, "linear_skinny has no code for tiles of .* slices$"),
        (config_of(64), 68, 128, "takes n and k that are multiples of 8"),
        (wgmma_config_of(config_of(64, 8, tile_m=128)), 64, 512, "linear_skinny has no code for tiles of .* slices$"),
        (wgmma_config_of(config_of(80, 2, tile_m=128)), 80, 512, "linear_skinny has no code for tiles of 128 x 80"),
        (replace(config_of(64), tile_n=32), 64, 128, "linear_skinny has no code for tiles of 64 x 32"),
    ],
)
def test_configs_that_are_refused(hopper, config, outputs, width, message):
    p = problem(config, 5, outputs, width)
    with pytest.raises(emulate.EmulationError, match=message):
        run(hopper, p)


def test_a_card_without_warpgroups_refuses_them(portable):
    p = problem(wgmma_config_of(config_of(64)), 5, 64, 128)
    with pytest.raises(emulate.EmulationError, match="tiles for wgmma run on Hopper only"):
        run(portable, p)
