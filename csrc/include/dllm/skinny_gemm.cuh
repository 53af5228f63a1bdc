// The heart of every skinny GEMM here: a block multiplies a tile of weight rows by a tile of input rows while the
// weights stream through a ring in shared memory, each read once.
//
// A stage is one contiguous bulk copy of packed weights, and boxes of the same columns of the input come beside it.
// Weights depend on no other kernel, so the first stages of them are under way before the predecessors are complete.
// The weights are the MMA's left operand, the input's rows its columns.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dllm/async.cuh"
#include "dllm/bf16.cuh"
#include "dllm/grid.cuh"
#include "dllm/mma.cuh"

namespace dllm {

// kM rows by kN outputs a block, kK columns of K a stage, kWarpsM x kWarpsN warps.
template <int kM_, int kN_, int kK_, int kWarpsM_, int kWarpsN_>
struct SkinnyTile {
    static constexpr int kM = kM_, kN = kN_, kK = kK_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
    static constexpr int kWarps = kWarpsM * kWarpsN, kThreads = kWarps * 32;
    // A warp's MMAs: 16 outputs each, and 8 rows.
    static constexpr int kMmasN = kN / 16 / kWarpsN, kMmasM = kM / 8 / kWarpsM;
    static_assert(16 * kMmasN * kWarpsN == kN && 8 * kMmasM * kWarpsM == kM && kK % 32 == 0);
    static constexpr int kWeightBytes = kN * kK * 2, kInputBytes = kM * kK * 2;
    // Few stages of input are enough, since it comes from L2.
    static constexpr int kMaxStages = 16, kInputStages = 4;
    static constexpr int kBarrierBytes = (kMaxStages + kInputStages) * sizeof(Barrier);
    static constexpr bool kWarpgroup = kHasWgmma && kWarpsN % 4 == 0;

    static __host__ __device__ constexpr int ring_bytes(int num_stages) {
        return num_stages * kWeightBytes + kInputStages * kInputBytes;
    }

    static __device__ __forceinline__ int warp_n() { return static_cast<int>(threadIdx.x / 32) % kWarpsN; }
    static __device__ __forceinline__ int warp_m() { return static_cast<int>(threadIdx.x / 32) / kWarpsN; }
};

// A warp's float32 sums. Lane 4 g + t has of [i][n]: outputs 16 i + g (values 0, 1) and 16 i + g + 8 (values 2, 3) of
// the rows 8 n + 2 t (values 0, 2) and 8 n + 2 t + 1 (values 1, 3).
template <typename Tile>
using Sums = float[Tile::kMmasN][Tile::kMmasM][4];

// What a block reads: `products` blocks of outputs, one after the other in memory, each `stages` stages of packed
// weights; and for each as many columns from `column` on of the rows from `row` on of the matrix `input`, whose boxes
// are kM x 32.
struct SkinnySource {
    const char* weight;
    const TensorMap* input;
    int32_t row, column;
    uint32_t stages, products;
};

// The stream of a block's weights and input through their rings. All threads of the block construct it and call next().
template <typename Tile>
class SkinnyGemm {
  public:
    // `barriers` are kBarrierBytes, not initialised yet; `ring` is a multiple of 512, Tile::ring_bytes(num_stages)
    // long. Waits for the predecessors, so that what follows may read and write what it likes.
    __device__ __forceinline__ SkinnyGemm(const SkinnySource& source, uint32_t num_stages, Barrier* barriers,
                                          char* ring)
        : source_(source),
          all_stages_(source.stages * source.products),
          num_stages_(num_stages),
          trigger_(all_stages_ > num_stages ? all_stages_ - num_stages : kAtOnce),
          weights_full_(barriers),
          input_full_(barriers + Tile::kMaxStages),
          weights_(ring),
          input_(ring + num_stages * Tile::kWeightBytes) {
        const uint32_t warp = threadIdx.x / 32;
        if (threadIdx.x == 0) {
            for (uint32_t slot = 0; slot < num_stages; ++slot) {
                mbarrier_init(weights_full_ + slot, 1);
            }
            for (uint32_t slot = 0; slot < Tile::kInputStages; ++slot) {
                mbarrier_init(input_full_ + slot, 1);
            }
            fence_mbarrier_init();
            prefetch_tensor_map(source.input);
            for (uint32_t stage = 0; stage < min(num_stages, all_stages_); ++stage) {
                load_weights(stage, stage);
            }
        }
        __syncthreads();
        if (trigger_ == kAtOnce) pdl_trigger();
        pdl_wait();
        if (threadIdx.x % 32 == 0 && warp < min(static_cast<uint32_t>(Tile::kInputStages), all_stages_)) {
            load_input(warp, warp);
        }
    }

    // Adds the next product to `sums`. Nobody reads the rings any more when the last one returns.
    __device__ __forceinline__ void next(Sums<Tile>& sums) {
        const uint32_t end = stage_ + source_.stages;
        do {
            const uint32_t input_slot = stage_ % Tile::kInputStages;
            mbarrier_wait(weights_full_ + slot_, parity_);
            mbarrier_wait(input_full_ + input_slot, stage_ / Tile::kInputStages % 2);
            const char* const weights = weights_ + slot_ * Tile::kWeightBytes;
            const char* const input = input_ + input_slot * Tile::kInputBytes;
            if constexpr (Tile::kWarpgroup) {
                multiply_by_warpgroup(sums, weights, input);
            } else {
                multiply(sums, weights, input);
            }
            // All have left the slots: they are filled again at once, which keeps the bus busy.
            __syncthreads();
            if (threadIdx.x == 0) {
                if (stage_ + num_stages_ < all_stages_) load_weights(stage_ + num_stages_, slot_);
                if (stage_ + Tile::kInputStages < all_stages_) load_input(stage_ + Tile::kInputStages, input_slot);
            }
            if (stage_ == trigger_) pdl_trigger();
            if (++slot_ == num_stages_) {
                slot_ = 0;
                parity_ ^= 1;
            }
        } while (++stage_ < end);
    }

  private:
    // A stage's product by each warp for itself.
    static __device__ __forceinline__ void multiply(Sums<Tile>& sums, const char* weights, const char* input) {
        const uint32_t lane = threadIdx.x % 32;
        weights += Tile::warp_n() * 256 + lane / 16 * (Tile::kN * 16) + lane % 16 * 16;
        // Chunks of eight columns change places from row to row (async.cuh).
        input += Tile::warp_m() * (Tile::kMmasM * 512) + lane % 8 * 64 + (lane / 8 ^ lane % 8 / 2) * 16;
#pragma unroll
        for (int part = 0; part < Tile::kK / 32; ++part) {
            uint4 a[Tile::kMmasN][2], b[Tile::kMmasM];
#pragma unroll
            for (int i = 0; i < Tile::kMmasN; ++i) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    a[i][half] =
                        ldmatrix_x4(weights + (part * 4 + half * 2) * (Tile::kN * 16) + i * (Tile::kWarpsN * 256));
                }
            }
#pragma unroll
            for (int n = 0; n < Tile::kMmasM; ++n) {
                b[n] = ldmatrix_x4(input + part * (Tile::kM * 64) + n * 512);
            }
            // No product waits for the one before it.
#pragma unroll
            for (int n = 0; n < Tile::kMmasM; ++n) {
#pragma unroll
                for (int i = 0; i < Tile::kMmasN; ++i) {
                    mma_bf16(sums[i][n], a[i][0].x, a[i][0].y, a[i][0].z, a[i][0].w, b[n].x, b[n].y);
                }
            }
#pragma unroll
            for (int n = 0; n < Tile::kMmasM; ++n) {
#pragma unroll
                for (int i = 0; i < Tile::kMmasN; ++i) {
                    mma_bf16(sums[i][n], a[i][1].x, a[i][1].y, a[i][1].z, a[i][1].w, b[n].z, b[n].w);
                }
            }
        }
    }

    // The same by four warps at once, for which it waits.
    static __device__ __forceinline__ void multiply_by_warpgroup(Sums<Tile>& sums, const char* weights,
                                                                 const char* input) {
        wgmma_fence();
#pragma unroll
        for (int part = 0; part < Tile::kK / 32; ++part) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const uint64_t b = wgmma_descriptor_swizzled<32>(input + part * (Tile::kM * 64) +
                                                                 Tile::warp_m() * (Tile::kMmasM * 512) + half * 32);
#pragma unroll
                for (int i = 0; i < Tile::kMmasN; ++i) {
                    const uint64_t a = wgmma_descriptor(weights + (part * 4 + half * 2) * (Tile::kN * 16) +
                                                            (i * Tile::kWarpsN + Tile::warp_n() / 4 * 4) * 256,
                                                        Tile::kN * 16);
                    wgmma<Tile::kMmasM>(sums[i], a, b);
                }
            }
        }
        wgmma_commit();
        wgmma_wait<0>();
        hold(sums);
    }

    // Keeps the compiler from moving the sums while the matrix unit has them.
    static __device__ __forceinline__ void hold(Sums<Tile>& sums) {
#pragma unroll
        for (int i = 0; i < Tile::kMmasN; ++i) {
#pragma unroll
            for (int n = 0; n < Tile::kMmasM; ++n) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    keep_in_register(sums[i][n][j]);
                }
            }
        }
    }

    __device__ __forceinline__ void load_weights(uint32_t stage, uint32_t slot) const {
        mbarrier_arrive_expect_tx(weights_full_ + slot, Tile::kWeightBytes);
        bulk_load(weights_ + slot * Tile::kWeightBytes,
                  source_.weight + static_cast<size_t>(stage) * Tile::kWeightBytes, Tile::kWeightBytes,
                  weights_full_ + slot, streaming_policy());
    }

    __device__ __forceinline__ void load_input(uint32_t stage, uint32_t slot) const {
        const uint32_t in_product = source_.products == 1 ? stage : stage % source_.stages;
        mbarrier_arrive_expect_tx(input_full_ + slot, Tile::kInputBytes);
#pragma unroll
        for (int part = 0; part < Tile::kK / 32; ++part) {
            tma_load_2d(input_ + slot * Tile::kInputBytes + part * (Tile::kM * 64), source_.input, source_.row,
                        source_.column + static_cast<int32_t>(in_product * Tile::kK) + part * 32, input_full_ + slot);
        }
    }

    // The next kernel may begin when this one has asked for all of its weights: what the next one asks for would come
    // in their way.
    static constexpr uint32_t kAtOnce = 0xFFFFFFFFu;

    const SkinnySource source_;
    const uint32_t all_stages_, num_stages_, trigger_;
    Barrier *const weights_full_, *const input_full_;
    char *const weights_, *const input_;
    uint32_t stage_ = 0, slot_ = 0, parity_ = 0;
};

}  // namespace dllm
