// The heart of every skinny GEMM here: a block multiplies a tile of weight rows by a tile of input rows while the
// weights stream through a ring in shared memory, each read once.
//
// A stage is one contiguous bulk copy of packed weights and boxes of the same columns of the input. Weights depend on
// no other kernel, so the first stages of them are under way before the predecessors are complete. The weights are the
// MMA's left operand, the input's rows its columns.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dllm/async.cuh"
#include "dllm/bf16.cuh"
#include "dllm/grid.cuh"
#include "dllm/mma.cuh"

namespace dllm {

// kN x kM warps; each has 16 kSixteens weight rows and kTiles tiles of 8 input rows. A stage is 32 kDeep columns.
template <int kN, int kM, int kSixteens_, int kTiles_, int kDeep_>
struct StreamTile {
    static constexpr int kWarpsN = kN, kWarpsM = kM, kSixteens = kSixteens_, kTiles = kTiles_, kDeep = kDeep_;
    static constexpr int kWarps = kN * kM;
    static constexpr int kThreads = kWarps * 32;
    static constexpr int kOutputs = 16 * kSixteens * kN;
    static constexpr int kRows = 8 * kTiles * kM;
    static constexpr int kDepth = 32 * kDeep;
    static constexpr int kWeightBytes = kOutputs * kDepth * 2;
    static constexpr int kInputBytes = kRows * kDepth * 2;
    static constexpr int kStageBytes = kWeightBytes + kInputBytes;
    static constexpr int kMostStages = 16, kBarrierBytes = kMostStages * sizeof(Barrier);

    static __device__ __forceinline__ int warp_n() { return static_cast<int>(threadIdx.x / 32) % kN; }
    static __device__ __forceinline__ int warp_m() { return static_cast<int>(threadIdx.x / 32) / kN; }
};

// A warp's float32 sums. Lane 4 g + t has of [i][n]: outputs 16 i + g (values 0, 1) and 16 i + g + 8 (values 2, 3) of
// the rows 8 n + 2 t (values 0, 2) and 8 n + 2 t + 1 (values 1, 3).
template <typename Tile>
using Sums = float[Tile::kSixteens][Tile::kTiles][4];

// What a block reads: `products` blocks of outputs, one after the other in memory, each `stages` stages of packed
// weights; and for each as many columns from `column` on of the rows from `row` on of the matrix `input`, whose boxes
// are kRows x 32.
struct StreamSource {
    const char* weight;
    const TensorMap* input;
    int32_t row, column;
    uint32_t stages, products;
};

// The stream of a block's weights and input through the ring. All threads of the block construct it and call next().
template <typename Tile>
class WeightStream {
  public:
    // `barriers` are kBarrierBytes, not initialised yet; `ring` is a multiple of 128, ring_stages kStageBytes long.
    // Waits for the predecessors, so that what follows may read and write what it likes.
    __device__ __forceinline__ WeightStream(const StreamSource& source, uint32_t ring_stages, Barrier* barriers,
                                            char* ring)
        : source_(source), ring_stages_(ring_stages), full_(barriers), ring_(ring) {
        const uint32_t at_once = min(ring_stages, source.stages * source.products), warp = threadIdx.x / 32;
        if (threadIdx.x == 0) {
            for (uint32_t slot = 0; slot < ring_stages; ++slot) {
                barrier_init(full_ + slot, 1);
            }
            barriers_ready();
            prefetch_map(source.input);
            for (uint32_t stage = 0; stage < at_once; ++stage) {
                load_weights(stage, stage);
            }
        }
        __syncthreads();
        launch_dependents();
        wait_for_predecessors();
        for (uint32_t stage = warp; threadIdx.x % 32 == 0 && stage < at_once; stage += Tile::kWarps) {
            load_input(stage, stage);
        }
    }

    // Adds the next product to `sums`. Other warps may still be reading the ring when it returns.
    __device__ __forceinline__ void next(Sums<Tile>& sums) {
        const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const char* const weights_at = ring_ + Tile::warp_n() * (Tile::kSixteens * 1024) + lane * 16;
        const char* const input_at = ring_ + Tile::kWeightBytes + Tile::warp_m() * (Tile::kTiles * 512) + lane * 16;
        for (const uint32_t end = stage_ + source_.stages; stage_ < end; ++stage_) {
            // One warp waits for the stage and all for that warp: a block barrier is cheaper than as many waits. It
            // also says that the slot before this one is free again.
            const bool turn = stage_ % Tile::kWarps == warp;
            if (turn) {
                barrier_wait(full_ + slot_, parity_);
            }
            __syncthreads();
            if (turn && lane == 0 && stage_ > 0 && stage_ - 1 + ring_stages_ < source_.stages * source_.products) {
                const uint32_t before = slot_ == 0 ? ring_stages_ - 1 : slot_ - 1;
                load_weights(stage_ - 1 + ring_stages_, before);
                load_input(stage_ - 1 + ring_stages_, before);
            }
#pragma unroll
            for (int part = 0; part < Tile::kDeep; ++part) {
                const char* const weights = weights_at + slot_ * Tile::kStageBytes + part * (Tile::kOutputs * 64);
                const char* const input = input_at + slot_ * Tile::kStageBytes + part * (Tile::kRows * 64);
                uint4 a[Tile::kSixteens][2], b[Tile::kTiles];
#pragma unroll
                for (int i = 0; i < Tile::kSixteens; ++i) {
                    a[i][0] = *reinterpret_cast<const uint4*>(weights + i * 1024);
                    a[i][1] = *reinterpret_cast<const uint4*>(weights + i * 1024 + 512);
                }
#pragma unroll
                for (int n = 0; n < Tile::kTiles; ++n) {
                    // Lane 4 g + t has eight columns of row g: two products' right operands.
                    b[n] = *reinterpret_cast<const uint4*>(input + n * 512);
                }
                // No product waits for the one before it.
#pragma unroll
                for (int n = 0; n < Tile::kTiles; ++n) {
#pragma unroll
                    for (int i = 0; i < Tile::kSixteens; ++i) {
                        mma_bf16(sums[i][n], a[i][0].x, a[i][0].y, a[i][0].z, a[i][0].w, b[n].x, b[n].y);
                    }
                }
#pragma unroll
                for (int n = 0; n < Tile::kTiles; ++n) {
#pragma unroll
                    for (int i = 0; i < Tile::kSixteens; ++i) {
                        mma_bf16(sums[i][n], a[i][1].x, a[i][1].y, a[i][1].z, a[i][1].w, b[n].z, b[n].w);
                    }
                }
            }
            if (++slot_ == ring_stages_) {
                slot_ = 0;
                parity_ ^= 1;
            }
        }
    }

  private:
    __device__ __forceinline__ void load_weights(uint32_t stage, uint32_t slot) const {
        barrier_arrive_expect(full_ + slot, Tile::kStageBytes);
        bulk_copy(ring_ + slot * Tile::kStageBytes, source_.weight + static_cast<size_t>(stage) * Tile::kWeightBytes,
                  Tile::kWeightBytes, full_ + slot, streaming_policy());
    }

    __device__ __forceinline__ void load_input(uint32_t stage, uint32_t slot) const {
        const uint32_t in_product = source_.products == 1 ? stage : stage % source_.stages;
#pragma unroll
        for (int part = 0; part < Tile::kDeep; ++part) {
            tensor_copy(ring_ + slot * Tile::kStageBytes + Tile::kWeightBytes + part * (Tile::kRows * 64),
                        source_.input, source_.row,
                        source_.column + static_cast<int32_t>(in_product * Tile::kDepth) + part * 32, full_ + slot);
        }
    }

    const StreamSource source_;
    const uint32_t ring_stages_;
    Barrier* const full_;
    char* const ring_;
    uint32_t stage_ = 0, slot_ = 0, parity_ = 0;
};

}  // namespace dllm
