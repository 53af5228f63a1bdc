"""The CUDA kernel of linear on a CPU (csrc/emulate), against float64."""

import re

import pytest
import torch
from torch import Tensor

from dllm_kernels.kernels.stream import SHARED_BYTES, TILES, StreamConfig
from dllm_kernels.ops.packing import pack
from dllm_kernels.ops.stream_linear import empty_workspace, reference, row_statistics, workspace_elements
from tests import emulate
from tests.numerics import assert_contract, poisoned

pytestmark = pytest.mark.skipif(emulate.COMPILER is None, reason="no g++: the CUDA kernels were not run")

KERNEL = "csrc/kernels/linear.cu"
STREAM = "csrc/include/dllm/weight_stream.cuh"
SEEDS = range(8)  # every pair of copies' and launches' extremes; csrc/emulate/machine.cpp, make_policy
ROWS = (1, 8, 13, 63, 64, 65, 130)
SLICES = (1, 2, 3, 5, 8)
EPILOGUES = (
    {},
    dict(chunk=40, gelu=True, left=True),
    dict(residual=5, left=True),
    dict(chunk=24, scaled=True, gate=True, residual=64, next_scale=True, left=True),
    dict(gate=True, next_scale=True),
    dict(chunk=512),
    dict(gelu=True, residual=1),
)


@pytest.fixture(scope="module")
def emulator() -> emulate.Emulator:
    return emulate.build(KERNEL)


def cut(tile: tuple[int, int, int, int, int], slices: int, stages: int = 3) -> StreamConfig:
    """The closest to what is asked for that shared memory allows."""
    fits = [s for s in range(slices, 9) if StreamConfig(tile, s, stages).shared_bytes <= SHARED_BYTES]
    return StreamConfig(tile, fits[0], stages)


def problem(
    config: StreamConfig,
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
    left: bool = False,
) -> dict:
    """Tensors of a call, by name. With a `chunk` the input is normalised, and its rows' mean is 100 times their deviation.

    The input is what the call `after` writes, if one is given; it is then normalised with the statistics that it left.
    """
    generator = torch.Generator().manual_seed(rows * width + outputs)

    def random(*shape: int, mean: float = 0.3) -> Tensor:
        return torch.randn(shape, generator=generator) + mean

    weight = random(outputs, width) / width**0.5
    weight = (weight - weight.mean(dim=1, keepdim=True) if chunk else weight).bfloat16()
    if after:
        plain, scale, chunk = after["y"], after["next_scale"], after["config"].outputs if chunk else 0
        x, statistics = after["scaled"] if scaled else plain, after["left"]
    else:
        plain = random(rows, width, mean=100 if chunk else 0.5).bfloat16()
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
        chunk=chunk,
        gate=random(outputs) if gate else None,
        gelu=gelu,
        residual=random(residual, outputs, mean=1).bfloat16() if residual else None,
        next_scale=random(outputs) if next_scale else None,
        y=poisoned(rows, outputs, dtype=torch.bfloat16),
        scaled=poisoned(rows, outputs, dtype=torch.bfloat16) if next_scale else None,
        left=poisoned(rows, -(-outputs // config.outputs), 2, dtype=torch.float32) if left else None,
    )


def call_of(p: dict, workspace: Tensor) -> emulate.Linear:
    config = p["config"]
    n, m, sixteens, tiles, deep = config.tile
    return emulate.Linear(
        weight=pack(p["weight"].clone(), config).data,
        input=p["x"],
        bias=p["bias"],
        column_sums=p["column_sums"],
        statistics=p["statistics"],
        gate=p["gate"],
        residual=p["residual"],
        next_scale=p["next_scale"],
        output=p["y"],
        scaled_output=p["scaled"],
        output_statistics=p["left"],
        workspace=workspace,
        rows=p["y"].shape[0],
        outputs=p["y"].shape[1],
        width=p["x"].shape[1],
        chunks=p["statistics"].shape[1] if p["chunk"] else 0,
        chunk=p["chunk"],
        residual_rows=1 if p["residual"] is None else len(p["residual"]),
        warps_n=n,
        warps_m=m,
        sixteens=sixteens,
        tiles=tiles,
        deep=deep,
        slices=config.slices,
        ring_stages=config.stages,
        gelu=p["gelu"],
    )


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
    if p["left"] is not None:
        exact = row_statistics(y, p["config"].outputs)
        torch.testing.assert_close(p["left"], exact, rtol=1e-5, atol=1e-5)


def problems_of(tile: tuple[int, int, int, int, int]) -> list[dict]:
    """Every number of rows, slice counts and epilogues in turn; outputs and width that fill neither tiles nor stages."""
    shift, problems = TILES.index(tile), []
    for i, rows in enumerate(ROWS):
        config = cut(tile, SLICES[(i + shift) % len(SLICES)], stages=2 + i % 2)
        outputs = (config.outputs - 24, 2 * config.outputs - 8, 8)[(i + shift) % 3]
        width = config.depth * (config.slices + (i + shift) % 4) - (24, 0, 8)[i % 3]
        problems.append(problem(config, rows, outputs, width, **EPILOGUES[(i + 2 * shift) % len(EPILOGUES)]))
    return problems


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_values(emulator, tile):
    problems = problems_of(tile)
    run(emulator, *problems, seed=TILES.index(tile))
    for p in problems:
        check(p)


def three_in_a_row(third: tuple[int, int, int, int, int]) -> list[dict]:
    """Calls each of which reads what those before it write, in several blocks and stages."""
    a = problem(cut((2, 2, 2, 4, 2), 2), 13, 200, 392, chunk=40, gelu=True, next_scale=True, left=True)
    b = problem(cut((4, 2, 2, 8, 1), 3, 2), 13, 136, 200, a, chunk=1, scaled=True, gate=True, residual=5, left=True)
    c = problem(cut(third, 1), 13, 200, 136, b, chunk=1, next_scale=True, left=True)
    return [a, b, c | dict(residual=a["y"])]


def written(problems: list[dict]) -> list[Tensor]:
    return [p[name] for p in problems for name in ("y", "scaled", "left") if p[name] is not None]


@pytest.mark.parametrize("count", [2, 3])
def test_calls_in_a_row_are_what_they_are_alone(emulator, count):
    """Though each may start before the last is done; the last writes what the first reads."""
    alone = three_in_a_row((6, 1, 2, 8, 1))[:count]
    for p in alone:
        run(emulator, p)
        check(p)
    for seed in SEEDS:
        problems = three_in_a_row((6, 1, 2, 8, 1))[:count]
        problems[-1]["y"] = problems[0]["x"].view(-1)[: problems[-1]["y"].numel()].view_as(problems[-1]["y"])
        run(emulator, *problems, seed=seed)
        for ours, theirs in zip(written(problems), written(alone), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bits", [0x7FC0, 0xFFC0, 0xFFFF])
def test_a_row_of_nan_stays_a_row_of_nan(emulator, bits):
    """Also for the NaN whose bits mean that nothing was handed over yet."""
    p = problem(cut(TILES[4], 3), 13, 40, 256)
    p["x"].view(torch.int16)[7, 100] = bits if bits < 0x8000 else bits - 0x10000
    run(emulator, p, seed=1)
    rest = torch.arange(13) != 7
    assert p["y"][7].isnan().all()
    assert_contract(p["y"][rest], expected(p, torch.float64)[rest], expected(p, torch.float32).bfloat16()[rest])


def test_bits_depend_on_the_slices_only(emulator):
    """Neither on the ring nor on the rows beside a row."""
    for tile in (4, 1, 2, 8, 2), (4, 2, 1, 4, 2):
        alone = problem(cut(tile, 3, 2), 130, 40, 520)
        run(emulator, alone)
        for stages, rows in (3, 130), (4, 13):
            p = problem(cut(tile, 3, stages), 130, 40, 520)
            p["x"], p["y"] = p["x"][:rows].clone(), p["y"][:rows].clone()
            run(emulator, p)
            assert torch.equal(p["y"], alone["y"][:rows])


@pytest.fixture(scope="module")
def faulty() -> emulate.Emulator:
    """A build with all of FAULTS, one of which a run switches on, for the tiles that `faulty_calls` has."""
    numbered = {path: {} for path, _, _ in FAULTS.values()}
    for number, (path, piece, new) in enumerate(FAULTS.values(), 1):
        numbered[path][number] = (piece, new)
    replaced = {}
    for path, faults in numbered.items():
        replaced |= emulate.switchable(path, faults)
    replaced[KERNEL] = re.sub(r"    if \(is\((?!2, 2, 2, 4, 2|4, 2, 2, 8, 1).*\n", "", replaced[KERNEL])
    return emulate.build(KERNEL, replaced=replaced)


def faulty_calls(faulty: emulate.Emulator, fault: int, seed: int) -> None:
    small, wide = (2, 2, 2, 4, 2), (4, 2, 2, 8, 1)
    in_a_row = three_in_a_row(third=small)
    beside = [
        problem(cut(wide, 3, 2), 141, 120, 168, chunk=40, gate=True, gelu=True, residual=64, left=True),
        problem(cut(small, 1, 2), 75, 72, 648, chunk=40, residual=75, next_scale=True, left=True),
    ]
    for calls in in_a_row, beside:
        run(faulty, *calls, seed=seed, fault=fault)
        for p in calls:
            check(p)


FAULTS = {
    # name: file, where, and what stands there instead
    "the filling of a slot not waited for": (STREAM, "«barrier_wait(full_ + slot_, parity_);»", ""),
    "the wrong parity of a full slot": (
        STREAM,
        "«barrier_wait(full_ + slot_, parity_);»",
        "barrier_wait(full_ + slot_, parity_ ^ 1);",
    ),
    "a parity that never changes": (STREAM, "«parity_ ^= 1;»", ""),
    "no __syncthreads in a stage": (STREAM, "}\n            «__syncthreads();»", ""),
    "a slot filled before all have left it": (STREAM, "before = «slot_ == 0 ? ring_stages_ - 1 : slot_ - 1»;", "slot_"),
    "a slot filled by every warp": (STREAM, "if («turn» && lane == 0", "true"),
    "a slot never filled again": (STREAM, "turn && «lane == 0»", "false"),
    "the last slot filled twice": (STREAM, "«stage_ > 0»", "true"),
    "a slot filled with the next stage's weights": (
        STREAM,
        "load_weights(«stage_ - 1 + ring_stages_»",
        "stage_ + ring_stages_",
    ),
    "a slot filled with the next stage's input": (STREAM, "load_input(«stage_ - 1 + ring_stages_»", "stage_ + ring_stages_"),
    "a stage after the last": (STREAM, "«stage_ - 1 + ring_stages_ < source_.stages * source_.products»", "true"),
    "barriers used before they are made": (STREAM, "«__syncthreads();»\n        launch_dependents", ""),
    "barriers not announced": (STREAM, "«barriers_ready();»", ""),
    "fewer bytes expected than copied": (STREAM, "full_ + slot, «Tile::kStageBytes»);", "Tile::kWeightBytes"),
    "the predecessor not waited for": (STREAM, "«wait_for_predecessors();»", "if (warp > 0) wait_for_predecessors();"),
    "the predecessor waited for by one warp": (
        STREAM,
        "«wait_for_predecessors();»",
        "if (warp == 0) wait_for_predecessors();",
    ),
    "input of the next row": (STREAM, "«source_.row»,", "source_.row + 1"),
    "input of the first part of a stage": (STREAM, "«part * 32», full_", "0"),
    "input of the first rows": (STREAM, "«Tile::warp_m()» * (Tile", "0"),
    "input of the first tile": (STREAM, "(input + «n * 512»)", "0"),
    "weights of the first slot": (STREAM, "weights_at + «slot_»", "0"),
    "weights of the first part of a stage": (STREAM, "«part» * (Tile::kOutputs * 64)", "0"),
    "swapped rows of a": (STREAM, "a[i][0].x, «a[i][0].y», a[i][0].z", "a[i][0].z"),
    "swapped columns of a": (STREAM, "a[i][1].z, «a[i][1].w», b", "a[i][0].w"),
    "swapped rows of b": (STREAM, "a[i][0].w, «b[n].x», b[n].y", "b[n].y"),
    "rows of b twice": (STREAM, "b[n].z, «b[n].w»", "b[n].y"),
    "no __syncthreads after the stream": (KERNEL, "    }\n    «__syncthreads();»\n", ""),
    "no __syncthreads after all sums": (KERNEL, "copies_wait<0>();\n    «__syncthreads();»", ""),
    "the residual not waited for": (KERNEL, "«copies_wait<0>();»", ""),
    "the last rows left out": (KERNEL, "tiles = «(rows + 7) / 8»", "rows / 8"),
    "rows after the last": (KERNEL, "own_rows = «min(own_end * 8, rows)»", "own_end * 8"),
    "outputs after the last": (KERNEL, "if («real») {\n                const size_t here", "true"),
    "constants after the last": (KERNEL, "real = «output < outputs && from»", "from != nullptr"),
    "constants that are not there": (KERNEL, "real = «output < outputs && from»", "output < outputs"),
    "residual after the last": (KERNEL, "call.residual_rows;\n            const bool real = «output < outputs»", "true"),
    "a slice begins late": (KERNEL, "begin = «stages * slice / slices»", "(stages * slice + slices - 1) / slices"),
    "a slice ends early": (KERNEL, "end = «stages * (slice + 1) / slices»", "stages * (slice + 1) / slices - (slice == 1)"),
    "weights of the first slice": (KERNEL, "* stages + «begin»)", "0"),
    "input of the first slice": (KERNEL, "static_cast<int32_t>(«begin» * Tile", "0"),
    "the workspace of the first group": (KERNEL, "static_cast<size_t>(«blockIdx.z * gridDim.y + column_block»)", "0"),
    "the place of the first slice": (KERNEL, "place = workspace + «slice» *", "0"),
    "a tile handed over that nobody takes": (KERNEL, "if («first_tile + n < tiles»)", "true"),
    "a value not waited for": (KERNEL, "missing = true; «missing»;", "false"),
    "a value looked at in part": (KERNEL, "missing |= «!complete(value)»;", "__float_as_uint(value.x) == kEmpty"),
    "a value not cleared": (KERNEL, "«clear(at);»", ""),
    "a slice after the last": (KERNEL, "if («first + s < slices»)", "first + s <= slices"),
    "the sums of the last slice only": (KERNEL, "sum = {«sum.x + value.x»,", "value.x"),
    "a piece after the last": (KERNEL, "«item + Tile::kWarps < items»;", "item + Tile::kWarps <= items"),
    "the second piece of two in the first's place": (KERNEL, "«(item + Tile::kWarps) / kPieces»,", "item / kPieces"),
    "a place too small for the owned rows": (
        KERNEL,
        "return «(Tile::kRows / 8 + slices - 1) / slices * 8»",
        "Tile::kRows / 8 / slices * 8",
    ),
    "no place for the residual": (KERNEL, "+ («with_residual» ?", "false"),
    "the residual's rows not repeated": (
        KERNEL,
        "from = «token < call.residual_rows ? token : token % call.residual_rows»;",
        "token",
    ),
    "means of a whole last chunk": (KERNEL, "chunks[i].x * static_cast<float>(«min(chunk, width - i * chunk)»)", "chunk"),
    "squares of a whole last chunk": (KERNEL, "mean) * static_cast<float>(«min(chunk, width - i * chunk)»)", "chunk"),
    "the means of chunks taken for equal": (KERNEL, "one.y + «(one.x - mean) * (one.x - mean)» *", "0"),
    "rows not centred": (KERNEL, "product.x - «moments.x» *", "0"),
    "no gate": (KERNEL, "value[0] *= «gate.x»", "1"),
    "no GELU": (KERNEL, "«value[i] = gelu(value[i]);»", ""),
    "scaled before it is rounded": (KERNEL, "pack_bf16(«rounded[0]» * (1 + scale", "value[0]"),
    "means of unrounded values": (KERNEL, "total += real ? «rounded[i]» : 0", "value[i]"),
    "squares of unrounded values": (KERNEL, "written[quad][i] = «rounded[i]»;", "value[i]"),
    "statistics of padding": (KERNEL, "total += «real» ?", "true"),
    "statistics of the first block": (KERNEL, "gridDim.y + «column_block»]", "0"),
}


def test_no_fault_is_found_where_none_is(faulty):
    for seed in SEEDS[:3]:
        faulty_calls(faulty, 0, seed)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(faulty, fault):
    number = list(FAULTS).index(fault) + 1
    with pytest.raises((AssertionError, emulate.EmulationError)):
        for seed in SEEDS:
            faulty_calls(faulty, number, seed)
