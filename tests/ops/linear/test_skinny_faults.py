"""Faults planted in linear_skinny are found on a CPU (tests/emulator): its values would tell."""

import functools
import re

import pytest

from dllm_kernels.ops.linear.config import GemmConfig
from tests.emulator import emulate
from tests.ops.linear.test_skinny_emulated import (
    KERNEL,
    SEEDS,
    check,
    config_of,
    problem,
    run,
    three_in_a_row,
    wgmma_config_of,
)

pytestmark = pytest.mark.skipif(emulate.COMPILER is None, reason="no g++: the CUDA kernels were not run")

GEMM, EPILOGUE = "csrc/include/dllm/linear_tile.cuh", "csrc/include/dllm/epilogue.cuh"
ROWS = "csrc/include/dllm/linear_rows.cuh"
STATISTICS = "csrc/include/dllm/row_statistics.cuh"


def faulty_calls(faulty: emulate.Emulator, fault: int, seed: int) -> None:
    """Rings used several times over or not even once, slices of unequal length and unequal rows, a block's outputs that do not
    divide among the warps, last blocks with padding, fewer rows of the residual than rows, blocks of 128 rows; by wgmma, by
    mma.sync with stages of both widths, with and without clusters."""
    after = dict(chunk=40, gate=True, gelu=True, residual=64, next_scale=True, stats_out=True)
    by_wgmma = [
        problem(wgmma_config_of(config_of(64, 1, 2, 3)), 13, 72, 512, chunk=40, residual=5, next_scale=True, stats_out=True),
        problem(wgmma_config_of(config_of(160, 4, 2, 2)), 75, 184, 896, **after),
        problem(wgmma_config_of(config_of(64, 1, tile_m=128)), 197, 72, 192, chunk=40, residual=7, stats_out=True),
        problem(wgmma_config_of(config_of(64, 2, tile_m=128)), 197, 72, 320, **after),
    ]
    by_mma = [
        problem(GemmConfig(64, 64, 32, 2, 2, 5, 3, 2), 75, 72, 424, **after),
        problem(config_of(64, 1, tile_m=128), 197, 72, 192, chunk=40, residual=7, next_scale=True, stats_out=True),
    ]
    for calls, clusters in (three_in_a_row(), True), (three_in_a_row(), False), (by_wgmma, True), (by_mma, False):
        run(faulty, *calls, seed=seed, fault=fault, clusters=clusters)
        for p in calls:
            check(p)


FILLING = "«mbarrier_wait(rings->weights_full + weights_slot, weights_parity);»"
INPUT_FILLING = "«mbarrier_wait(rings->input_full + input_slot, input_parity);»"
EMPTYING = "«mbarrier_wait(rings->weights_empty + slot, parity);»"
INPUT_EMPTYING = "«if (stage >= depth) mbarrier_wait(rings->input_empty + slot, parity);»"
LEAVING = "«if (stage + weights_depth < stages) mbarrier_arrive(rings->weights_empty + weights_slot);»"
INPUT_LEAVING = "«if (stage + input_depth < stages) mbarrier_arrive(rings->input_empty + input_slot);»"
PEERS_READY = "«cluster_arrive();\n            cluster_wait();»"
PEERS_DONE = """«own.reduce_split_k();
        // Others may still be reading this block's memory.
        if constexpr (kClustered) cluster_arrive_relaxed();
        own.finish();
        if constexpr (kClustered) cluster_wait();»"""
MERGED = "\n    }\n    return {mean, rsqrtf(squares"
RING_FAULTS = {
    # name: file, where, and what stands there instead
    "barriers not announced": (GEMM, "«fence_mbarrier_init();»", ""),
    "barriers used before they are made": (KERNEL, "«__syncthreads();»\n\n        // Load and main loop.", ""),
    "a barrier too few": (GEMM, "slot < «weights»; ++slot", "weights - 1"),
    "the filling of a slot not waited for": (GEMM, FILLING, ""),
    "the wrong parity of a full slot": (
        GEMM,
        FILLING,
        "mbarrier_wait(rings->weights_full + weights_slot, weights_parity ^ 1);",
    ),
    "a parity that never changes": (GEMM, "weights_slot = 0, «weights_parity ^= 1»;", "0u"),
    "the filling of a slot of input not waited for": (GEMM, INPUT_FILLING, ""),
    "the wrong parity of a full slot of input": (
        GEMM,
        INPUT_FILLING,
        "mbarrier_wait(rings->input_full + input_slot, input_parity ^ 1);",
    ),
    "a parity of input that never changes": (GEMM, "input_slot = 0, «input_parity ^= 1»;", "0u"),
    "a slot refilled before it was left": (GEMM, EMPTYING, ""),
    "the wrong parity of a slot that was left": (
        GEMM,
        EMPTYING,
        "mbarrier_wait(rings->weights_empty + slot, parity ^ 1);",
    ),
    "a parity of slots left that never changes": (GEMM, "slot = 0, «parity ^= 1»;\n        }", "0u"),
    "a slot of input refilled before it was left": (GEMM, INPUT_EMPTYING, ""),
    "the wrong parity of a slot of input that was left": (
        GEMM,
        "parity = «1»;\n    for (uint32_t stage = 0; stage < stages",
        "0",
    ),
    "a parity of slots of input left that never changes": (GEMM, "slot = 0, «parity ^= 1»;\n    }\n}", "0u"),
    "leaving a slot not told": (GEMM, LEAVING, ""),
    "leaving a slot of input not told": (GEMM, INPUT_LEAVING, ""),
    "leaving told by every lane": (GEMM, "if («threadIdx.x % 32 == 0») {", "true"),
    "one warp not asked whether it left": (GEMM, "(weights_empty + slot, «multiplying_warps»)", "multiplying_warps - 1"),
    "one warp not asked whether it left the input": (
        GEMM,
        "(input_empty + slot, «multiplying_warps»)",
        "multiplying_warps - 1",
    ),
    "more arrivals awaited than there are": (GEMM, "(weights_full + slot, «1»)", "2"),
    "a slot filled by every lane": (KERNEL, "if («lane == 0») weights.keep_full();", "true"),
    "a slot never filled again": (GEMM, "stage = depth; «stage < stages»;", "false"),
    "a stage after the last": (GEMM, "stage = depth; «stage < stages»;", "stage <= stages"),
    "a slot filled with the next stage": (GEMM, "load(«stage», slot);", "stage + 1"),
    "another slot filled again": (GEMM, "load(stage, «slot»);", "(slot + 1) % depth"),
    "more stages than there are": (GEMM, "stage < «min(depth, stages)»;", "depth"),
    "fewer bytes expected than copied": (GEMM, "weights_full + slot, «Tile::kWeightBytes»);", "Tile::kWeightBytes / 2"),
    "a slot of input filled with the first stage": (GEMM, "column + «stage * Tile::kK»", "0"),
    "another slot of input filled": (GEMM, "tma_load_2d(ring + «slot» *", "(slot + 1) % depth"),
    "fewer bytes of input expected than copied": (
        GEMM,
        "input_full + slot, «Tile::kInputBytes»);",
        "Tile::kInputBytes / 2",
    ),
    "weights of the first slot": (GEMM, "by = weights + «weights_slot» *", "0"),
    "input of the first slot": (GEMM, "from = input + «input_slot» *", "0"),
}
PRODUCT_FAULTS = {
    "input loaded before the predecessor is done": (GEMM, "«pdl_wait();»\n    uint32_t slot", ""),
    "statistics fetched before the predecessor is done": (
        KERNEL,
        "«pdl_wait();»\n            own.fetch_rows",
        "",
    ),
    "input of the next row": (GEMM, "static_cast<int32_t>(«row»)", "row + 1"),
    "input of the first rows": (KERNEL, "block.stages, «blockIdx.z * Tile::kM»,", "0"),
    "input of the first slice": (KERNEL, " «block.begin * Tile::kK»);", "0"),
    "input of the first part of a stage": (GEMM, "kK>(input + «part * 32»)", "0"),
    "input of the first 64 rows": (GEMM, "input += «threadIdx.x / 128» * (64", "0"),
    "weights of the first slice": (KERNEL, "block.all_stages + «block.begin») *", "0"),
    "weights of the first column block": (KERNEL, "static_cast<size_t>(«block.column_block») * block", "0"),
    "weights of the first part of a stage": (GEMM, "wgmma_descriptor(weights + «part * 2» * (Tile::kN", "0"),
    "the step of another operand": (GEMM, " «Tile::kN * 16»);", "128"),
    "a slice begins late": (
        ROWS,
        "begin(«all_stages * slice / Tile::kSplitK»)",
        "(all_stages * slice + Tile::kSplitK - 1) / Tile::kSplitK",
    ),
    "a slice ends early": (
        ROWS,
        "stages(«all_stages * (slice + 1) / Tile::kSplitK»",
        "all_stages * (slice + 1) / Tile::kSplitK - (slice == 1)",
    ),
    "no wgmma_fence": (GEMM, "«wgmma_fence();»", ""),
    "no wgmma_commit": (GEMM, "«wgmma_commit();»", ""),
    "no wgmma_wait": (GEMM, "«wgmma_wait<0>();»", ""),
    "input of the next row of a warp": (GEMM, "kMmasM * 16 + «lane % 16») * (Tile::kK * 2);", "(lane + 1) % 16"),
    "input of the first warp's rows": (GEMM, "input += («Tile::warp_m() * Tile::kMmasM * 16» + lane", "0"),
    "input's pieces as if they had not changed places": (
        GEMM,
        "part * 2 + lane / 16 ^ «(Tile::kK == 64 ? lane % 8 : lane % 8 / 2)»",
        "0",
    ),
    "weights of the first columns of a pair": (GEMM, "weights += «lane / 8 % 2» *", "0"),
    "weights of the first warp's outputs": (GEMM, "(«Tile::warp_n() * Tile::kMmasN * 8» + lane / 16", "0"),
    "weights of the first outputs of a pair": (GEMM, "kMmasN * 8 + «lane / 16 * 8» + lane", "0"),
    "weights of the first part of a stage by a warp": (GEMM, "ldmatrix_x4(weights + «part * 2» *", "0"),
    "input of the first 16 rows by a warp": (GEMM, "ldmatrix_x4(input + «m» *", "0"),
    "weights of the first 16 outputs by a warp": (GEMM, "(Tile::kN * 16) + «n * 256»);", "0"),
    "another warp's outputs": (ROWS, "+ «Tile::warp_n() * (Tile::kMmasN / 2)») * 32 + threadIdx", "0"),
    "nothing handed over": (ROWS, "kept = «!Tile::kHandsOver» ||", "true"),
    "the own sums handed over": (ROWS, "«first_eight + eight - block_.first_eight < block_.own_eights»;", "false"),
    "sums handed over in the first slice's place": (ROWS, "lamport_store(handed_over(«block_.slice») + first", "0"),
    "sums of the first slice taken": (ROWS, "lamport_load(handed_over(«s») + place)", "0"),
    "sums taken before they are there": (ROWS, "missing |= «s != block_.slice && !lamport_ready(parts.of_slice[s])»;", "false"),
    "places not emptied": (ROWS, "if («s != block_.slice») lamport_reset", "false"),
    "places of the first tile": (ROWS, "(«tile * Tile::kSplitK» + slice) *", "0"),
    "rows of the next slice": (ROWS, "|| «eight(group) < block_.own_eights») action", "true"),
    "sums left while others multiply": (KERNEL, "«mbarrier_wait(&rings->multiplied, 0);»", ""),
    "sums left while one other multiplies": (GEMM, "(&multiplied, «multiplying_warps»)", "multiplying_warps - 1"),
    "the end of the products not told": (KERNEL, "«if (lane == 0) mbarrier_arrive(&rings->multiplied);»", ""),
    "sums left in the place of another warp": (ROWS, "first_eight = «Tile::warp_m() * Tile::kMmasM * 2»;", "Tile::warp_m()"),
    "the eights of a warp's rows swapped": (ROWS, "half = «eight % 2 * 2»;", "2 - eight % 2 * 2"),
    "pieces in another order": (ROWS, "at = (eight * Tile::kPieces + «i») * 32;", "(i ^ 1)"),
    "outputs of a piece in another order": (
        ROWS,
        "sum{of_rows[2 * i][half], «of_rows[2 * i][half + 1]»,",
        "of_rows[2 * i + 1][half]",
    ),
    "peers not waited for": (KERNEL, PEERS_READY, ""),
    "threads waited for in place of peers": (KERNEL, PEERS_READY, "__syncthreads();"),
    "what peers left not made visible": (KERNEL, PEERS_READY, "cluster_arrive_relaxed(); cluster_wait();"),
    "no other threads waited for where there are no peers": (KERNEL, "} else {\n            «__syncthreads();»", ""),
    "peers left that still read": (KERNEL, PEERS_DONE, "own.reduce_split_k(); own.finish();"),
    "reading told to be over before it began": (
        KERNEL,
        PEERS_DONE,
        "if constexpr (kClustered) cluster_arrive_relaxed(); own.reduce_split_k(); own.finish(); "
        "if constexpr (kClustered) cluster_wait();",
    ),
    "the own sums only": (ROWS, "dsmem_load(from, «s»)", "block_.slice"),
    "a slice twice": (ROWS, "dsmem_load(from, «s»)", "s / 2 * 2"),
    "a slice after the last": (ROWS, "dsmem_load(from, «s»)", "s + 1"),
    "the last slice left out": (
        ROWS,
        "s < «Tile::kSplitK»; ++s) {\n            const float4 part",
        "Tile::kSplitK - 1",
    ),
    "the sums of the last slice only": (ROWS, "sum = {«sum.x + part.x»,", "part.x"),
    "sums of the first slice's rows": (ROWS, "((«block_.first_eight» + eight(group)) * Tile::kPieces", "0"),
    "sums of the first eight rows": (ROWS, "((block_.first_eight + «eight(group)») * Tile::kPieces", "0"),
    "eight rows of the first 64": (ROWS, "return «group * Tile::kAtOnce» + threadIdx", "0"),
    "the epilogue by warps without rows": (
        ROWS,
        "return «Tile::kThreads == kEpilogueWarps * 32 || threadIdx.x < kEpilogueWarps * 32»;",
        "true",
    ),
}
EPILOGUE_FAULTS = {
    "the last rows left out": (KERNEL, "«(call.m - 1) / Tile::kM + 1»);", "call.m / Tile::kM"),
    "rows after the last": (ROWS, "call.m > first_row ? «min(own_eights * 8, call.m - first_row)» :", "own_eights * 8"),
    "rows after the last written": (EPILOGUE, "if («real» && output", "true"),
    "statistics after the last read": (ROWS, "row < «block_.own_rows»; row += kFetchThreads", "Tile::kOwnRows"),
    "statistics of the first rows only": (ROWS, "block_.own_rows; «row += kFetchThreads»)", "row += Tile::kM"),
    "statistics after the last written": (ROWS, "if («threadIdx.x < block_.own_rows») {", "threadIdx.x < Tile::kOwnRows"),
    "statistics after the last written where there are no peers": (
        ROWS,
        "if («row(group) < block_.own_rows») to[row",
        "true",
    ),
    "the first slice's rows of the result": (ROWS, "Tile::kM + «first_eight * 8»)", "0"),
    "vectors of the first column block": (EPILOGUE, "there ? from + «first_output» +", "0"),
    "vectors not waited for where there is no residual": (
        ROWS,
        "«cp_async_wait<0>();»",
        "if (call_.residual) cp_async_wait<0>();",
    ),
    "the residual not waited for": (ROWS, "«cp_async_wait<0>();»", "cp_async_wait<1>();"),
    "neither vectors nor residual waited for": (ROWS, "«cp_async_wait<0>();»", ""),
    "the residual's rows not repeated": (
        EPILOGUE,
        "from = «token < call.residual_rows ? token : token % call.residual_rows»;",
        "token",
    ),
    "the residual of the first rows": (EPILOGUE, "token = «first_row + row»;", "row"),
    "the residual of the first column block": (EPILOGUE, "call.n + «first_output» + output : 0", "0"),
    "statistics of the first slice's rows": (ROWS, "size_t token = «block_.first_row + row»;", "row"),
    "the statistics of the first row": (ROWS, "statistics_[«row(group)»]", "0"),
    "means of a whole last chunk": (STATISTICS, "chunks[i].x * «columns(i)»;\n    }\n    mean /=", "static_cast<float>(chunk)"),
    "squares of a whole last chunk": (STATISTICS, f"(one.x - mean) * «columns(i)»;{MERGED}", "static_cast<float>(chunk)"),
    "the means of chunks taken for equal": (STATISTICS, f"«(one.x - mean) * (one.x - mean)» * columns(i);{MERGED}", "0"),
    "rows not centred": (EPILOGUE, "(value - «mean_and_rstd.x» * sum)", "0"),
    "no gate": (EPILOGUE, "value *= «gate»;", "1"),
    "no GELU": (EPILOGUE, "value = «gelu(value)»;", "value"),
    "half of the residual twice": (EPILOGUE, "quad[1] += «high_bf16(pairs.x)»;", "low_bf16(pairs.x)"),
    "scaled before it is rounded": (EPILOGUE, "quad[0] = «low_bf16(pairs.x)»,", "quad[0]"),
    "statistics of unrounded values": (EPILOGUE, "quad[1] = «high_bf16(pairs.x)»;", "quad[1]"),
    "the share of the first warp": (ROWS, "piece = «share()» + i", "0"),
    "pieces of another warp's share": (ROWS, "share() + «i * Tile::kShares»;", "i"),
    "pieces after the last": (ROWS, "|| «piece < Tile::kPieces»)", "true"),
    "shares taken for equally wide": (
        ROWS,
        "columns += «first < epilogue_.outputs ? min(16u, epilogue_.outputs - first) : 0»;",
        "16",
    ),
    "padding written": (EPILOGUE, "if (real && «output < outputs»)", "true"),
    "padding in the squares": (EPILOGUE, "squares += «output < outputs» ?", "true"),
    "vectors after the last read": (EPILOGUE, "from && «output < outputs»;", "true"),
    "the residual after the last column read": (EPILOGUE, "bool there = «output < outputs»;", "true"),
    "sums over a part of a row's lanes": (EPILOGUE, "mean = «sum_over<kLanes>(total)» /", "sum_over<kLanes / 2>(total)"),
    "parts of a row in one place": (ROWS, "Tile::kShares + «share()»] = part", "0"),
    "parts read before they are written": (ROWS, "return;\n        «__syncthreads();»\n", ""),
    "the mean of parts not by their width": (
        ROWS,
        "parts[s].x * «static_cast<float>(columns_of(s))»;",
        "static_cast<float>(epilogue_.outputs) / Tile::kShares",
    ),
    "parts merged without their distance": (ROWS, "parts[s].y + «apart * apart» *", "0"),
    "statistics of the first column block": (ROWS, "(block_.first_row) * block_.column_blocks + «block_.column_block»;", "0"),
    "statistics in the first slice's place": (ROWS, "static_cast<size_t>(«block_.first_row») *", "0"),
}
FAULTS = RING_FAULTS | PRODUCT_FAULTS | EPILOGUE_FAULTS


@functools.cache
def faulty() -> emulate.Emulator:
    """A build with all of FAULTS, one of which a run switches on, for the tiles that `faulty_calls` has."""
    replaced = emulate.with_faults(FAULTS)
    wgmma = "64, 64, 1", "64, 64, 2", "64, 64, 4", "64, 160, 4", "128, 64, 1", "128, 64, 2"
    mma = "64, 64, 64, 2", "64, 64, 64, 4", "64, 64, 32, 5", "128, 64, 64, 1"
    tiles = [f"WgmmaTile<{tile}>" for tile in wgmma] + [f"MmaTile<{tile}>" for tile in mma]
    text, found = re.subn(r"TileList<WgmmaTile.*?>>;", f"TileList<{', '.join(tiles)}>;", replaced[KERNEL], flags=re.DOTALL)
    assert found == 1
    replaced[KERNEL] = text
    return emulate.build(KERNEL, replaced=replaced, flags=emulate.CARDS["hopper"])


def test_no_fault_is_found_where_none_is():
    for seed in SEEDS:
        faulty_calls(faulty(), 0, seed)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault):
    emulator, number = faulty(), list(FAULTS).index(fault) + 1
    with pytest.raises((AssertionError, emulate.EmulationError)):
        for seed in SEEDS:
            faulty_calls(emulator, number, seed)
