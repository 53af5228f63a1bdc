// The linear layer for many rows, on Hopper (definition: dllm_kernels/ops/tiled_linear.py).
//
// Blocks stay, and take tiles of 128 rows and 256 outputs one after the other. Warps have roles: one fills the ring,
// two warpgroups multiply 64 rows each, and three warps do what follows the product of a tile while the next is
// multiplied. K is summed in one order whatever the rows: equal calls give equal bits, and a row's result does not
// depend on others.

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "dllm/bf16.cuh"
#include "dllm/grid.cuh"
#include "dllm/kernels.h"
#include "dllm/launch.cuh"
#include "dllm/persistent_gemm.cuh"
#include "dllm/rows.cuh"

namespace dllm {
namespace {

constexpr uint32_t kFinishingWarps = 3, kThreads = 32 * (1 + kFinishingWarps + kMultiplyingWarps);
// Rows of a product are so far apart that what eight of them have in the same columns lies in different banks.
constexpr uint32_t kPitch = kTileOutputs + 8;
// Row tiles whose products follow each other, so that the blocks at work share weights and input in L2.
constexpr uint32_t kTogether = 16;

struct Shared {
    TileRing ring;
    Barrier left, taken;
};
constexpr uint32_t kProduct = 1024, kRing = kProduct + (kTileRows * kPitch * 2 + 1023) / 1024 * 1024;
constexpr uint32_t kSharedBytes = kRing + kTileRingBytes;
static_assert(sizeof(Shared) <= kProduct);

struct Tile {
    uint32_t row, output;  // its first
};

// The tiles of a call, and which of them a block takes: every gridDim.x-th.
struct Tiles {
    uint32_t high, wide;

    explicit __device__ __forceinline__ Tiles(const TiledLinear& call)
        : high((call.rows - 1) / kTileRows + 1), wide((call.outputs - 1) / kTileOutputs + 1) {}

    __device__ __forceinline__ uint32_t count() const { return high * wide; }

    __device__ __forceinline__ Tile at(uint32_t number) const {
        const uint32_t first = number / (kTogether * wide) * kTogether, inside = number - first * wide;
        const uint32_t together = min(kTogether, high - first);
        return {(first + inside % together) * kTileRows, inside / together * kTileOutputs};
    }
};

// By one thread.
__device__ __forceinline__ void fill(const TiledLinear& call, const TensorMap& input, const TensorMap& weight,
                                     Shared* shared, char* ring) {
    const Tiles tiles(call);
    Slot slot;
    for (uint32_t number = blockIdx.x; number < tiles.count(); number += gridDim.x) {
        const Tile tile = tiles.at(number);
        shared->ring.fill(ring, input, weight, tile.row, tile.output, call.width, slot);
    }
    pdl_trigger();
}

// A warp's 16 rows, rounded.
__device__ __forceinline__ void leave(const TileSums& sums, bf16* product) {
    bf16* const to = product + threadIdx.x % 32 / 4 * kPitch + threadIdx.x % 4 * 2;
#pragma unroll
    for (uint32_t tile = 0; tile < kTileOutputs / 8; ++tile) {
        *reinterpret_cast<uint32_t*>(to + tile * 8) = pack_bf16(sums[tile][0], sums[tile][1]);
        *reinterpret_cast<uint32_t*>(to + tile * 8 + 8 * kPitch) = pack_bf16(sums[tile][2], sums[tile][3]);
    }
}

// What follows the product, of every `step`-th row from `row` on by a warp, eight outputs a lane.
template <bool kGelu>
__device__ __forceinline__ void finish(const TiledLinear& call, Tile tile, const bf16* product, uint32_t row,
                                       uint32_t step) {
    constexpr uint32_t kBatch = 4;  // rows of the residual that are asked for at once
    const uint32_t column = threadIdx.x % 32 * 8, output = tile.output + column;
    if (output >= call.outputs) return;
    float gate[8], bias[8];
    const uint4 biases = *reinterpret_cast<const uint4*>(static_cast<const bf16*>(call.bias) + output);
    const uint32_t bias_pairs[4]{biases.x, biases.y, biases.z, biases.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        gate[i] = call.gate ? call.gate[output + i] : 1;
        bias[i] = i % 2 == 0 ? low_bf16(bias_pairs[i / 2]) : high_bf16(bias_pairs[i / 2]);
    }
    const uint32_t rows = min(kTileRows, call.rows - tile.row);
    for (; row < rows; row += step * kBatch) {
        uint4 residual[kBatch] = {};
#pragma unroll
        for (uint32_t i = 0; i < kBatch; ++i) {
            const uint32_t token = tile.row + row + i * step;
            if (!call.residual || row + i * step >= rows) continue;
            const uint32_t from = token < call.residual_rows ? token : token % call.residual_rows;
            residual[i] = *reinterpret_cast<const uint4*>(static_cast<const bf16*>(call.residual) +
                                                          static_cast<size_t>(from) * call.outputs + output);
        }
#pragma unroll
        for (uint32_t i = 0; i < kBatch; ++i) {
            if (row + i * step >= rows) continue;
            const uint4 own = *reinterpret_cast<const uint4*>(product + (row + i * step) * kPitch + column);
            const uint32_t residual_pairs[4]{residual[i].x, residual[i].y, residual[i].z, residual[i].w};
            uint32_t pairs[4]{own.x, own.y, own.z, own.w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float low = low_bf16(pairs[j]) * gate[2 * j] + bias[2 * j];
                float high = high_bf16(pairs[j]) * gate[2 * j + 1] + bias[2 * j + 1];
                if constexpr (kGelu) low = gelu(low), high = gelu(high);
                pairs[j] = pack_bf16(low + low_bf16(residual_pairs[j]), high + high_bf16(residual_pairs[j]));
            }
            *reinterpret_cast<uint4*>(static_cast<bf16*>(call.output) +
                                      static_cast<size_t>(tile.row + row + i * step) * call.outputs +
                                      output) = {pairs[0], pairs[1], pairs[2], pairs[3]};
        }
    }
}

template <bool kGelu>
__global__ void __launch_bounds__(kThreads, 1)
    linear_tiled_kernel(const TiledLinear call, const __grid_constant__ TensorMap input,
                        const __grid_constant__ TensorMap weight) {
    if constexpr (kWarpgroups) {
        const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        char* const memory = shared_memory();
        Shared* const shared = reinterpret_cast<Shared*>(memory);
        bf16* const product = reinterpret_cast<bf16*>(memory + kProduct);
        if (threadIdx.x == 0) {
            shared->ring.make();
            mbarrier_init(&shared->left, 32 * kMultiplyingWarps);
            mbarrier_init(&shared->taken, 32 * kFinishingWarps);
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
                shared->ring.multiply(sums, memory + kRing, warp / 4 * 64, call.width, slot);
                if (number != blockIdx.x) mbarrier_wait(&shared->taken, parity ^ 1);
                leave(sums, product + warp * 16 * kPitch);
                mbarrier_arrive(&shared->left);
                if (!last) continue;
            }
            // The last tile is finished by all.
            mbarrier_wait(&shared->left, parity);
            finish<kGelu>(call, tiles.at(number), product, last ? warp : warp - kMultiplyingWarps,
                          last ? kMultiplyingWarps + kFinishingWarps : kFinishingWarps);
            if (!last) mbarrier_arrive(&shared->taken);
        }
    }
}

}  // namespace

void linear_tiled(const TiledLinear& call, cudaStream_t stream) {
    if (!has_clusters()) throw std::invalid_argument("linear is tiled on Hopper only");
    if (call.outputs % 8 != 0 || call.width % kTileDepth != 0) {
        throw std::invalid_argument("linear in tiles takes octets of outputs and widths that are multiples of 64");
    }
    const uint32_t tiles = ((call.rows - 1) / kTileRows + 1) * ((call.outputs - 1) / kTileOutputs + 1);
    launch("linear", call.gelu ? linear_tiled_kernel<true> : linear_tiled_kernel<false>,
           Grid(dim3(std::min(tiles, call.blocks))), kThreads, kSharedBytes, stream, call,
           tensor_map(call.input, call.rows, call.width, kTileRows, kTileDepth),
           tensor_map(call.weight, call.outputs, call.width, kTileOutputs, kTileDepth));
}

}  // namespace dllm
