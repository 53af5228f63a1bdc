"""Faults planted in the CUDA linear by warpgroups are found on a CPU (tests/emulator): its values would tell."""

import functools
import re

import pytest

from tests.emulator import emulate
from tests.ops.linear.test_skinny_emulated import KERNEL, SEEDS, WARPGROUP, check, problem, run
from tests.ops.linear.test_skinny_faults import ROWS, with_faults
from tests.ops.linear.test_skinny_wgmma_emulated import config_of, two_in_a_row

pytestmark = pytest.mark.skipif(emulate.COMPILER is None, reason="no g++: the CUDA kernels were not run")

END = "csrc/include/dllm/epilogue.cuh"


def faulty_calls(faulty: emulate.Emulator, fault: int, seed: int) -> None:
    """Rings used several times over or not even once, slices of unequal length, a block's outputs that do not divide among
    the warps, last blocks with padding, fewer rows of the residual than rows, blocks of 128 rows."""
    after = dict(chunk=40, gate=True, gelu=True, residual=64, next_scale=True, stats_out=True)
    beside = [
        problem(config_of(64, 1, 2, 3), 13, 72, 512, chunk=40, residual=5, next_scale=True, stats_out=True),
        problem(config_of(160, 4, 2, 2), 75, 184, 896, **after),
        problem(config_of(64, 1, rows=128), 197, 72, 192, chunk=40, residual=7, next_scale=True, stats_out=True),
        problem(config_of(64, 2, rows=128), 197, 72, 320, **after),
    ]
    for calls in two_in_a_row(), beside:
        run(faulty, *calls, seed=seed, fault=fault)
        for p in calls:
            check(p)


FILLING = "«mbarrier_wait(rings->weights_full + weights_slot, weights_parity);»"
INPUT_FILLING = "«mbarrier_wait(rings->input_full + input_slot, input_parity);»"
EMPTYING = "«mbarrier_wait(rings->weights_empty + slot, parity);»"
INPUT_EMPTYING = "«if (stage >= depth) mbarrier_wait(rings->input_empty + slot, parity);»"
LEAVING = "«if (stage + weights_depth < stages) mbarrier_arrive(rings->weights_empty + weights_slot);»"
INPUT_LEAVING = "«if (stage + input_depth < stages) mbarrier_arrive(rings->input_empty + input_slot);»"
PEERS_READY = "«cluster_arrive();\n            cluster_wait();»"
PEERS_DONE = """«end.add_up();
        // Others may still be reading this block's memory.
        if constexpr (kSlices > 1) cluster_arrive_relaxed();
        end.finish();
        if constexpr (kSlices > 1) cluster_wait();»"""
MERGED = "\n    }\n    return {mean, rsqrtf(squares"
RING_FAULTS = {
    # name: file, where, and what stands there instead
    "barriers not announced": (END, "«fence_mbarrier_init();»", ""),
    "barriers used before they are made": (WARPGROUP, "«__syncthreads();»\n\n        if (warp == Tile::kWeightsWarp)", ""),
    "a barrier too few": (END, "slot < «weights»; ++slot", "weights - 1"),
    "the filling of a slot not waited for": (WARPGROUP, FILLING, ""),
    "the wrong parity of a full slot": (
        WARPGROUP,
        FILLING,
        "mbarrier_wait(rings->weights_full + weights_slot, weights_parity ^ 1);",
    ),
    "a parity that never changes": (WARPGROUP, "weights_slot = 0, «weights_parity ^= 1»;", "0u"),
    "the filling of a slot of input not waited for": (WARPGROUP, INPUT_FILLING, ""),
    "the wrong parity of a full slot of input": (
        WARPGROUP,
        INPUT_FILLING,
        "mbarrier_wait(rings->input_full + input_slot, input_parity ^ 1);",
    ),
    "a parity of input that never changes": (WARPGROUP, "input_slot = 0, «input_parity ^= 1»;", "0u"),
    "a slot refilled before it was left": (WARPGROUP, EMPTYING, ""),
    "the wrong parity of a slot that was left": (
        WARPGROUP,
        EMPTYING,
        "mbarrier_wait(rings->weights_empty + slot, parity ^ 1);",
    ),
    "a parity of slots left that never changes": (WARPGROUP, "slot = 0, «parity ^= 1»;\n        }", "0u"),
    "a slot of input refilled before it was left": (WARPGROUP, INPUT_EMPTYING, ""),
    "the wrong parity of a slot of input that was left": (
        WARPGROUP,
        "parity = «1»;\n    for (uint32_t stage = 0; stage < stages",
        "0",
    ),
    "a parity of slots of input left that never changes": (WARPGROUP, "slot = 0, «parity ^= 1»;\n    }\n}", "0u"),
    "leaving a slot not told": (WARPGROUP, LEAVING, ""),
    "leaving a slot of input not told": (WARPGROUP, INPUT_LEAVING, ""),
    "leaving told by every lane": (WARPGROUP, "if («threadIdx.x % 32 == 0») {", "true"),
    "one warp not asked whether it left": (END, "(weights_empty + slot, «multiplying_warps»)", "multiplying_warps - 1"),
    "one warp not asked whether it left the input": (
        END,
        "(input_empty + slot, «multiplying_warps»)",
        "multiplying_warps - 1",
    ),
    "more arrivals awaited than there are": (END, "(weights_full + slot, «1»)", "2"),
    "a slot filled by every lane": (WARPGROUP, "if («lane == 0») weights.keep_full();", "true"),
    "a slot never filled again": (WARPGROUP, "stage = depth; «stage < stages»;", "false"),
    "a stage after the last": (WARPGROUP, "stage = depth; «stage < stages»;", "stage <= stages"),
    "a slot filled with the next stage": (WARPGROUP, "load(«stage», slot);", "stage + 1"),
    "another slot filled again": (WARPGROUP, "load(stage, «slot»);", "(slot + 1) % depth"),
    "more stages than there are": (WARPGROUP, "stage < «min(depth, stages)»;", "depth"),
    "fewer bytes expected than copied": (WARPGROUP, "weights_full + slot, «Tile::kWeightBytes»);", "Tile::kWeightBytes / 2"),
    "a slot of input filled with the first stage": (WARPGROUP, "column + «stage * kDepth»", "0"),
    "another slot of input filled": (WARPGROUP, "tma_load_2d(ring + «slot» *", "(slot + 1) % depth"),
    "fewer bytes of input expected than copied": (
        WARPGROUP,
        "input_full + slot, «Tile::kInputBytes»);",
        "Tile::kInputBytes / 2",
    ),
    "weights of the first slot": (WARPGROUP, "weights + «weights_slot» *", "0"),
    "input of the first slot": (WARPGROUP, "(input + «input_slot» *", "0"),
}
PRODUCT_FAULTS = {
    "input loaded before the predecessor is done": (WARPGROUP, "«pdl_wait();»\n    uint32_t slot", ""),
    "statistics fetched before the predecessor is done": (
        WARPGROUP,
        "«pdl_wait();»\n            end.fetch_rows",
        "",
    ),
    "input of the next row": (WARPGROUP, "static_cast<int32_t>(«row»)", "row + 1"),
    "input of the first rows": (WARPGROUP, "stages, «blockIdx.z * Tile::kM», begin", "0"),
    "input of the first slice": (WARPGROUP, "kRows, «begin * kDepth»)", "0"),
    "input of the first part of a stage": (WARPGROUP, "kInputBytes + «part * 32»)", "0"),
    "input of the first 64 rows": (WARPGROUP, "input + «warp / 4» * (64", "0"),
    "weights of the first slice": (WARPGROUP, "* all + «begin») *", "0"),
    "weights of the first column block": (WARPGROUP, "static_cast<size_t>(«place.column_block») * all", "0"),
    "weights of the first part of a stage": (WARPGROUP, "+ «part * 2» * (Tile::kN", "0"),
    "the step of another operand": (WARPGROUP, " «Tile::kN * 16»);", "128"),
    "a slice begins late": (WARPGROUP, "begin = «all * slice / kSlices»;", "(all * slice + kSlices - 1) / kSlices"),
    "a slice ends early": (WARPGROUP, "stages = «all * (slice + 1) / kSlices»", "all * (slice + 1) / kSlices - (slice == 1)"),
    "no wgmma_fence": (WARPGROUP, "«wgmma_fence();»", ""),
    "no wgmma_commit": (WARPGROUP, "«wgmma_commit();»", ""),
    "no wgmma_wait": (WARPGROUP, "«wgmma_wait<0>();»", ""),
    "sums left while others multiply": (WARPGROUP, "«mbarrier_wait(&rings->multiplied, 0);»", ""),
    "sums left while one other multiplies": (END, "(&multiplied, «multiplying_warps»)", "multiplying_warps - 1"),
    "the end of the products not told": (WARPGROUP, "«if (lane == 0) mbarrier_arrive(&rings->multiplied);»", ""),
    "sums left in the place of another warp": (END, "sums_ + («threadIdx.x / 32 * 2» *", "threadIdx.x / 32"),
    "the eights of a warp's rows swapped": (END, "mine[(«half» * Cut", "(1 - half)"),
    "sixteens in another order": (END, "Tile::kPieces + «i») * 32]", "(i ^ 1)"),
    "outputs of a sixteen in another order": (END, "half], «sums[2 * i][2 * half + 1]»,", "sums[2 * i + 1][2 * half]"),
    "peers not waited for": (WARPGROUP, PEERS_READY, ""),
    "threads waited for in place of peers": (WARPGROUP, PEERS_READY, "__syncthreads();"),
    "what peers left not made visible": (WARPGROUP, PEERS_READY, "cluster_arrive_relaxed(); cluster_wait();"),
    "no other threads waited for where there are no peers": (WARPGROUP, "} else {\n            «__syncthreads();»", ""),
    "peers left that still read": (WARPGROUP, PEERS_DONE, "end.add_up(); end.finish();"),
    "reading told to be over before it began": (
        WARPGROUP,
        PEERS_DONE,
        "if constexpr (kSlices > 1) cluster_arrive_relaxed(); end.add_up(); end.finish();"
        "if constexpr (kSlices > 1) cluster_wait();",
    ),
    "the own sums only": (END, "dsmem_load(from + sixteen * 32, «s»)", "place_.slice"),
    "a slice twice": (END, "dsmem_load(from + sixteen * 32, «s»)", "s / 2 * 2"),
    "a slice after the last": (END, "dsmem_load(from + sixteen * 32, «s»)", "s + 1"),
    "the last slice left out": (END, "s < «Tile::kSplitK»; ++s) {\n                    const float4 part", "Tile::kSplitK - 1"),
    "the sums of the last slice only": (END, "sum = {«sum.x + part.x»,", "part.x"),
    "sums of the first slice's rows": (END, "sums_ + («place_.slice» *", "0"),
    "sums of the first octet": (END, "Tile::kOwnOctets + «octet(group)») *", "0"),
    "octets of the first 64 rows": (END, "return «group * (kEndingWarps / Tile::kSplitK)» + threadIdx", "0"),
    "the end by warps without octets": (END, "return «Tile::kGroups == 1 || threadIdx.x < kEndingWarps * 32»;", "true"),
}
END_FAULTS = {
    "the last rows left out": (WARPGROUP, "«(call.m - 1) / Tile::kM + 1»);", "call.m / Tile::kM"),
    "rows after the last": (END, "return rows > first ? «min(kOwnRows, rows - first)» :", "kOwnRows"),
    "rows after the last written": (END, "if («row(group) < place_.own_rows» && output", "true"),
    "statistics after the last read": (END, "row < «place_.own_rows»; row += kEndThreads", "Tile::kOwnRows"),
    "statistics of the first rows only": (END, "place_.own_rows; «row += kEndThreads»)", "row += Tile::kM"),
    "statistics after the last written": (END, "if («threadIdx.x < place_.own_rows») {", "threadIdx.x < Tile::kOwnRows"),
    "statistics after the last written where there are no peers": (END, "if («row(group) < place_.own_rows») to[row", "true"),
    "the first slice's rows of the result": (WARPGROUP, "Tile::kM + «slice * Tile::kOwnRows»,", "0"),
    "constants of the first column block": (END, "there ? from + «first_output_» +", "0"),
    "constants not waited for": (END, "«cp_async_commit();»\n    }\n\n", ""),
    "the residual not waited for": (END, "«cp_async_wait<0>();»", "cp_async_wait<1>();"),
    "neither constants nor residual waited for": (END, "«cp_async_wait<0>();»", ""),
    "the residual's rows not repeated": (
        END,
        "from = «token < call_.residual_rows ? token : token % call_.residual_rows»;",
        "token",
    ),
    "the residual of the first rows": (END, "uint32_t token = «place_.first_row + row»;", "row"),
    "the residual of the first column block": (END, "call_.n + «first_output_» + output : 0", "0"),
    "statistics of the first slice's rows": (END, "size_t token = «place_.first_row + row»;", "row"),
    "the statistics of the first row": (END, "statistics_[«row(group)»]", "0"),
    "means of a whole last chunk": (ROWS, "chunks[i].x * «columns(i)»;\n    }\n    mean /=", "static_cast<float>(chunk)"),
    "squares of a whole last chunk": (ROWS, f"(one.x - mean) * «columns(i)»;{MERGED}", "static_cast<float>(chunk)"),
    "the means of chunks taken for equal": (ROWS, f"«(one.x - mean) * (one.x - mean)» * columns(i);{MERGED}", "0"),
    "rows not centred": (END, "(value - «mean_and_factor.x» * sum)", "0"),
    "no gate": (END, "value *= «gate»;", "1"),
    "no GELU": (END, "value = «gelu(value)»;", "value"),
    "half of the residual twice": (END, "values_[i][1] += «high_bf16(left.x)»;", "low_bf16(left.x)"),
    "scaled before it is rounded": (END, "v[0] = «low_bf16(pairs.x)»,", "v[0]"),
    "statistics of unrounded values": (END, "v[1] = «high_bf16(pairs.x)»;", "v[1]"),
    "the share of the first warp": (END, "sixteen = «share()» + i", "0"),
    "sixteens of another warp's share": (END, "share() + «i * Tile::kSplitK»;", "i"),
    "sixteens after the last": (END, "|| «sixteen < Tile::kPieces»)", "true"),
    "shares taken for equally wide": (
        END,
        "columns += «first < outputs_ ? min(16u, outputs_ - first) : 0»;",
        "16",
    ),
    "padding written": (END, "own_rows && «output_of(sixteen) < outputs_») {", "true"),
    "padding in the squares": (END, "squares += «output_of(sixteen) < outputs_» ?", "true"),
    "constants after the last read": (END, "from && «output < outputs_»;", "true"),
    "the residual after the last column read": (END, "bool there = «output < outputs_»;", "true"),
    "sums over a part of a row's lanes": (END, "mean = «sum_over<4>(total)» /", "sum_over<2>(total)"),
    "parts of a row in one place": (END, "Tile::kSplitK + «share()»] = part", "0"),
    "parts read before they are written": (END, "«__syncthreads();»", ""),
    "the mean of parts not by their width": (
        END,
        "parts[s].x * «static_cast<float>(columns_of(s))»;",
        "static_cast<float>(outputs_) / Tile::kSplitK",
    ),
    "parts merged without their distance": (END, "parts[s].y + «apart * apart» *", "0"),
    "statistics of the first column block": (END, "place_.column_blocks + «place_.column_block»;", "0"),
    "statistics in the first slice's place": (END, "static_cast<size_t>(«place_.first_row») *", "0"),
}
FAULTS = RING_FAULTS | PRODUCT_FAULTS | END_FAULTS


@functools.cache
def faulty() -> emulate.Emulator:
    """A build with all of FAULTS, one of which a run switches on, for the cuts that `faulty_calls` has."""
    replaced = with_faults(FAULTS)
    replaced[WARPGROUP] = re.sub(r"    if \(call.sixteens == (?!4\)|10\)).*\n", "", replaced[WARPGROUP])
    replaced[WARPGROUP] = re.sub(r"launch_outputs<160>", "launch_cut<160, 4, 1>", replaced[WARPGROUP])
    replaced[KERNEL] = re.sub(r"    if \(is\(.*\n", "", (emulate.ROOT / KERNEL).read_text())
    return emulate.build(KERNEL, WARPGROUP, replaced=replaced, flags=emulate.CARDS["hopper"])


def test_no_fault_is_found_where_none_is():
    for seed in SEEDS:
        faulty_calls(faulty(), 0, seed)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault):
    emulator, number = faulty(), list(FAULTS).index(fault) + 1
    with pytest.raises((AssertionError, emulate.EmulationError)):
        for seed in SEEDS:
            faulty_calls(emulator, number, seed)
