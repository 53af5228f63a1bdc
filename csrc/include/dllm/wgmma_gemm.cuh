// The product of a skinny tile by warpgroups, on Hopper (linear_skinny_wgmma.cu): the tile, the rings of weights and
// input, the warps that fill them, and those that multiply.
#pragma once

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

// kM rows by kN outputs a block, K in kSplitK slices. Four warps for each 64 rows multiply; the last two, from
// kFetchWarp on, fetch what the epilogue needs. Shared memory: mbarriers, the block's part of the epilogue's vectors,
// (mean, 1 / std) of the own rows, statistics on their way, the own rows of the residual, both rings; later in the
// rings' place the sums.
template <int kM_, int kN_, int kSplitK_>
struct WgmmaTile {
    static constexpr int kM = kM_, kN = kN_, kK = 64, kSplitK = kSplitK_, kGroups = kM / 64;
    static constexpr int kWarpsM = 4 * kGroups, kWarpsN = 1;
    static constexpr int kMmasN = kN / 8, kPieces = kN / 16;  // of a warp's 16 rows: columns by 8 and by 16
    static constexpr uint32_t kWeightBytes = kN * kK * 2, kInputBytes = kM * kK * 2;
    static constexpr uint32_t kMultiplyingWarps = 4 * kGroups, kWeightsWarp = kMultiplyingWarps;
    static constexpr uint32_t kInputWarp = kWeightsWarp + 1, kFetchWarp = kInputWarp + 1;
    static constexpr uint32_t kThreads = kFetchWarp * 32 + kFetchThreads;
    // Each slice owns as many rows, by eights, each of which kSplitK warps share.
    static constexpr uint32_t kOwnRows = kM / kSplitK, kOwnEights = kOwnRows / 8;
    static constexpr int kOwn = (kPieces - 1) / kSplitK + 1;  // pieces of a warp in eight rows, at most
    static_assert(kPieces >= kSplitK);
    static constexpr uint32_t kPitch = kN + 8;  // of the residual: rows in different banks
    using Epilogue = SkinnyEpilogue<kN, kPitch>;

    static constexpr uint32_t kVectors = (sizeof(Rings) + 15) / 16 * 16;
    static constexpr uint32_t kStatistics = kVectors + Epilogue::kVectorBytes;
    static constexpr uint32_t kParts = kStatistics + kOwnRows * 8;
    static constexpr uint32_t kResidual = kParts + kM * 8;
    static constexpr uint32_t kRing = (kResidual + kOwnRows * kPitch * 2 + 1023) / 1024 * 1024;
    static constexpr uint32_t kProductBytes = kM * kN * 4;
    // Two stages of both, the least there are, hold the sums.
    static_assert(2 * (kWeightBytes + kInputBytes) >= kProductBytes);

    static uint32_t bytes(uint32_t num_stages, uint32_t input_stages) {
        return kRing + num_stages * kWeightBytes + input_stages * kInputBytes;
    }
};

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

// By a warpgroup, whose rows of the input begin at `input`, until every slot was used for the last time.
template <typename Tile>
__device__ __forceinline__ void multiply(float (&sums)[Tile::kMmasN][4], Rings* rings, const char* input,
                                         const char* weights, uint32_t input_depth, uint32_t weights_depth,
                                         uint32_t stages) {
    uint32_t weights_slot = 0, weights_parity = 0, input_slot = 0, input_parity = 0;
    for (uint32_t stage = 0; stage < stages; ++stage) {
        mbarrier_wait(rings->weights_full + weights_slot, weights_parity);
        mbarrier_wait(rings->input_full + input_slot, input_parity);
        wgmma_fence();
#pragma unroll
        for (int part = 0; part < Tile::kK / 16; ++part) {
            const uint64_t a = wgmma_descriptor_swizzled<Tile::kK>(input + input_slot * Tile::kInputBytes + part * 32);
            const uint64_t b = wgmma_descriptor(
                weights + weights_slot * Tile::kWeightBytes + part * 2 * (Tile::kN * 16), Tile::kN * 16);
            wgmma<Tile::kMmasN>(sums, a, b);
        }
        wgmma_commit();
        wgmma_wait<0>();
        if (threadIdx.x % 32 == 0) {
            if (stage + weights_depth < stages) mbarrier_arrive(rings->weights_empty + weights_slot);
            if (stage + input_depth < stages) mbarrier_arrive(rings->input_empty + input_slot);
        }
        __syncwarp();
        if (++weights_slot == weights_depth) weights_slot = 0, weights_parity ^= 1;
        if (++input_slot == input_depth) input_slot = 0, input_parity ^= 1;
    }
    // Keeps the compiler from moving the sums while the matrix unit has them.
#pragma unroll
    for (int tile = 0; tile < Tile::kMmasN; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            keep_in_register(sums[tile][i]);
        }
    }
}

}  // namespace dllm
