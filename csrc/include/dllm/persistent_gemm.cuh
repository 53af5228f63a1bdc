// Products of large tiles by warpgroups, on Hopper: 128 rows of one matrix times 256 of another, both bfloat16
// [rows, width] in global memory, `width` a multiple of 64. One thread fills a ring of stages, two warpgroups multiply
// 64 rows each. K is summed in one order whatever the rows.
#pragma once

#include <cstdint>

#include "dllm/mma.cuh"

namespace dllm {

constexpr uint32_t kTileM = 128, kTileN = 256, kTileK = 64, kNumStages = 3, kMultiplyingWarps = 8;
constexpr uint32_t kTileInputBytes = kTileM * kTileK * 2;
constexpr uint32_t kTileStageBytes = kTileInputBytes + kTileN * kTileK * 2;
constexpr uint32_t kTileRingBytes = kNumStages * kTileStageBytes;

// What a warp has of a tile's product: its 16 rows, as mma_bf16 has them, eights of columns one after the other.
using TileSums = float[kTileN / 8][4];

// Where the filling thread, or a multiplying warp, is in the ring.
struct Slot {
    uint32_t number = 0, parity = 0;

    __device__ __forceinline__ void next() {
        if (++number == kNumStages) number = 0, parity ^= 1;
    }
};

// In shared memory, for the stages at `memory`, aligned to 1024 bytes.
struct TileRing {
    Barrier full[kNumStages], empty[kNumStages];

    // By one thread; fence_mbarrier_init() and a barrier of the block come after it.
    __device__ __forceinline__ void make() {
        for (uint32_t slot = 0; slot < kNumStages; ++slot) {
            mbarrier_init(full + slot, 1);
            mbarrier_init(empty + slot, kMultiplyingWarps);
        }
    }

    // Stages of the tile whose rows begin at `row` and whose outputs begin at `output`. By one thread.
    __device__ __forceinline__ void fill(char* memory, const TensorMap& input, const TensorMap& weight, uint32_t row,
                                         uint32_t output, uint32_t width, Slot& slot) {
        for (uint32_t column = 0; column < width; column += kTileK) {
            char* const stage = memory + slot.number * kTileStageBytes;
            Barrier* const filled = full + slot.number;
            mbarrier_wait(empty + slot.number, slot.parity ^ 1);
            mbarrier_arrive_expect_tx(filled, kTileStageBytes);
            tma_load_2d(stage, &input, static_cast<int32_t>(row), static_cast<int32_t>(column), filled);
            tma_load_2d(stage + kTileInputBytes, &weight, static_cast<int32_t>(output), static_cast<int32_t>(column),
                        filled);
            slot.next();
        }
    }

    // Adds a tile's product to the sums of a warpgroup, whose rows of the tile begin at `first_row`.
    __device__ __forceinline__ void multiply(TileSums& sums, const char* memory, uint32_t first_row, uint32_t width,
                                             Slot& slot) {
        const auto leave = [&](uint32_t number) {
            if (threadIdx.x % 32 == 0) mbarrier_arrive(empty + number);
            __syncwarp();
        };
        uint32_t before = 0;
        for (uint32_t column = 0; column < width; column += kTileK) {
            const char* const stage = memory + slot.number * kTileStageBytes;
            mbarrier_wait(full + slot.number, slot.parity);
            wgmma_fence();
#pragma unroll
            for (uint32_t part = 0; part < kTileK / 16; ++part) {
                wgmma<kTileN / 8>(sums, wgmma_descriptor_swizzled<kTileK>(stage + first_row * kTileK * 2 + part * 32),
                                  wgmma_descriptor_swizzled<kTileK>(stage + kTileInputBytes + part * 32));
            }
            wgmma_commit();
            // This stage's products go on while the next stage is waited for.
            wgmma_wait<1>();
            if (column > 0) leave(before);
            before = slot.number;
            slot.next();
        }
        wgmma_wait<0>();
        leave(before);
        // Keeps the compiler from moving the sums while the matrix unit has them.
#pragma unroll
        for (auto& four : sums) {
#pragma unroll
            for (float& sum : four) {
                keep_in_register(sum);
            }
        }
    }
};

}  // namespace dllm
