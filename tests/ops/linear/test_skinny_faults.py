"""Faults planted in the CUDA kernel of linear are found on a CPU (tests/emulator): its values would tell."""

import functools
import re

import pytest

from tests.emulator import emulate
from tests.ops.linear.test_skinny_emulated import KERNEL, SEEDS, WARPGROUP, check, config_of, problem, run, three_in_a_row

pytestmark = pytest.mark.skipif(emulate.COMPILER is None, reason="no g++: the CUDA kernels were not run")

STREAM, ROWS = "csrc/include/dllm/skinny_gemm.cuh", "csrc/include/dllm/rows.cuh"


def faulty_calls(faulty: emulate.Emulator, fault: int, seed: int) -> None:
    small, wide = (64, 64, 64, 1, 4), (128, 128, 32, 2, 4)
    in_a_row = three_in_a_row(third=(64, 128, 64, 1, 8))
    beside = [
        problem(config_of(wide, 5, 2), 141, 120, 168, chunk=40, gate=True, gelu=True, residual=64, stats_out=True),
        problem(config_of(small, 1, 2), 75, 72, 648, chunk=40, residual=75, next_scale=True, stats_out=True),
        problem(config_of(small, 1, 3), 5, 8, 40),
    ]
    for calls in in_a_row, beside:
        run(faulty, *calls, seed=seed, fault=fault)
        for p in calls:
            check(p)


FILLING = "«mbarrier_wait(weights_full_ + slot_, parity_);»"
INPUT_FILLING = "«mbarrier_wait(input_full_ + input_slot, stage_ / Tile::kInputStages % 2);»"
LEAVING = "«__syncthreads();»\n            if (threadIdx.x == 0)"
REFILLING = "if («threadIdx.x == 0») {\n                if (stage_"
MERGED = "\n    }\n    return {mean, rsqrtf(sum_over"
STREAM_FAULTS = {
    # name: file, where, and what stands there instead
    "the filling of a slot not waited for": (STREAM, FILLING, ""),
    "the wrong parity of a full slot": (STREAM, FILLING, "mbarrier_wait(weights_full_ + slot_, parity_ ^ 1);"),
    "the filling of a slot of input not waited for": (STREAM, INPUT_FILLING, ""),
    "no __syncthreads in a stage": (STREAM, LEAVING, ""),
    "weights of the first slot": (STREAM, "weights = weights_ + «slot_» *", "0"),
    "input of the first slot": (STREAM, "input = input_ + «input_slot» *", "0"),
}
FAULTS = STREAM_FAULTS | {
    "a parity that never changes": (STREAM, "«parity_ ^= 1;»", ""),
    "the wrong parity of a full slot of input": (
        STREAM,
        INPUT_FILLING,
        "mbarrier_wait(input_full_ + input_slot, (stage_ / Tile::kInputStages + 1) % 2);",
    ),
    "a parity of input that never changes": (STREAM, INPUT_FILLING, "mbarrier_wait(input_full_ + input_slot, 0);"),
    "a slot filled by every warp": (STREAM, REFILLING, "threadIdx.x % 32 == 0"),
    "a slot never filled again": (STREAM, "if («stage_ + ring_stages_ < all_stages_»)", "false"),
    "a stage after the last": (STREAM, "if («stage_ + ring_stages_ < all_stages_»)", "true"),
    "a slot of input never filled again": (STREAM, "if («stage_ + Tile::kInputStages < all_stages_»)", "false"),
    "a stage of input after the last": (STREAM, "if («stage_ + Tile::kInputStages < all_stages_»)", "true"),
    "a slot filled with the next stage": (STREAM, "load_weights(«stage_ + ring_stages_»,", "stage_ + ring_stages_ + 1"),
    "a slot of input filled with the next stage": (
        STREAM,
        "load_input(«stage_ + Tile::kInputStages»,",
        "stage_ + Tile::kInputStages + 1",
    ),
    "another slot filled again": (STREAM, "load_weights(stage_ + ring_stages_, «slot_»)", "(slot_ + 1) % ring_stages_"),
    "another slot of input filled again": (
        STREAM,
        "load_input(stage_ + Tile::kInputStages, «input_slot»)",
        "(input_slot + 1) % Tile::kInputStages",
    ),
    "more stages than there are": (STREAM, "stage < «min(ring_stages, all_stages_)»", "ring_stages"),
    "more stages of input than there are": (
        STREAM,
        "warp < «min(static_cast<uint32_t>(Tile::kInputStages), all_stages_)»",
        "static_cast<uint32_t>(Tile::kInputStages)",
    ),
    "barriers used before they are made": (STREAM, "«__syncthreads();»\n        if (trigger_ == kAtOnce)", ""),
    "barriers not announced": (STREAM, "«fence_mbarrier_init();»", ""),
    "fewer bytes expected than copied": (STREAM, "(weights_full_ + slot, «Tile::kWeightBytes»)", "Tile::kWeightBytes / 2"),
    "fewer bytes of input expected than copied": (
        STREAM,
        "(input_full_ + slot, «Tile::kInputBytes»)",
        "Tile::kInputBytes / 2",
    ),
    "the predecessor not waited for": (STREAM, "«pdl_wait();»", "if (warp > 0) pdl_wait();"),
    "the predecessor waited for by one warp": (
        STREAM,
        "«pdl_wait();»",
        "if (warp == 0) pdl_wait();",
    ),
    "input of the next row": (STREAM, "«source_.row»,", "source_.row + 1"),
    "input of the first part of a stage": (STREAM, "* Tile::kK) + «part * 32»,", "0"),
    "the first part of a slot of input": (STREAM, "Tile::kInputBytes + «part» * (Tile::kM * 64), source_", "0"),
    "input of the first rows": (STREAM, "input += «Tile::warp_m()» *", "0"),
    "input of the first tile": (STREAM, "(Tile::kM * 64) + «n * 512»)", "0"),
    "input read from the first part of a stage": (STREAM, "ldmatrix_x4(input + «part» *", "0"),
    "pieces of the input not in changed places": (STREAM, "(lane / 8 ^ «lane % 8 / 2»)", "0"),
    "pieces of the input in other places": (STREAM, "(lane / 8 ^ «lane % 8 / 2»)", "lane % 4"),
    "weights of the first warp": (STREAM, "weights += «Tile::warp_n()» *", "0"),
    "the same columns of weights twice": (STREAM, "+ «lane / 16» * (Tile::kN * 16) +", "0"),
    "weights of the first part of a stage": (STREAM, "ldmatrix_x4(weights + («part» * 4", "0"),
    "weights of the first half": (STREAM, "ldmatrix_x4(weights + (part * 4 + «half * 2»)", "0"),
    "weights of the first sixteen": (STREAM, "+ «i» * (Tile::kWarpsN * 256))", "0"),
    "swapped rows of a": (STREAM, "a[i][0].x, «a[i][0].y», a[i][0].z", "a[i][0].z"),
    "swapped columns of a": (STREAM, "a[i][1].z, «a[i][1].w», b", "a[i][0].w"),
    "swapped rows of b": (STREAM, "a[i][0].w, «b[n].x», b[n].y", "b[n].y"),
    "rows of b twice": (STREAM, "b[n].z, «b[n].w»", "b[n].y"),
    "no __syncthreads after all sums": (KERNEL, "}\n    «__syncthreads();»\n    for", ""),
    "the residual not waited for": (KERNEL, "«cp_async_wait<0>();»", ""),
    "the last rows left out": (KERNEL, "tiles = «(rows + 7) / 8»", "rows / 8"),
    "rows after the last": (KERNEL, "own_rows = «min(own_end * 8, rows)»", "own_end * 8"),
    "outputs after the last": (KERNEL, "if («real[quad]») {", "true"),
    "constants after the last": (KERNEL, "real = «output < outputs && from»", "from != nullptr"),
    "constants that are not there": (KERNEL, "real = «output < outputs && from»", "output < outputs"),
    "residual after the last": (KERNEL, "call.residual_rows;\n            const bool real = «output < outputs»", "true"),
    "a slice begins late": (KERNEL, "begin = «stages * slice / slices»", "(stages * slice + slices - 1) / slices"),
    "a slice ends early": (KERNEL, "end = «stages * (slice + 1) / slices»", "stages * (slice + 1) / slices - (slice == 1)"),
    "weights of the first slice": (KERNEL, "* stages + «begin»)", "0"),
    "input of the first slice": (KERNEL, "static_cast<int32_t>(«begin» * Tile", "0"),
    "the workspace of the first group": (KERNEL, "static_cast<size_t>(«blockIdx.z * column_blocks + column_block»)", "0"),
    "the place of the first slice": (KERNEL, "place = workspace + «slice» *", "0"),
    "a tile handed over that nobody takes": (KERNEL, "if («first_tile + n < tiles»)", "true"),
    "a value not waited for": (KERNEL, "missing = true; «missing»;", "false"),
    "a value looked at in part": (KERNEL, "missing |= «!lamport_ready(value)»;", "__float_as_uint(value.x) == kLamportEmpty"),
    "a value not cleared": (KERNEL, "«lamport_reset(at);»", ""),
    "a slice after the last": (KERNEL, "if («first + s < slices») {", "first + s <= slices"),
    "the sums of the last slice only": (KERNEL, "sum = {«sum.x + value.x»,", "value.x"),
    "a piece after the last": (KERNEL, "«item + Tile::kWarps < items»;", "item + Tile::kWarps <= items"),
    "the second piece of two in the first's place": (KERNEL, "«(item + Tile::kWarps) / kPieces»,", "item / kPieces"),
    "a place too small for the owned rows": (
        KERNEL,
        "return «(Tile::kM / 8 + slices - 1) / slices * 8»",
        "Tile::kM / 8 / slices * 8",
    ),
    "no place for the residual": (KERNEL, "+ («with_residual» ?", "false"),
    "the residual's rows not repeated": (
        KERNEL,
        "from = «token < call.residual_rows ? token : token % call.residual_rows»;",
        "token",
    ),
    "means of a whole last chunk": (
        ROWS,
        "mean += chunks[i].x * «columns(i)»;\n    }\n    mean = sum_over",
        "static_cast<float>(chunk)",
    ),
    "squares of a whole last chunk": (ROWS, f"(one.x - mean) * «columns(i)»;{MERGED}", "static_cast<float>(chunk)"),
    "the means of chunks taken for equal": (ROWS, f"«(one.x - mean) * (one.x - mean)» * columns(i);{MERGED}", "0"),
    "the means of the first chunks taken for equal": (ROWS, "first.y + «(first.x - mean) * (first.x - mean)» *", "0"),
    "squares of chunks after the last": (ROWS, "squares = «lane < count» ?", "true"),
    "the first chunk twice": (ROWS, "float mean = first.x * columns(lane);\n    for (uint32_t i = «lane + kLanes»;", "lane"),
    "statistics of rows read too early": (KERNEL, "statistics = «read_ahead(first + kStep)»;", "read_ahead(first)"),
    "rows not centred": (KERNEL, "product.x - «mean_and_factor.x» *", "0"),
    "no gate": (KERNEL, "value[0] *= «gate.x»", "1"),
    "no GELU": (KERNEL, "«value[i] = gelu(value[i]);»", ""),
    "scaled before it is rounded": (KERNEL, "pack_bf16(«rounded[0]» * (1 + scale", "value[0]"),
    "means of unrounded values": (KERNEL, "total += «rounded[i]»;", "value[i]"),
    "squares of unrounded values": (KERNEL, "written[quad][i] = «rounded[i]»;", "value[i]"),
    "statistics of padding": (KERNEL, "squares += «real[quad]» ?", "true"),
    "statistics of the first block": (KERNEL, "[token * column_blocks + «column_block»]", "0"),
    "statistics of the first slice's rows": (
        KERNEL,
        "static_cast<size_t>(«first_own + row») * call.stats_chunks",
        "first_row + row",
    ),
    "rows after the own ones": (KERNEL, "return «min(first + lane / kLanes, own_rows - 1)»;", "first + lane / kLanes"),
    "outputs of one half twice": (KERNEL, "return «quad * (Tile::kN / 2)» + lane", "0"),
    "sums over a part of a row's lanes": (KERNEL, "mean = «sum_over<kLanes>(total)» /", "sum_over<kLanes / 2>(total)"),
    "the statistics of the first row": (KERNEL, "(statistics_of(«row»), ahead", "0"),
    "pieces of the first slice": (KERNEL, "item = «own_begin * kPieces» + warp", "0"),
    "pieces of all slices": (KERNEL, "items = «own_end * kPieces»", "tiles * kPieces"),
    "the first slice's rows of the result": (KERNEL, "result + («own_begin * 8» + row)", "0"),
}
HOPPER_FAULTS = STREAM_FAULTS | {
    "no wgmma_fence": (STREAM, "«wgmma_fence();»", ""),
    "no wgmma_commit": (STREAM, "«wgmma_commit();»", ""),
    "no wgmma_wait": (STREAM, "«wgmma_wait<0>();»", ""),
    "input of the first part of a stage": (STREAM, "wgmma_descriptor_swizzled<32>(input + «part» *", "0"),
    "input of the first rows": (STREAM, "«Tile::warp_m()» * (Tile::kMmasM * 512) + half", "0"),
    "the other half of a box": (STREAM, "(Tile::kMmasM * 512) + «half» * 32", "(1 - half)"),
    "weights of the first part of a stage": (STREAM, "wgmma_descriptor(weights + («part» * 4", "0"),
    "weights of the first half": (STREAM, "wgmma_descriptor(weights + (part * 4 + «half * 2»)", "0"),
    "weights of the first sixteen": (STREAM, "(«i» * Tile::kWarpsN + Tile", "0"),
    "weights of the first warpgroup": (STREAM, "Tile::kWarpsN + «Tile::warp_n() / 4 * 4») * 256", "0"),
    "weights of every warp": (STREAM, "Tile::kWarpsN + «Tile::warp_n() / 4 * 4») * 256", "Tile::warp_n()"),
    "the step of another operand": (
        STREAM,
        "* 256,\n                                               «Tile::kN * 16»)",
        "128",
    ),
    "sums of the first sixteen": (STREAM, "wgmma<Tile::kMmasM>(«sums[i]», a, b)", "sums[0]"),
}
OF_CARDS = {"portable": FAULTS, "hopper": HOPPER_FAULTS}


def with_faults(faults: dict[str, tuple[str, str, str]]) -> dict[str, str]:
    """Files, by path, that have all of these faults; a run switches one on by its number, which counts from 1."""
    numbered = {path: {} for path, _, _ in faults.values()}
    for number, (path, piece, new) in enumerate(faults.values(), 1):
        numbered[path][number] = (piece, new)
    replaced = {}
    for path, of_file in numbered.items():
        replaced |= emulate.switchable(path, of_file)
    return replaced


@functools.cache
def faulty(card: str) -> emulate.Emulator:
    """A build with all of the card's faults, for the tiles that `faulty_calls` has."""
    replaced = with_faults(OF_CARDS[card])
    tiles = "4, 1, 1, 8, 2|4, 2, 2, 8, 1|8, 1, 1, 8, 2"
    kernel = replaced.get(KERNEL) or (emulate.ROOT / KERNEL).read_text()
    replaced[KERNEL] = re.sub(rf"    if \(is\((?!{tiles}).*\n", "", kernel)
    # The kernel that `linear` has beside it is not called here: it needs no instances.
    replaced[WARPGROUP] = re.sub(r"    if \(call.sixteens == .*\n", "", (emulate.ROOT / WARPGROUP).read_text())
    return emulate.build(KERNEL, WARPGROUP, replaced=replaced, flags=emulate.CARDS[card])


@pytest.mark.parametrize("card", OF_CARDS)
def test_no_fault_is_found_where_none_is(card):
    for seed in SEEDS[:3]:
        faulty_calls(faulty(card), 0, seed)


@pytest.mark.parametrize(("card", "fault"), [(card, fault) for card, faults in OF_CARDS.items() for fault in faults])
def test_a_fault_is_found(card, fault):
    emulator, number = faulty(card), list(OF_CARDS[card]).index(fault) + 1
    with pytest.raises((AssertionError, emulate.EmulationError)):
        for seed in SEEDS:
            faulty_calls(emulator, number, seed)
