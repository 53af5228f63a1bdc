// The linear layer for few rows (definition: dllm_kernels/ops/linear/op.py).
//
// The input's rows are the product's rows, the tile's outputs its columns. Warps have roles: some multiply, by wgmma on
// Hopper and by mma.sync everywhere, one fills the ring of weights, one that of the input, two fetch what the epilogue
// needs. K is divided among the blocks of a cluster; each leaves its sums in its shared memory, and who owns a row adds
// them up in the order of the slices: equal calls give equal bits, and a row's result does not depend on the rows
// beside it. Where clusters do not run, sums for other blocks go through global memory.

#include <cstdint>
#include <stdexcept>
#include <string>

#include "dllm/describe.h"
#include "dllm/gemm_tiles.h"
#include "dllm/grid.cuh"
#include "dllm/kernels.h"
#include "dllm/launch.cuh"
#include "dllm/linear_rows.cuh"
#include "dllm/linear_tile.cuh"

namespace dllm {
namespace {

template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    linear_skinny_kernel(const LinearSkinny call, const __grid_constant__ TensorMap map) {
    if constexpr (kHasWgmma || !Tile::kWgmma) {
        const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const BlockCoord<Tile> block(call);
        char* const memory = shared_memory();
        Rings* const rings = reinterpret_cast<Rings*>(memory);
        char* const input = memory + Tile::kRing;
        const Weights<Tile> weights{
            .source = static_cast<const char*>(call.weight) +
                      (static_cast<size_t>(block.column_block) * block.all_stages + block.begin) * Tile::kWeightBytes,
            .rings = rings,
            .ring = input + call.config.input_stages * Tile::kInputBytes,
            .stages = block.stages,
            .depth = call.config.num_stages,
        };
        OwnRows<Tile> own(call, block, memory);
        if (threadIdx.x == Tile::kWeightsWarp * 32) {
            rings->make(call.config.num_stages, call.config.input_stages, Tile::kMultiplyingWarps);
            weights.begin();
            prefetch_tensor_map(&map);
        }
        if (warp >= Tile::kFetchWarp) own.fetch_vectors();
        __syncthreads();

        // Load and main loop.
        if (warp == Tile::kWeightsWarp) {
            if (lane == 0) weights.keep_full();
        } else if (warp == Tile::kInputWarp) {
            if (lane == 0) {
                load_input<Tile>(map, rings, input, call.config.input_stages, block.stages, blockIdx.z * Tile::kM,
                                 block.begin * Tile::kK);
            }
        } else if (warp >= Tile::kFetchWarp) {
            pdl_wait();
            own.fetch_rows();
        } else {
            pdl_wait();
            LinearSums<Tile> sums = {};
            multiply<Tile>(sums, rings, input, weights.ring, call.config.input_stages, call.config.num_stages,
                           block.stages);
            // The sums go where the rings were: no warp may still read them.
            if (lane == 0) mbarrier_arrive(&rings->multiplied);
            mbarrier_wait(&rings->multiplied, 0);
            own.store_sums(sums);
        }
        __syncwarp();

        // Split-K reduction.
        constexpr bool kClustered = Tile::kSplitK > 1 && !Tile::kHandsOver;
        if constexpr (kClustered) {
            cluster_arrive();
            cluster_wait();
        } else {
            __syncthreads();
        }
        own.reduce_split_k();
        // Others may still be reading this block's memory.
        if constexpr (kClustered) cluster_arrive_relaxed();
        own.finish();
        if constexpr (kClustered) cluster_wait();
    }
}

template <typename Tile>
void launch_tile(const LinearSkinny& call, cudaStream_t stream) {
    const dim3 blocks(Tile::kSplitK, (call.n - 1) / Tile::kN + 1, (call.m - 1) / Tile::kM + 1);
    launch("linear_skinny", linear_skinny_kernel<Tile>, Grid(blocks, Tile::kHandsOver ? 1 : Tile::kSplitK),
           Tile::kThreads, Tile::bytes(call.config.num_stages, call.config.input_stages), stream, call,
           tensor_map(call.input, call.m, call.k, Tile::kM, Tile::kK));
}

// By wgmma: four warps for each 64 rows.
template <int kM, int kN, int kSplitK>
using WgmmaTile = LinearTile<kM, kN, 64, kM / 16, 1, kSplitK>;

// By mma.sync: a warp has 32 rows and half of the outputs.
template <int kM, int kN, int kK, int kSplitK>
using MmaTile = LinearTile<kM, kN, kK, kM / 32, 2, kSplitK>;

using Tiles = TileList<WgmmaTile<64, 64, 1>, WgmmaTile<64, 64, 2>, WgmmaTile<64, 64, 4>,  //
                       WgmmaTile<64, 80, 1>, WgmmaTile<64, 80, 2>, WgmmaTile<64, 80, 4>,  //
                       WgmmaTile<64, 96, 1>, WgmmaTile<64, 96, 2>, WgmmaTile<64, 96, 4>,  //
                       WgmmaTile<64, 128, 1>, WgmmaTile<64, 128, 2>, WgmmaTile<64, 128, 4>, WgmmaTile<64, 128, 8>,
                       WgmmaTile<64, 144, 1>, WgmmaTile<64, 144, 2>, WgmmaTile<64, 144, 4>, WgmmaTile<64, 144, 8>,
                       WgmmaTile<64, 160, 1>, WgmmaTile<64, 160, 2>, WgmmaTile<64, 160, 4>, WgmmaTile<64, 160, 8>,
                       WgmmaTile<128, 64, 1>, WgmmaTile<128, 64, 2>, WgmmaTile<128, 64, 4>,  //
                       MmaTile<64, 64, 64, 1>, MmaTile<64, 64, 64, 2>, MmaTile<64, 64, 64, 3>, MmaTile<64, 64, 64, 4>,
                       MmaTile<64, 64, 64, 5>, MmaTile<64, 64, 64, 7>, MmaTile<64, 64, 64, 8>,  //
                       MmaTile<64, 96, 64, 1>, MmaTile<64, 96, 64, 2>, MmaTile<64, 96, 64, 3>, MmaTile<64, 96, 64, 4>,
                       MmaTile<64, 96, 64, 5>, MmaTile<64, 96, 64, 8>,  //
                       MmaTile<64, 128, 64, 1>, MmaTile<64, 128, 64, 2>, MmaTile<64, 128, 64, 3>,
                       MmaTile<64, 128, 64, 4>, MmaTile<64, 128, 64, 5>, MmaTile<64, 128, 64, 8>,  //
                       MmaTile<64, 160, 64, 1>, MmaTile<64, 160, 64, 2>, MmaTile<64, 160, 64, 3>,
                       MmaTile<64, 160, 64, 4>, MmaTile<64, 160, 64, 5>, MmaTile<64, 160, 64, 8>,  //
                       MmaTile<64, 64, 32, 5>, MmaTile<64, 128, 32, 5>,                            //
                       MmaTile<128, 64, 64, 1>, MmaTile<128, 64, 64, 2>, MmaTile<128, 64, 64, 4>,  //
                       MmaTile<128, 96, 64, 1>, MmaTile<128, 96, 64, 2>, MmaTile<128, 96, 64, 4>,  //
                       MmaTile<128, 128, 64, 2>, MmaTile<128, 128, 64, 4>>;

template <typename Tile>
void validate(const LinearSkinny& call) {
    const GemmConfig& config = call.config;
    if (Tile::kWgmma && !on_hopper()) {
        throw std::invalid_argument("linear_skinny's tiles for wgmma run on Hopper only");
    }
    if (call.n % 8 != 0 || call.k % 8 != 0) {
        throw std::invalid_argument("linear_skinny takes n and k that are multiples of 8, not " +
                                    std::to_string(call.n) + " and " + std::to_string(call.k));
    }
    const auto within = [](uint32_t stages, uint32_t most) { return stages >= 2 && stages <= most; };
    if (!within(config.num_stages, kMaxStages) || !within(config.input_stages, kMaxInputStages) ||
        config.split_k > (call.k - 1) / config.tile_k + 1) {
        throw std::invalid_argument(
            "linear_skinny takes rings of 2 to 16 stages, of input 2 to 8, and slices of K of at least a stage, "
            "not " +
            std::to_string(config.num_stages) + ", " + std::to_string(config.input_stages) + " and " +
            std::to_string(config.split_k) + " slices of k = " + std::to_string(call.k));
    }
}

}  // namespace

void linear_skinny(const LinearSkinny& call, cudaStream_t stream) {
    const bool found = Tiles::visit(call.config, [&](auto tile) {
        using Tile = decltype(tile);
        validate<Tile>(call);
        if constexpr (Tile::kSplitK > 1 && !Tile::kWgmma) {
            if (!call.clusters) return launch_tile<WithoutClusters<Tile>>(call, stream);
        }
        launch_tile<Tile>(call, stream);
    });
    if (!found) {
        throw std::invalid_argument("linear_skinny has no code for " + described(call.config));
    }
}

uint32_t max_cluster() {
    using Tile = MmaTile<64, 64, 64, 8>;
    for (uint32_t cluster : {8u, 4u, 2u}) {
        if (active_clusters(linear_skinny_kernel<Tile>, cluster, Tile::kThreads, Tile::bytes(2, 2)) > 0) return cluster;
    }
    return 1;
}

void describe_linear_skinny(Description& description) {
    Tiles::each([&](auto tile) {
        using Tile = decltype(tile);
        description.tiles.push_back({.kernel = "linear_skinny",
                                     .config = config_of<Tile>(Tile::kSplitK, 2),
                                     .wgmma = Tile::kWgmma,
                                     .max_stages = kMaxStages,
                                     .max_input_stages = kMaxInputStages,
                                     .ring_offset = Tile::kRing,
                                     .product_bytes = Tile::kProductBytes});
    });
}

}  // namespace dllm
