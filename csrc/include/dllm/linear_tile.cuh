// The product of the skinny linear (linear_skinny.cu): the tile, the rings of weights and input, the warps that fill
// them, and those that multiply.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dllm/async.cuh"
#include "dllm/epilogue.cuh"
#include "dllm/grid.cuh"
#include "dllm/mma.cuh"

namespace dllm {

constexpr uint32_t kMaxStages = 16, kMaxInputStages = 8;
// Warps that do the epilogue, and threads that fetch what it needs.
constexpr uint32_t kEpilogueWarps = 8, kFetchThreads = 64;
// The next kernel may begin when all but so many stages of weights are asked for: it takes that long to begin.
constexpr uint32_t kEarly = 2;
// What a block may have where two share an SM's 100 KB, beside what the system takes of each.
constexpr uint32_t kHalfOfSharedMemory = 49 * 1024;

struct Rings {
    Barrier weights_full[kMaxStages], weights_empty[kMaxStages];
    Barrier input_full[kMaxInputStages], input_empty[kMaxInputStages];
    Barrier multiplied;

    __device__ __forceinline__ void make(uint32_t weights, uint32_t input, uint32_t multiplying_warps) {
        for (uint32_t slot = 0; slot < weights; ++slot) {
            mbarrier_init(weights_full + slot, 1);
            mbarrier_init(weights_empty + slot, multiplying_warps);
        }
        for (uint32_t slot = 0; slot < input; ++slot) {
            mbarrier_init(input_full + slot, 1);
            mbarrier_init(input_empty + slot, multiplying_warps);
        }
        mbarrier_init(&multiplied, multiplying_warps);
        fence_mbarrier_init();
    }
};

// kM rows by kN outputs a block, kK columns of K a stage, K in kSplitK slices. kWarpsM x kWarpsN warps multiply: by
// wgmma where they are one along the outputs, four for each 64 rows, and by mma.sync otherwise. The last two warps,
// from kFetchWarp on, fetch what the epilogue needs. Shared memory: mbarriers, the block's part of the epilogue's
// vectors, (mean, 1 / std) of the own rows, statistics on their way, the own rows of the residual, both rings; later in
// the rings' place the sums.
template <int kM_, int kN_, int kK_, int kWarpsM_, int kWarpsN_, int kSplitK_>
struct LinearTile {
    static constexpr int kM = kM_, kN = kN_, kK = kK_, kSplitK = kSplitK_;
    static constexpr int kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
    static constexpr bool kWgmma = kWarpsN == 1, kHandsOver = false;
    // A warp's sums: 16 rows by 8 outputs each.
    static constexpr int kMmasM = kM / 16 / kWarpsM, kMmasN = kN / 8 / kWarpsN, kPieces = kN / 16;
    static_assert(kMmasM * 16 * kWarpsM == kM && kMmasN * 8 * kWarpsN == kN && kMmasN % 2 == 0);
    static_assert(!kWgmma || kMmasM == 1);
    static_assert(kK == 32 || kK == 64);
    static constexpr uint32_t kWeightBytes = kN * kK * 2, kInputBytes = kM * kK * 2;
    static constexpr uint32_t kMultiplyingWarps = kWarpsM * kWarpsN, kWeightsWarp = kMultiplyingWarps;
    static constexpr uint32_t kInputWarp = kWeightsWarp + 1, kFetchWarp = kInputWarp + 1;
    static constexpr uint32_t kThreads = kFetchWarp * 32 + kFetchThreads;
    static_assert(kThreads >= kEpilogueWarps * 32);
    // Each slice owns rows, by eights. kShares warps share the pieces of one, kAtOnce eights are under way at once, in
    // kGroups turns; kOwnRows is the most that a slice may own so.
    static constexpr int kEights = kM / 8, kShares = kSplitK >= 8 ? 8 : kSplitK >= 4 ? 4 : kSplitK >= 2 ? 2 : 1;
    static constexpr int kAtOnce = kEpilogueWarps / kShares;
    static constexpr int kGroups = ((kEights - 1) / kSplitK + kAtOnce) / kAtOnce;
    static constexpr uint32_t kOwnRows = kGroups * kAtOnce * 8;
    static constexpr bool kEvenly = kOwnRows * kSplitK == kM;  // each slice owns as many
    static constexpr int kOwn = (kPieces - 1) / kShares + 1;   // pieces of a warp in eight rows, at most
    static constexpr uint32_t kPitch = kN + 8;                 // of the residual: rows in different banks
    using Epilogue = SkinnyEpilogue<kN, kPitch>;

    static constexpr uint32_t kVectors = (sizeof(Rings) + 15) / 16 * 16;
    static constexpr uint32_t kStatistics = kVectors + Epilogue::kVectorBytes;
    static constexpr uint32_t kParts = kStatistics + kOwnRows * 8;
    static constexpr uint32_t kResidual = kParts + kOwnRows * kShares * 8;
    static constexpr uint32_t kRing = (kResidual + kOwnRows * kPitch * 2 + 1023) / 1024 * 1024;
    static constexpr uint32_t kProductBytes = kM * kN * 4;

    static constexpr uint32_t bytes(uint32_t num_stages, uint32_t input_stages) {
        return kRing + std::max(num_stages * kWeightBytes + input_stages * kInputBytes, kProductBytes);
    }
    // Blocks of an SM, on the card with least shared memory; for wgmma, Hopper.
    static constexpr int kBlocks = kWgmma || bytes(2, 2) <= kHalfOfSharedMemory ? 2 : 1;
    static __device__ __forceinline__ uint32_t warp_m() { return threadIdx.x / 32 / kWarpsN; }
    static __device__ __forceinline__ uint32_t warp_n() { return threadIdx.x / 32 % kWarpsN; }
};

// The same where the blocks that share a K are no cluster: they hand sums over through global memory.
template <typename Tile>
struct WithoutClusters : Tile {
    static constexpr bool kHandsOver = true;
};

// A multiplying warp's sums, each as mma_bf16 has them: input's rows by outputs.
template <typename Tile>
using LinearSums = float[Tile::kMmasM][Tile::kMmasN][4];

// The ring of weights. Weights depend on no other kernel, so the first stages are under way before anything is waited
// for.
template <typename Tile>
struct Weights {
    const char* source;
    Rings* rings;
    char* ring;
    uint32_t stages, depth;

    __device__ __forceinline__ void load(uint32_t stage, uint32_t slot) const {
        mbarrier_arrive_expect_tx(rings->weights_full + slot, Tile::kWeightBytes);
        bulk_load(ring + slot * Tile::kWeightBytes, source + static_cast<size_t>(stage) * Tile::kWeightBytes,
                  Tile::kWeightBytes, rings->weights_full + slot, streaming_policy());
    }

    __device__ __forceinline__ void begin() const {
        for (uint32_t stage = 0; stage < min(depth, stages); ++stage) {
            load(stage, stage);
        }
    }

    // By one thread.
    __device__ __forceinline__ void keep_full() const {
        uint32_t slot = 0, parity = 0;
        for (uint32_t stage = depth; stage < stages; ++stage) {
            if (stage + kEarly == stages) pdl_trigger();
            mbarrier_wait(rings->weights_empty + slot, parity);
            load(stage, slot);
            if (++slot == depth) slot = 0, parity ^= 1;
        }
        pdl_trigger();
    }
};

// The ring of the input, which comes from L2: by one thread.
template <typename Tile>
__device__ __forceinline__ void load_input(const TensorMap& map, Rings* rings, char* ring, uint32_t depth,
                                           uint32_t stages, uint32_t row, uint32_t column) {
    pdl_wait();
    uint32_t slot = 0, parity = 1;
    for (uint32_t stage = 0; stage < stages; ++stage) {
        if (stage >= depth) mbarrier_wait(rings->input_empty + slot, parity);
        mbarrier_arrive_expect_tx(rings->input_full + slot, Tile::kInputBytes);
        tma_load_2d(ring + slot * Tile::kInputBytes, &map, static_cast<int32_t>(row),
                    static_cast<int32_t>(column + stage * Tile::kK), rings->input_full + slot);
        if (++slot == depth) slot = 0, parity ^= 1;
    }
}

// A stage's product by each warp for itself.
template <typename Tile>
__device__ __forceinline__ void multiply_by_warp(LinearSums<Tile>& sums, const char* input, const char* weights) {
    const uint32_t lane = threadIdx.x % 32;
    input += (Tile::warp_m() * Tile::kMmasM * 16 + lane % 16) * (Tile::kK * 2);
    weights += lane / 8 % 2 * (Tile::kN * 16) + (Tile::warp_n() * Tile::kMmasN * 8 + lane / 16 * 8 + lane % 8) * 16;
#pragma unroll
    for (int part = 0; part < Tile::kK / 16; ++part) {
        uint4 a[Tile::kMmasM], b[Tile::kMmasN / 2];
#pragma unroll
        for (int m = 0; m < Tile::kMmasM; ++m) {
            // Pieces of 16 bytes change places from row to row (async.cuh).
            const uint32_t piece = part * 2 + lane / 16 ^ (Tile::kK == 64 ? lane % 8 : lane % 8 / 2);
            a[m] = ldmatrix_x4(input + m * (16 * Tile::kK * 2) + piece * 16);
        }
#pragma unroll
        for (int n = 0; n < Tile::kMmasN / 2; ++n) {
            b[n] = ldmatrix_x4(weights + part * 2 * (Tile::kN * 16) + n * 256);
        }
#pragma unroll
        for (int n = 0; n < Tile::kMmasN / 2; ++n) {
#pragma unroll
            for (int m = 0; m < Tile::kMmasM; ++m) {
                mma_bf16(sums[m][2 * n], a[m].x, a[m].y, a[m].z, a[m].w, b[n].x, b[n].y);
                mma_bf16(sums[m][2 * n + 1], a[m].x, a[m].y, a[m].z, a[m].w, b[n].z, b[n].w);
            }
        }
    }
}

// The same by four warps at once, for which it waits.
template <typename Tile>
__device__ __forceinline__ void multiply_by_warpgroup(LinearSums<Tile>& sums, const char* input, const char* weights) {
    input += threadIdx.x / 128 * (64 * Tile::kK * 2);
    wgmma_fence();
#pragma unroll
    for (int part = 0; part < Tile::kK / 16; ++part) {
        const uint64_t a = wgmma_descriptor_swizzled<Tile::kK>(input + part * 32);
        const uint64_t b = wgmma_descriptor(weights + part * 2 * (Tile::kN * 16), Tile::kN * 16);
        wgmma<Tile::kMmasN>(sums[0], a, b);
    }
    wgmma_commit();
    wgmma_wait<0>();
}

// By the multiplying warps, until every slot was used for the last time.
template <typename Tile>
__device__ __forceinline__ void multiply(LinearSums<Tile>& sums, Rings* rings, const char* input, const char* weights,
                                         uint32_t input_depth, uint32_t weights_depth, uint32_t stages) {
    uint32_t weights_slot = 0, weights_parity = 0, input_slot = 0, input_parity = 0;
    for (uint32_t stage = 0; stage < stages; ++stage) {
        mbarrier_wait(rings->weights_full + weights_slot, weights_parity);
        mbarrier_wait(rings->input_full + input_slot, input_parity);
        const char* const from = input + input_slot * Tile::kInputBytes;
        const char* const by = weights + weights_slot * Tile::kWeightBytes;
        if constexpr (Tile::kWgmma) {
            multiply_by_warpgroup<Tile>(sums, from, by);
        } else {
            multiply_by_warp<Tile>(sums, from, by);
            __syncwarp();
        }
        if (threadIdx.x % 32 == 0) {
            if (stage + weights_depth < stages) mbarrier_arrive(rings->weights_empty + weights_slot);
            if (stage + input_depth < stages) mbarrier_arrive(rings->input_empty + input_slot);
        }
        __syncwarp();
        if (++weights_slot == weights_depth) weights_slot = 0, weights_parity ^= 1;
        if (++input_slot == input_depth) input_slot = 0, input_parity ^= 1;
    }
    if constexpr (Tile::kWgmma) {
        // Keeps the compiler from moving the sums while the matrix unit has them.
#pragma unroll
        for (int tile = 0; tile < Tile::kMmasN; ++tile) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                keep_in_register(sums[0][tile][i]);
            }
        }
    }
}

}  // namespace dllm
