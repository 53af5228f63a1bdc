// The linear layer for many rows, on Hopper (definition: dllm_kernels/ops/linear/op.py).
//
// Blocks stay, and take tiles of 128 rows and 256 outputs one after the other. Warps have roles: one fills the ring,
// two warpgroups multiply 64 rows each, and three warps do the epilogue of a tile while the next is
// multiplied. K is summed in one order whatever the rows: equal calls give equal bits, and a row's result does not
// depend on others.

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "dllm/bf16.cuh"
#include "dllm/describe.h"
#include "dllm/epilogue.cuh"
#include "dllm/grid.cuh"
#include "dllm/kernels.h"
#include "dllm/launch.cuh"
#include "dllm/persistent_gemm.cuh"

namespace dllm {
namespace {

constexpr uint32_t kFinishingWarps = 3, kThreads = 32 * (1 + kFinishingWarps + kMultiplyingWarps);
// Rows of a product are so far apart that what eight of them have in the same columns lies in different banks.
constexpr uint32_t kPitch = kTileN + 8;
// Row tiles whose products follow each other, so that the blocks at work share weights and input in L2.
constexpr uint32_t kTogether = 16;

struct Shared {
    TileRing ring;
    Barrier stored, read;  // the product
};
constexpr uint32_t kProduct = 1024, kRing = kProduct + (kTileM * kPitch * 2 + 1023) / 1024 * 1024;
constexpr uint32_t kSharedBytes = kRing + kTileRingBytes;
static_assert(sizeof(Shared) <= kProduct);

struct Tile {
    uint32_t row, output;  // its first
};

// The tiles of a call, and which of them a block takes: every gridDim.x-th.
struct Tiles {
    uint32_t high, wide;

    explicit __device__ __forceinline__ Tiles(const LinearPersistent& call)
        : high((call.m - 1) / kTileM + 1), wide((call.n - 1) / kTileN + 1) {}

    __device__ __forceinline__ uint32_t count() const { return high * wide; }

    __device__ __forceinline__ Tile at(uint32_t number) const {
        const uint32_t first = number / (kTogether * wide) * kTogether, inside = number - first * wide;
        const uint32_t together = min(kTogether, high - first);
        return {(first + inside % together) * kTileM, inside / together * kTileN};
    }
};

// By one thread.
__device__ __forceinline__ void fill(const LinearPersistent& call, const TensorMap& input, const TensorMap& weight,
                                     Shared* shared, char* ring) {
    const Tiles tiles(call);
    Slot slot;
    for (uint32_t number = blockIdx.x; number < tiles.count(); number += gridDim.x) {
        const Tile tile = tiles.at(number);
        shared->ring.fill(ring, input, weight, tile.row, tile.output, call.k, slot);
    }
    pdl_trigger();
}

// A warp's 16 rows, rounded.
__device__ __forceinline__ void store(const TileSums& sums, bf16* product) {
    bf16* const to = product + threadIdx.x % 32 / 4 * kPitch + threadIdx.x % 4 * 2;
#pragma unroll
    for (uint32_t tile = 0; tile < kTileN / 8; ++tile) {
        *reinterpret_cast<uint32_t*>(to + tile * 8) = pack_bf16(sums[tile][0], sums[tile][1]);
        *reinterpret_cast<uint32_t*>(to + tile * 8 + 8 * kPitch) = pack_bf16(sums[tile][2], sums[tile][3]);
    }
}

// The epilogue of every `step`-th row from `row` on by a warp, eight outputs a lane.
template <bool kGelu>
__device__ __forceinline__ void finish(const LinearPersistent& call, Tile tile, const bf16* product, uint32_t row,
                                       uint32_t step) {
    constexpr uint32_t kBatch = 4;  // rows of the residual that are asked for at once
    const uint32_t column = threadIdx.x % 32 * 8, output = tile.output + column;
    if (output >= call.n) return;
    float4 gate[2], bias[2];
#pragma unroll
    for (int quad = 0; quad < 2; ++quad) {
        const uint2 pairs = *reinterpret_cast<const uint2*>(static_cast<const bf16*>(call.bias) + output + quad * 4);
        bias[quad] = {low_bf16(pairs.x), high_bf16(pairs.x), low_bf16(pairs.y), high_bf16(pairs.y)};
        gate[quad] = call.gate ? *reinterpret_cast<const float4*>(call.gate + output + quad * 4) : float4{1, 1, 1, 1};
    }
    const uint32_t rows = min(kTileM, call.m - tile.row);
    for (; row < rows; row += step * kBatch) {
        uint4 residual[kBatch] = {};
#pragma unroll
        for (uint32_t i = 0; i < kBatch; ++i) {
            const uint32_t token = tile.row + row + i * step;
            if (!call.residual || row + i * step >= rows) continue;
            const uint32_t from = token < call.residual_rows ? token : token % call.residual_rows;
            residual[i] = *reinterpret_cast<const uint4*>(static_cast<const bf16*>(call.residual) +
                                                          static_cast<size_t>(from) * call.n + output);
        }
#pragma unroll
        for (uint32_t i = 0; i < kBatch; ++i) {
            if (row + i * step >= rows) continue;
            const uint4 own = *reinterpret_cast<const uint4*>(product + (row + i * step) * kPitch + column);
            float values[2][4] = {{low_bf16(own.x), high_bf16(own.x), low_bf16(own.y), high_bf16(own.y)},
                                  {low_bf16(own.z), high_bf16(own.z), low_bf16(own.w), high_bf16(own.w)}};
            const auto each = [&](auto action) { action(values[0], 0), action(values[1], 1); };
            // What is absent is a gate of 1 and a residual of 0, which costs less than to ask.
            apply_epilogue(
                {.normalize = false, .gate = true, .gelu = kGelu, .residual = true}, {}, each,
                [&](EpilogueVector which, uint32_t quad) { return which == kGate ? gate[quad] : bias[quad]; },
                [&](uint32_t quad) {
                    return quad == 0 ? uint2{residual[i].x, residual[i].y} : uint2{residual[i].z, residual[i].w};
                });
            *reinterpret_cast<uint4*>(static_cast<bf16*>(call.output) +
                                      static_cast<size_t>(tile.row + row + i * step) * call.n + output) = {
                pack_bf16(values[0][0], values[0][1]), pack_bf16(values[0][2], values[0][3]),
                pack_bf16(values[1][0], values[1][1]), pack_bf16(values[1][2], values[1][3])};
        }
    }
}

template <bool kGelu>
__global__ void __launch_bounds__(kThreads, 1)
    linear_persistent_kernel(const LinearPersistent call, const __grid_constant__ TensorMap input,
                             const __grid_constant__ TensorMap weight) {
    if constexpr (kHasWgmma) {
        const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        char* const memory = shared_memory();
        Shared* const shared = reinterpret_cast<Shared*>(memory);
        bf16* const product = reinterpret_cast<bf16*>(memory + kProduct);
        if (threadIdx.x == 0) {
            shared->ring.make();
            mbarrier_init(&shared->stored, 32 * kMultiplyingWarps);
            mbarrier_init(&shared->read, 32 * kFinishingWarps);
            fence_mbarrier_init();
            prefetch_tensor_map(&input);
            prefetch_tensor_map(&weight);
        }
        __syncthreads();
        pdl_wait();

        constexpr uint32_t kFillingWarp = kMultiplyingWarps + kFinishingWarps;
        if (warp == kFillingWarp) {
            if (lane == 0) fill(call, input, weight, shared, memory + kRing);
            return;
        }
        const Tiles tiles(call);
        Slot slot;
        uint32_t parity = 0;
        for (uint32_t number = blockIdx.x; number < tiles.count(); number += gridDim.x, parity ^= 1) {
            const bool last = number + gridDim.x >= tiles.count();
            if (warp < kMultiplyingWarps) {
                TileSums sums = {};
                shared->ring.multiply(sums, memory + kRing, warp / 4 * 64, call.k, slot);
                if (number != blockIdx.x) mbarrier_wait(&shared->read, parity ^ 1);
                store(sums, product + warp * 16 * kPitch);
                mbarrier_arrive(&shared->stored);
                if (!last) continue;
            }
            // The last tile is finished by all.
            mbarrier_wait(&shared->stored, parity);
            finish<kGelu>(call, tiles.at(number), product, last ? warp : warp - kMultiplyingWarps,
                          last ? kMultiplyingWarps + kFinishingWarps : kFinishingWarps);
            if (!last) mbarrier_arrive(&shared->read);
        }
    }
}

}  // namespace

void linear_persistent(const LinearPersistent& call, cudaStream_t stream) {
    if (!on_hopper()) throw std::invalid_argument("linear_persistent runs on Hopper only");
    if (call.n % 8 != 0 || call.k % kTileK != 0) {
        throw std::invalid_argument("linear_persistent takes n that is a multiple of 8 and k of 64, not " +
                                    std::to_string(call.n) + " and " + std::to_string(call.k));
    }
    const uint32_t tiles = ((call.m - 1) / kTileM + 1) * ((call.n - 1) / kTileN + 1);
    launch("linear_persistent", call.gelu ? linear_persistent_kernel<true> : linear_persistent_kernel<false>,
           Grid(dim3(std::min(tiles, call.blocks))), kThreads, kSharedBytes, stream, call,
           tensor_map(call.input, call.m, call.k, kTileM, kTileK),
           tensor_map(call.weight, call.n, call.k, kTileN, kTileK));
}

void describe_linear_persistent(Description& description) {
    description.tiles.push_back({.kernel = "linear_persistent",
                                 .config = {kTileM, kTileN, kTileK, kMultiplyingWarps, 1, 1, kNumStages, kNumStages},
                                 .max_stages = kNumStages,
                                 .max_input_stages = kNumStages,
                                 .ring_offset = kRing,
                                 .product_bytes = 0});
}

}  // namespace dllm
