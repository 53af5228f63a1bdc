// The folded linear layer for few rows where four warps multiply at once and blocks read each other's shared memory
// (definition: dllm_kernels/ops/stream_linear.py). linear_skinny.cu serves the other cards and shapes that fill no
// blocks.
//
// 64 or 128 rows of the input are the product's rows, the block's outputs its columns. Warps have roles: four multiply
// 64 rows, one fills the ring of weights, one that of the input, two fetch what the end needs. K is split among the
// blocks of a cluster; each leaves its sums in its shared memory, and who owns a row adds them up in the order of the
// slices: equal calls give equal bits, and a row's result does not depend on the rows beside it.

#include <cstdint>
#include <stdexcept>

#include "dllm/epilogue.cuh"
#include "dllm/kernels.h"
#include "dllm/launch.cuh"

namespace dllm {
namespace {

// The next kernel may begin when all but so many stages of weights are asked for: it takes that long to begin.
constexpr uint32_t kEarly = 2;

// The ring of weights. Weights depend on no other kernel, so the first stages are under way before anything is waited
// for.
template <typename Cut>
struct Weights {
    const char* source;
    Rings* rings;
    char* ring;
    uint32_t stages, depth;

    __device__ __forceinline__ void load(uint32_t stage, uint32_t slot) const {
        mbarrier_arrive_expect_tx(rings->weights_full + slot, Cut::kWeightBytes);
        bulk_load(ring + slot * Cut::kWeightBytes, source + static_cast<size_t>(stage) * Cut::kWeightBytes,
                  Cut::kWeightBytes, rings->weights_full + slot, streaming_policy());
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
template <typename Cut>
__device__ __forceinline__ void load_input(const TensorMap& map, Rings* rings, char* ring, uint32_t depth,
                                           uint32_t stages, uint32_t row, uint32_t column) {
    pdl_wait();
    uint32_t slot = 0, parity = 1;
    for (uint32_t stage = 0; stage < stages; ++stage) {
        if (stage >= depth) mbarrier_wait(rings->input_empty + slot, parity);
        mbarrier_arrive_expect_tx(rings->input_full + slot, Cut::kInputBytes);
        tma_load_2d(ring + slot * Cut::kInputBytes, &map, static_cast<int32_t>(row),
                    static_cast<int32_t>(column + stage * kDepth), rings->input_full + slot);
        if (++slot == depth) slot = 0, parity ^= 1;
    }
}

// By a warpgroup, whose rows of the input begin at `input`, until every slot was used for the last time.
template <typename Cut>
__device__ __forceinline__ void multiply(float (&sums)[Cut::kTiles][4], Rings* rings, const char* input,
                                         const char* weights, uint32_t input_depth, uint32_t weights_depth,
                                         uint32_t stages) {
    uint32_t weights_slot = 0, weights_parity = 0, input_slot = 0, input_parity = 0;
    for (uint32_t stage = 0; stage < stages; ++stage) {
        mbarrier_wait(rings->weights_full + weights_slot, weights_parity);
        mbarrier_wait(rings->input_full + input_slot, input_parity);
        wgmma_fence();
#pragma unroll
        for (int part = 0; part < kDepth / 16; ++part) {
            const uint64_t a = wgmma_descriptor_swizzled<kDepth>(input + input_slot * Cut::kInputBytes + part * 32);
            const uint64_t b = wgmma_descriptor(
                weights + weights_slot * Cut::kWeightBytes + part * 2 * (Cut::kOutputs * 16), Cut::kOutputs * 16);
            wgmma<Cut::kTiles>(sums, a, b);
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
    for (int tile = 0; tile < Cut::kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            keep_in_register(sums[tile][i]);
        }
    }
}

template <int kOutputs, int kSlices, int kGroups>
__global__ void __launch_bounds__(LinearCut<kOutputs, kSlices, kGroups>::kThreads, 2)
    linear_warpgroup_kernel(const Linear call, const __grid_constant__ TensorMap map) {
    if constexpr (kWarpgroups && kClusters) {
        using Cut = LinearCut<kOutputs, kSlices, kGroups>;
        const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, slice = blockIdx.x;
        const Place place{
            .slice = slice,
            .column_block = blockIdx.y,
            .column_blocks = gridDim.y,
            .first_row = blockIdx.z * Cut::kRows + slice * Cut::kOwnRows,
            .own_rows = Cut::own_rows(call.rows, blockIdx.z, slice),
        };
        const uint32_t all = call.width / kDepth, begin = all * slice / kSlices;
        const uint32_t stages = all * (slice + 1) / kSlices - begin;
        char* const memory = shared_memory();
        Rings* const rings = reinterpret_cast<Rings*>(memory);
        char* const input = memory + Cut::kRing;
        const Weights<Cut> weights{
            .source = static_cast<const char*>(call.weight) +
                      (static_cast<size_t>(place.column_block) * all + begin) * Cut::kWeightBytes,
            .rings = rings,
            .ring = input + call.input_stages * Cut::kInputBytes,
            .stages = stages,
            .depth = call.ring_stages,
        };
        Epilogue<Cut> end(call, place, memory);
        if (threadIdx.x == Cut::kWeightsWarp * 32) {
            rings->make(call.ring_stages, call.input_stages, Cut::kMultiplyingWarps);
            weights.begin();
            prefetch_tensor_map(&map);
        }
        if (warp >= Cut::kEndWarp) end.fetch_constants();
        __syncthreads();

        if (warp == Cut::kWeightsWarp) {
            if (lane == 0) weights.keep_full();
        } else if (warp == Cut::kInputWarp) {
            if (lane == 0) {
                load_input<Cut>(map, rings, input, call.input_stages, stages, blockIdx.z * Cut::kRows, begin * kDepth);
            }
        } else if (warp >= Cut::kEndWarp) {
            pdl_wait();
            end.fetch_rows();
        } else {
            pdl_wait();
            float sums[Cut::kTiles][4] = {};
            multiply<Cut>(sums, rings, input + warp / 4 * (64 * kDepth * 2), weights.ring, call.input_stages,
                          call.ring_stages, stages);
            // The sums go where the rings were: no warp may still read them.
            if (lane == 0) mbarrier_arrive(&rings->multiplied);
            mbarrier_wait(&rings->multiplied, 0);
            end.leave(sums);
        }
        __syncwarp();
        if constexpr (kSlices > 1) {
            cluster_arrive();
            cluster_wait();
        } else {
            __syncthreads();
        }
        end.add_up();
        // Others may still be reading this block's memory.
        if constexpr (kSlices > 1) cluster_arrive_relaxed();
        end.finish();
        if constexpr (kSlices > 1) cluster_wait();
    }
}

template <int kOutputs, int kSlices, int kGroups>
void launch_cut(const Linear& call, cudaStream_t stream) {
    using Cut = LinearCut<kOutputs, kSlices, kGroups>;
    const dim3 blocks(kSlices, (call.outputs - 1) / kOutputs + 1, (call.rows - 1) / Cut::kRows + 1);
    launch("linear", linear_warpgroup_kernel<kOutputs, kSlices, kGroups>, Grid(blocks, kSlices), Cut::kThreads,
           Cut::bytes(call.ring_stages, call.input_stages), stream, call,
           tensor_map(call.input, call.rows, call.width, Cut::kRows, kDepth));
}

template <int kOutputs, int kGroups = 1>
void launch_outputs(const Linear& call, cudaStream_t stream) {
    if (call.slices == 1) return launch_cut<kOutputs, 1, kGroups>(call, stream);
    if (call.slices == 2) return launch_cut<kOutputs, 2, kGroups>(call, stream);
    if (call.slices == 4) return launch_cut<kOutputs, 4, kGroups>(call, stream);
    if constexpr (kOutputs >= 128) {
        if (call.slices == 8) return launch_cut<kOutputs, 8, kGroups>(call, stream);
    }
    throw std::invalid_argument("linear has no code for this shape of warps in so many slices");
}

}  // namespace

void linear_warpgroup(const Linear& call, cudaStream_t stream) {
    if (!has_clusters()) throw std::invalid_argument("linear has this shape of warps on Hopper only");
    if (call.outputs % 8 != 0 || call.width % kDepth != 0) {
        throw std::invalid_argument("linear takes octets of outputs and fills stages with this shape of warps");
    }
    const auto within = [](uint32_t stages, uint32_t most) { return stages >= 2 && stages <= most; };
    if (!within(call.ring_stages, kMaxStages) || !within(call.input_stages, kMaxInputStages) ||
        call.slices > call.width / kDepth) {
        throw std::invalid_argument(
            "linear takes rings of 2 to 16 stages and of 2 to 8 of input, and slices of at least a stage");
    }
    if (call.warps_m == 8) {
        if (call.sixteens == 4) return launch_outputs<64, 2>(call, stream);
        throw std::invalid_argument("linear has no code for this shape of warps");
    }
    if (call.sixteens == 4) return launch_outputs<64>(call, stream);
    if (call.sixteens == 5) return launch_outputs<80>(call, stream);
    if (call.sixteens == 6) return launch_outputs<96>(call, stream);
    if (call.sixteens == 8) return launch_outputs<128>(call, stream);
    if (call.sixteens == 9) return launch_outputs<144>(call, stream);
    if (call.sixteens == 10) return launch_outputs<160>(call, stream);
    throw std::invalid_argument("linear has no code for this shape of warps");
}

}  // namespace dllm
