"""Faults planted in the CUDA linear in tiles are found on a CPU (tests/emulator): its values would tell."""

import functools

import pytest

from tests.emulator import emulate
from tests.ops.linear.test_persistent_emulated import KERNEL, SEEDS, check, problem, run

pytestmark = pytest.mark.skipif(emulate.COMPILER is None, reason="no g++: the CUDA kernels were not run")

GEMM, EPILOGUE = "csrc/include/dllm/persistent_gemm.cuh", "csrc/include/dllm/epilogue.cuh"


def faulty_calls(faulty: emulate.Emulator, fault: int, seed: int) -> None:
    """A block that takes four tiles through a ring used many times over; a call that reads what the one before it writes;
    more tiles above each other than follow each other. Each has tiles that are not full."""
    run_and_check(faulty, fault, seed, problem(140, 264, 256, 1, gate=True, gelu=True, residual=70))
    first = problem(140, 320, 64, 1, gelu=True)
    run_and_check(faulty, fault, seed, first, problem(140, 264, 320, 2, first, residual=140))
    run_and_check(faulty, fault, seed, problem(2065, 264, 64, 3))


def run_and_check(faulty: emulate.Emulator, fault: int, seed: int, *calls: dict) -> None:
    run(faulty, *calls, seed=seed, fault=fault)
    for p in calls:
        check(p)


FILLING = "«mbarrier_wait(full + slot.number, slot.parity);»"
EMPTYING = "«mbarrier_wait(empty + slot.number, slot.parity ^ 1);»"
LEAVING = "«if (column > 0) leave(before);»"
READING = "«if (number != blockIdx.x) mbarrier_wait(&shared->read, parity ^ 1);»"
FILLING_LOOP = "number += gridDim.x) {\n        const Tile"
RING_FAULTS = {
    # name: file, where, and what stands there instead
    "barriers not announced": (KERNEL, "«fence_mbarrier_init();»", ""),
    "barriers used before they are made": (KERNEL, "«__syncthreads();»\n        pdl_wait", ""),
    "a barrier too few": (GEMM, "slot < «kNumStages»; ++slot", "kNumStages - 1"),
    "the filling of a slot not waited for": (GEMM, FILLING, ""),
    "the wrong parity of a full slot": (GEMM, FILLING, "mbarrier_wait(full + slot.number, slot.parity ^ 1);"),
    "a parity of full slots that never changes": (GEMM, FILLING, "mbarrier_wait(full + slot.number, 0);"),
    "a parity that never changes": (GEMM, "number = 0, «parity ^= 1»;", "parity"),
    "a slot refilled before it was left": (GEMM, EMPTYING, ""),
    "the wrong parity of a slot that was left": (GEMM, EMPTYING, "mbarrier_wait(empty + slot.number, slot.parity);"),
    "a parity of slots left that never changes": (GEMM, EMPTYING, "mbarrier_wait(empty + slot.number, 1);"),
    "another slot waited for": (
        GEMM,
        EMPTYING,
        "mbarrier_wait(empty + (slot.number + 1) % kNumStages, slot.parity ^ 1);",
    ),
    "leaving a slot not told": (GEMM, LEAVING, ""),
    "the slot in use told to be left": (GEMM, LEAVING, "if (column > 0) leave(slot.number);"),
    "slots left while they are multiplied": (GEMM, LEAVING, "if (column + kTileK < width) leave(slot.number);"),
    "a slot left that was not used": (GEMM, LEAVING, "leave(before);"),
    "the first slot left each time": (GEMM, "before = «slot.number»;", "0"),
    "leaving the last slot of a tile not told": (GEMM, "wgmma_wait<0>();\n        «leave(before);»", ""),
    "leaving told by every lane": (GEMM, "if («threadIdx.x % 32 == 0») mbarrier_arrive(empty", "true"),
    "one warp not asked whether it left": (GEMM, "(empty + slot, «kMultiplyingWarps»)", "kMultiplyingWarps - 1"),
    "one warp too many asked whether it left": (GEMM, "(empty + slot, «kMultiplyingWarps»)", "kMultiplyingWarps + 1"),
    "more arrivals awaited than there are": (GEMM, "(full + slot, «1»)", "2"),
    "fewer bytes expected than copied": (GEMM, "(filled, «kTileStageBytes»)", "kTileInputBytes"),
    "the copies of a slot told to another": (GEMM, "filled = full + «slot.number»;", "(slot.number + 1) % kNumStages"),
    "the first slot filled each time": (GEMM, "memory + «slot.number» * kTileStageBytes;\n            Barrier", "0"),
    "the first slot multiplied each time": (GEMM, "const char* const stage = memory + «slot.number» *", "0"),
    "a slot filled twice": (GEMM, "filled);\n            «slot.next();»", ""),
    "a slot multiplied twice": (GEMM, "before = slot.number;\n            «slot.next();»", ""),
    "a stage after the last": (
        GEMM,
        "«column < width»; column += kTileK) {\n            char*",
        "column <= width",
    ),
    "slots filled by every lane": (KERNEL, "if («lane == 0») fill(call", "true"),
    "input of the next row": (GEMM, "static_cast<int32_t>(«row»)", "row + 1"),
    "input of the first rows": (GEMM, "static_cast<int32_t>(«row»)", "0"),
    "input of the first columns": (GEMM, "static_cast<int32_t>(row), static_cast<int32_t>(«column»)", "0"),
    "weights of the next output": (GEMM, "static_cast<int32_t>(«output»)", "output + 1"),
    "weights of the first outputs": (GEMM, "static_cast<int32_t>(«output»)", "0"),
    "weights of the first columns": (GEMM, "static_cast<int32_t>(output), static_cast<int32_t>(«column»)", "0"),
    "weights over the input": (GEMM, "tma_load_2d(stage + «kTileInputBytes»,", "0"),
}
PRODUCT_FAULTS = {
    "input of the first part of a stage": (GEMM, "kTileK * 2 + «part * 32»)", "0"),
    "input of the first warpgroup": (GEMM, "(stage + «first_row» * kTileK", "0"),
    "input of the other warpgroup": (KERNEL, "memory + kRing, «warp / 4 * 64»,", "(1 - warp / 4) * 64"),
    "weights of the first part of a stage": (GEMM, "(stage + kTileInputBytes + «part * 32»)", "0"),
    "input in the place of weights": (GEMM, "(stage + «kTileInputBytes» + part", "0"),
    "the last part of a stage left out": (GEMM, "part < «kTileK / 16»;", "kTileK / 16 - 1"),
    "no wgmma_fence": (GEMM, "«wgmma_fence();»", ""),
    "no wgmma_commit": (GEMM, "«wgmma_commit();»", ""),
    "a slot left whose products were not waited for": (GEMM, "«wgmma_wait<1>();»", ""),
    "a slot left whose products may still go on": (GEMM, "«wgmma_wait<1>();»", "wgmma_wait<2>();"),
    "the products of a tile not waited for": (GEMM, "«wgmma_wait<0>();»", ""),
    "the last products of a tile not waited for": (GEMM, "«wgmma_wait<0>();»", "wgmma_wait<1>();"),
    "a product finished before it was stored": (KERNEL, "«mbarrier_wait(&shared->stored, parity);»", ""),
    "the wrong parity of a product stored": (
        KERNEL,
        "«mbarrier_wait(&shared->stored, parity);»",
        "mbarrier_wait(&shared->stored, parity ^ 1);",
    ),
    "a product stored over one that is not read": (KERNEL, READING, ""),
    "the wrong parity of a product read": (
        KERNEL,
        READING,
        "if (number != blockIdx.x) mbarrier_wait(&shared->read, parity);",
    ),
    "a parity of products that never changes": (KERNEL, "number += gridDim.x, «parity ^= 1»)", "parity"),
    "one warp not asked whether it stored a product": (
        KERNEL,
        "(&shared->stored, 32 * «kMultiplyingWarps»)",
        "kMultiplyingWarps - 1",
    ),
    "one warp too many asked whether it stored a product": (
        KERNEL,
        "(&shared->stored, 32 * «kMultiplyingWarps»)",
        "kMultiplyingWarps + 1",
    ),
    "one warp not asked whether it read a product": (KERNEL, "(&shared->read, 32 * «kFinishingWarps»)", "kFinishingWarps - 1"),
    "one warp too many asked whether it read a product": (
        KERNEL,
        "(&shared->read, 32 * «kFinishingWarps»)",
        "kFinishingWarps + 1",
    ),
    "storing a product not told": (KERNEL, "«mbarrier_arrive(&shared->stored);»", ""),
    "storing a product told by one lane": (
        KERNEL,
        "«mbarrier_arrive(&shared->stored);»",
        "if (lane == 0) mbarrier_arrive(&shared->stored);",
    ),
    "reading a product not told": (KERNEL, "if («!last») mbarrier_arrive(&shared->read);", "false"),
    "reading a product told by one lane": (KERNEL, "if («!last») mbarrier_arrive(&shared->read);", "!last && lane == 0"),
    "a product in the first warp's place": (KERNEL, "product + «warp» * 16 * kPitch", "0"),
    "a product in another warp's place": (KERNEL, "product + «warp» * 16 * kPitch", "(warp ^ 1)"),
    "the eights of a warp's rows swapped": (KERNEL, "pack_bf16(«sums[tile][0]», sums[tile][1])", "sums[tile][2]"),
    "the second eight over the first": (KERNEL, "tile * 8 + «8 * kPitch») =", "0"),
    "an output of a pair twice": (KERNEL, "sums[tile][0], «sums[tile][1]»)", "sums[tile][0]"),
    "rows of a product stored too close": (KERNEL, "threadIdx.x % 32 / 4 * «kPitch» +", "kTileN"),
    "rows of a product read too close": (KERNEL, "(row + i * step) * «kPitch» + column", "kTileN"),
}
EPILOGUE_FAULTS = {
    "outputs after the last": (KERNEL, "if («output >= call.n») return;", "false"),
    "rows after the last": (KERNEL, "rows = «min(kTileM, call.m - tile.row)»;", "kTileM"),
    "rows after the last of a batch": (KERNEL, "if («row + i * step >= rows») continue;\n            const uint4 own", "false"),
    "the last row left out": (
        KERNEL,
        "rows = «min(kTileM, call.m - tile.row)»;",
        "min(kTileM, call.m - tile.row) - 1",
    ),
    "the bias of the first outputs": (KERNEL, "(call.bias) + «output» +", "column"),
    "the pairs of the bias swapped": (
        KERNEL,
        "«bias[quad] = {low_bf16(pairs.x), high_bf16(pairs.x), low_bf16(pairs.y), high_bf16(pairs.y)};»",
        "bias[quad] = {high_bf16(pairs.x), low_bf16(pairs.x), high_bf16(pairs.y), low_bf16(pairs.y)};",
    ),
    "the gate of the first outputs": (KERNEL, "(call.gate + «output» +", "column"),
    "no gate": (KERNEL, "gate[quad] = «call.gate» ?", "nullptr"),
    "a gate of a pair twice": (
        KERNEL,
        "which == kGate ? «gate[quad]» :",
        "float4{gate[quad].x, gate[quad].x, gate[quad].z, gate[quad].z}",
    ),
    "no GELU": (EPILOGUE, "«value = gelu(value);»", ""),
    "the residual of the first rows": (KERNEL, "token = «tile.row + row + i * step»;", "row + i * step"),
    "the residual of the first outputs": (KERNEL, "static_cast<size_t>(from) * call.n + «output»)", "column"),
    "the residual's rows not repeated": (
        KERNEL,
        "from = «token < call.residual_rows ? token : token % call.residual_rows»;",
        "token",
    ),
    "half of the residual twice": (EPILOGUE, "quad[0] += «low_bf16(pairs.x)»,", "high_bf16(pairs.x)"),
    "written to the first rows": (KERNEL, "static_cast<size_t>(«tile.row + row + i * step») *", "row + i * step"),
    "written to the first outputs": (KERNEL, "* call.n + «output») =", "column"),
    "a pair of outputs twice": (KERNEL, "«pack_bf16(values[0][0], values[0][1])»,", "pack_bf16(values[0][2], values[0][3])"),
    "rows between batches left out": (KERNEL, "row += «step * kBatch»)", "step * (kBatch + 1)"),
    "the last tile finished by three warps that take it for all": (KERNEL, "«if (!last) continue;»", "continue;"),
    "every tile taken for the last": (KERNEL, "last = «number + gridDim.x >= tiles.count()»;", "true"),
    "the first row of a tile left out": (KERNEL, ": «warp - kMultiplyingWarps»,", "warp - kMultiplyingWarps + 1"),
    "rows of a warp that is not there": (KERNEL, ": «kFinishingWarps»);", "kFinishingWarps + 1"),
    "rows of a warp that is not there in the last tile": (
        KERNEL,
        "last ? «kMultiplyingWarps + kFinishingWarps» :",
        "kMultiplyingWarps + kFinishingWarps + 1",
    ),
}
TILE_FAULTS = {
    "the last row tile left out": (KERNEL, "high(«(call.m - 1) / kTileM + 1»)", "call.m / kTileM"),
    "the last tile of outputs left out": (
        KERNEL,
        "wide(«(call.n - 1) / kTileN + 1»)",
        "call.n / kTileN",
    ),
    "the last tile left out": (KERNEL, "return «high * wide»;", "high * wide - 1"),
    "the first row tiles each time": (KERNEL, "first = «number / (kTogether * wide) * kTogether»,", "0"),
    "the first of neighbouring row tiles forgotten": (KERNEL, "{(«first» + inside", "0"),
    "tiles not counted from the first of neighbours": (KERNEL, "inside = «number - first * wide»;", "number"),
    "more row tiles together than there are": (KERNEL, "together = «min(kTogether, high - first)»;", "kTogether"),
    "a row tile twice": (KERNEL, "(first + «inside % together»)", "inside % together / 2 * 2"),
    "the first outputs' tile each time": (KERNEL, "«inside / together» * kTileN", "0"),
    "filled from the next tile": (KERNEL, "const Tile tile = tiles.at(«number»);", "number + 1"),
    "finished as the block's first tile": (KERNEL, "finish<kGelu>(call, tiles.at(«number»)", "blockIdx.x"),
    "filled for every block": (KERNEL, f"number = «blockIdx.x»; number < tiles.count(); {FILLING_LOOP}", "0"),
    "tiles of other blocks filled": (KERNEL, f"{FILLING_LOOP}".replace("gridDim.x", "«gridDim.x»"), "1"),
    "tiles of other blocks multiplied": (KERNEL, "number += «gridDim.x», parity", "1"),
    "the predecessor not waited for": (KERNEL, "«pdl_wait();»", ""),
    "the predecessor waited for by one warp": (
        KERNEL,
        "«pdl_wait();»",
        "if (warp == 0) pdl_wait();",
    ),
    "fewer rows than there are": (KERNEL, "tensor_map(call.input, «call.m»,", "call.m - 1"),
    "fewer outputs than there are": (KERNEL, "tensor_map(call.weight, «call.n»,", "call.n - 1"),
    "copies of half the rows": (KERNEL, "call.k, «kTileM», kTileK", "kTileM / 2"),
}
FAULTS = RING_FAULTS | PRODUCT_FAULTS | EPILOGUE_FAULTS | TILE_FAULTS


@functools.cache
def faulty() -> emulate.Emulator:
    """A build with all of FAULTS, one of which a run switches on."""
    return emulate.build(KERNEL, replaced=emulate.with_faults(FAULTS), flags=emulate.CARDS["hopper"])


def test_no_fault_is_found_where_none_is():
    for seed in SEEDS:
        faulty_calls(faulty(), 0, seed)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault):
    emulator, number = faulty(), list(FAULTS).index(fault) + 1
    with pytest.raises((AssertionError, emulate.EmulationError)):
        for seed in SEEDS:
            faulty_calls(emulator, number, seed)
