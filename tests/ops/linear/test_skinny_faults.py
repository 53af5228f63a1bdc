"""Faults planted in the CUDA kernel of linear are found on a CPU (tests/emulator): its values would tell."""

import functools
import re

import pytest

from tests.emulator import emulate
from tests.ops.linear.test_skinny_emulated import KERNEL, SEEDS, check, config_of, problem, run, three_in_a_row

pytestmark = pytest.mark.skipif(emulate.COMPILER is None, reason="no g++: the CUDA kernels were not run")

GEMM, EPILOGUE = "csrc/include/dllm/skinny_gemm.cuh", "csrc/include/dllm/epilogue.cuh"
ROWS = "csrc/include/dllm/row_statistics.cuh"
SMALL, LARGE, THIRD = (64, 64, 64, 1, 4), (128, 128, 32, 2, 4), (64, 128, 64, 1, 8)


def faulty_calls(faulty: emulate.Emulator, fault: int, seed: int) -> None:
    in_a_row = three_in_a_row(THIRD)
    beside = [
        problem(config_of(LARGE, 5, 2), 141, 120, 168, chunk=40, gate=True, gelu=True, residual=64, stats_out=True),
        problem(config_of(SMALL, 1, 2), 75, 72, 648, chunk=40, residual=75, next_scale=True, stats_out=True),
        problem(config_of(SMALL, 1, 3), 5, 8, 40),
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
GEMM_FAULTS = {
    # name: file, where, and what stands there instead
    "the filling of a slot not waited for": (GEMM, FILLING, ""),
    "the wrong parity of a full slot": (GEMM, FILLING, "mbarrier_wait(weights_full_ + slot_, parity_ ^ 1);"),
    "the filling of a slot of input not waited for": (GEMM, INPUT_FILLING, ""),
    "no __syncthreads in a stage": (GEMM, LEAVING, ""),
    "weights of the first slot": (GEMM, "weights = weights_ + «slot_» *", "0"),
    "input of the first slot": (GEMM, "input = input_ + «input_slot» *", "0"),
}
FAULTS = GEMM_FAULTS | {
    "a parity that never changes": (GEMM, "«parity_ ^= 1;»", ""),
    "the wrong parity of a full slot of input": (
        GEMM,
        INPUT_FILLING,
        "mbarrier_wait(input_full_ + input_slot, (stage_ / Tile::kInputStages + 1) % 2);",
    ),
    "a parity of input that never changes": (GEMM, INPUT_FILLING, "mbarrier_wait(input_full_ + input_slot, 0);"),
    "a slot filled by every warp": (GEMM, REFILLING, "threadIdx.x % 32 == 0"),
    "a slot never filled again": (GEMM, "if («stage_ + num_stages_ < all_stages_»)", "false"),
    "a stage after the last": (GEMM, "if («stage_ + num_stages_ < all_stages_»)", "true"),
    "a slot of input never filled again": (GEMM, "if («stage_ + Tile::kInputStages < all_stages_»)", "false"),
    "a stage of input after the last": (GEMM, "if («stage_ + Tile::kInputStages < all_stages_»)", "true"),
    "a slot filled with the next stage": (GEMM, "load_weights(«stage_ + num_stages_»,", "stage_ + num_stages_ + 1"),
    "a slot of input filled with the next stage": (
        GEMM,
        "load_input(«stage_ + Tile::kInputStages»,",
        "stage_ + Tile::kInputStages + 1",
    ),
    "another slot filled again": (GEMM, "load_weights(stage_ + num_stages_, «slot_»)", "(slot_ + 1) % num_stages_"),
    "another slot of input filled again": (
        GEMM,
        "load_input(stage_ + Tile::kInputStages, «input_slot»)",
        "(input_slot + 1) % Tile::kInputStages",
    ),
    "more stages than there are": (GEMM, "stage < «min(num_stages, all_stages_)»", "num_stages"),
    "more stages of input than there are": (
        GEMM,
        "warp < «min(static_cast<uint32_t>(Tile::kInputStages), all_stages_)»",
        "static_cast<uint32_t>(Tile::kInputStages)",
    ),
    "barriers used before they are made": (GEMM, "«__syncthreads();»\n        if (trigger_ == kAtOnce)", ""),
    "barriers not announced": (GEMM, "«fence_mbarrier_init();»", ""),
    "fewer bytes expected than copied": (GEMM, "(weights_full_ + slot, «Tile::kWeightBytes»)", "Tile::kWeightBytes / 2"),
    "fewer bytes of input expected than copied": (
        GEMM,
        "(input_full_ + slot, «Tile::kInputBytes»)",
        "Tile::kInputBytes / 2",
    ),
    "the predecessor not waited for": (GEMM, "«pdl_wait();»", "if (warp > 0) pdl_wait();"),
    "the predecessor waited for by one warp": (
        GEMM,
        "«pdl_wait();»",
        "if (warp == 0) pdl_wait();",
    ),
    "input of the next row": (GEMM, "«source_.row»,", "source_.row + 1"),
    "input of the first part of a stage": (GEMM, "* Tile::kK) + «part * 32»,", "0"),
    "the first part of a slot of input": (GEMM, "Tile::kInputBytes + «part» * (Tile::kM * 64), source_", "0"),
    "input of the first rows": (GEMM, "input += «Tile::warp_m()» *", "0"),
    "input of the first tile": (GEMM, "(Tile::kM * 64) + «n * 512»)", "0"),
    "input read from the first part of a stage": (GEMM, "ldmatrix_x4(input + «part» *", "0"),
    "pieces of the input not in changed places": (GEMM, "(lane / 8 ^ «lane % 8 / 2»)", "0"),
    "pieces of the input in other places": (GEMM, "(lane / 8 ^ «lane % 8 / 2»)", "lane % 4"),
    "weights of the first warp": (GEMM, "weights += «Tile::warp_n()» *", "0"),
    "the same columns of weights twice": (GEMM, "+ «lane / 16» * (Tile::kN * 16) +", "0"),
    "weights of the first part of a stage": (GEMM, "ldmatrix_x4(weights + («part» * 4", "0"),
    "weights of the first half": (GEMM, "ldmatrix_x4(weights + (part * 4 + «half * 2»)", "0"),
    "weights of the first sixteen": (GEMM, "+ «i» * (Tile::kWarpsN * 256))", "0"),
    "swapped rows of a": (GEMM, "a[i][0].x, «a[i][0].y», a[i][0].z", "a[i][0].z"),
    "swapped columns of a": (GEMM, "a[i][1].z, «a[i][1].w», b", "a[i][0].w"),
    "swapped rows of b": (GEMM, "a[i][0].w, «b[n].x», b[n].y", "b[n].y"),
    "rows of b twice": (GEMM, "b[n].z, «b[n].w»", "b[n].y"),
    "no __syncthreads after all sums": (KERNEL, "«__syncthreads();»\n\n    own.finish", ""),
    "the residual not waited for": (KERNEL, "«cp_async_wait<0>();»", ""),
    "the last rows left out": (KERNEL, "row_tiles(«(rows + 7) / 8»)", "rows / 8"),
    "rows after the last": (KERNEL, "return «min(own_end * 8, rows)» - min(", "own_end * 8"),
    "outputs after the last": (EPILOGUE, "if («real && output < outputs»)", "real"),
    "vectors after the last": (EPILOGUE, "there = «from && output < outputs»", "from != nullptr"),
    "vectors that are not there": (EPILOGUE, "there = «from && output < outputs»", "output < outputs"),
    "residual after the last": (EPILOGUE, "bool there = «output < outputs»", "true"),
    "a slice begins late": (KERNEL, " begin(«stages * slice / split_k»)", "(stages * slice + split_k - 1) / split_k"),
    "a slice ends early": (KERNEL, " end(«stages * (slice + 1) / split_k»)", "stages * (slice + 1) / split_k - (slice == 1)"),
    "weights of the first slice": (KERNEL, "* stages + «begin»)", "0"),
    "input of the first slice": (KERNEL, "static_cast<int32_t>(«begin» * Tile", "0"),
    "the workspace of the first group": (
        KERNEL,
        "static_cast<size_t>(«blockIdx.z * block.column_blocks + block.column_block»)",
        "0",
    ),
    "the place of the first slice": (KERNEL, "own = workspace + «block.slice» *", "0"),
    "a tile stored that nobody takes": (KERNEL, "if («row_tile < block.row_tiles»)", "true"),
    "a value not waited for": (KERNEL, "missing = true; «missing»;", "false"),
    "a value looked at in part": (KERNEL, "missing |= «!lamport_ready(value)»;", "__float_as_uint(value.x) == kLamportEmpty"),
    "a value not cleared": (KERNEL, "«lamport_reset(at);»", ""),
    "a slice after the last": (KERNEL, "if («first + s < block.split_k») {", "first + s <= block.split_k"),
    "the sums of the last slice only": (KERNEL, "sum = {«sum.x + value.x»,", "value.x"),
    "a piece after the last": (KERNEL, "for (; «piece + Tile::kWarps < end»;", "piece + Tile::kWarps <= end"),
    "the second piece of two in the first's place": (KERNEL, "store(«piece + Tile::kWarps», total[1])", "piece"),
    "a place too small for the owned rows": (
        KERNEL,
        "return «(Tile::kM / 8 + split_k - 1) / split_k * 8»",
        "Tile::kM / 8 / split_k * 8",
    ),
    "no place for the residual": (KERNEL, "+ («with_residual» ?", "false"),
    "the residual's rows not repeated": (
        EPILOGUE,
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
    "statistics of rows read too early": (KERNEL, " ahead = «read_ahead(first + kStep)»;", "read_ahead(first)"),
    "rows not centred": (EPILOGUE, "value - «mean_and_rstd.x» *", "0"),
    "no gate": (EPILOGUE, "value *= «gate»", "1"),
    "no GELU": (EPILOGUE, "«value = gelu(value);»", ""),
    "scaled before it is rounded": (EPILOGUE, "quad[0] = «low_bf16(pairs.x)»,", "quad[0]"),
    "statistics of unrounded values": (
        EPILOGUE,
        "quad[1] = «high_bf16(pairs.x)»;",
        "call.next_scale ? high_bf16(pairs.x) : quad[1]",  # what is scaled is rounded
    ),
    "squares not about the mean": (EPILOGUE, "sum += «(value - mean) * (value - mean)»;", "value * value"),
    "statistics of padding": (EPILOGUE, "squares += «output < outputs» ?", "true"),
    "statistics of the first block": (KERNEL, "[token * block.column_blocks + «block.column_block»]", "0"),
    "statistics of the first slice's rows": (
        KERNEL,
        "static_cast<size_t>(«block.first_own_row() + row») * call.stats_chunks",
        "block.first_row + row",
    ),
    "rows after the own ones": (
        KERNEL,
        "return «min(first + threadIdx.x % 32 / kLanes, block.own_rows() - 1)»;",
        "first + threadIdx.x % 32 / kLanes",
    ),
    "outputs of one half twice": (KERNEL, "action(values[quad], «quad * (Tile::kN / 2)» +", "0"),
    "sums over a part of a row's lanes": (EPILOGUE, "mean = «sum_over<kLanes>(total)» /", "sum_over<kLanes / 2>(total)"),
    "the statistics of the first row": (KERNEL, "(statistics_of(«row»), statistics", "0"),
    "pieces of the first slice": (KERNEL, "piece = «block.own_begin * kPieces» +", "0"),
    "pieces of all slices": (KERNEL, "end = «block.own_end * kPieces»", "block.row_tiles * kPieces"),
    "the first slice's rows of the product": (KERNEL, "product + («block.own_begin * 8» + row)", "0"),
}
HOPPER_FAULTS = GEMM_FAULTS | {
    "no wgmma_fence": (GEMM, "«wgmma_fence();»", ""),
    "no wgmma_commit": (GEMM, "«wgmma_commit();»", ""),
    "no wgmma_wait": (GEMM, "«wgmma_wait<0>();»", ""),
    "input of the first part of a stage": (GEMM, "wgmma_descriptor_swizzled<32>(input + «part» *", "0"),
    "input of the first rows": (GEMM, "«Tile::warp_m()» * (Tile::kMmasM * 512) + half", "0"),
    "the other half of a box": (GEMM, "(Tile::kMmasM * 512) + «half» * 32", "(1 - half)"),
    "weights of the first part of a stage": (GEMM, "wgmma_descriptor(weights + («part» * 4", "0"),
    "weights of the first half": (GEMM, "wgmma_descriptor(weights + (part * 4 + «half * 2»)", "0"),
    "weights of the first sixteen": (GEMM, "(«i» * Tile::kWarpsN + Tile", "0"),
    "weights of the first warpgroup": (GEMM, "Tile::kWarpsN + «Tile::warp_n() / 4 * 4») * 256", "0"),
    "weights of every warp": (GEMM, "Tile::kWarpsN + «Tile::warp_n() / 4 * 4») * 256", "Tile::warp_n()"),
    "the step of another operand": (
        GEMM,
        "* 256,\n                                                        «Tile::kN * 16»)",
        "128",
    ),
    "sums of the first sixteen": (GEMM, "wgmma<Tile::kMmasM>(«sums[i]», a, b)", "sums[0]"),
}
OF_CARDS = {"portable": FAULTS, "hopper": HOPPER_FAULTS}


@functools.cache
def faulty(card: str) -> emulate.Emulator:
    """A build with all of the card's faults, for the tiles that `faulty_calls` has."""
    replaced = emulate.with_faults(OF_CARDS[card])
    kernel = replaced.get(KERNEL) or (emulate.ROOT / KERNEL).read_text()
    tiles = ", ".join(f"SkinnyTile<{', '.join(map(str, tile))}>" for tile in (SMALL, LARGE, THIRD))
    replaced[KERNEL], lists = re.subn(r"using Tiles = [^;]*;", f"using Tiles = TileList<{tiles}>;", kernel)
    assert lists == 1
    return emulate.build(KERNEL, replaced=replaced, flags=emulate.CARDS[card])


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
