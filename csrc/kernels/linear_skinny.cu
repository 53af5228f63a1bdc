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
#include "dllm/epilogue.cuh"
#include "dllm/gemm_tiles.h"
#include "dllm/grid.cuh"
#include "dllm/kernels.h"
#include "dllm/launch.cuh"
#include "dllm/linear_tile.cuh"

namespace dllm {
namespace {

// Where a block stands, the eights of rows that it owns, and its slice of K in stages.
template <typename Tile>
struct BlockCoord {
    uint32_t slice, column_block, column_blocks, first_eight, own_eights, first_row, own_rows, all_stages, begin,
        stages;

    __device__ __forceinline__ explicit BlockCoord(const LinearSkinny& call)
        : slice(blockIdx.x),
          column_block(blockIdx.y),
          column_blocks(gridDim.y),
          first_eight(Tile::kEights * slice / Tile::kSplitK),
          own_eights(Tile::kEights * (slice + 1) / Tile::kSplitK - first_eight),
          first_row(blockIdx.z * Tile::kM + first_eight * 8),
          own_rows(call.m > first_row ? min(own_eights * 8, call.m - first_row) : 0),
          all_stages((call.k - 1) / Tile::kK + 1),
          begin(all_stages * slice / Tile::kSplitK),
          stages(all_stages * (slice + 1) / Tile::kSplitK - begin) {}
};

// A block's own rows: the sums of all slices, then the epilogue. The first eight warps have an eight of the own rows
// each in kGroups turns, of which kShares warps share the pieces of 16 outputs; a lane has a row of the eight and a
// quad of each piece.
template <typename Tile>
class OwnRows {
  public:
    __device__ __forceinline__ OwnRows(const LinearSkinny& call, const BlockCoord<Tile>& block, char* memory)
        : call_(call),
          block_(block),
          epilogue_(call, block.column_block, memory + Tile::kVectors, memory + Tile::kResidual),
          statistics_(reinterpret_cast<float2*>(memory + Tile::kStatistics)),
          parts_(reinterpret_cast<float2*>(memory + Tile::kParts)),
          sums_(reinterpret_cast<float4*>(memory + Tile::kRing)) {}

    // By the warps from kFetchWarp on, who also fetch the rows.
    __device__ __forceinline__ void fetch_vectors() const {
        epilogue_.template load_vectors<kFetchThreads>(fetch_thread());
        cp_async_commit();
    }

    __device__ __forceinline__ void fetch_rows() const {
        epilogue_.template load_residual<kFetchThreads>(fetch_thread(), block_.first_row, block_.own_rows);
        cp_async_commit();
        if (call_.column_sums) {
#pragma unroll 1
            for (uint32_t row = fetch_thread(); row < block_.own_rows; row += kFetchThreads) {
                const size_t token = block_.first_row + row;
                statistics_[row] = merge_statistics_by_thread(
                    reinterpret_cast<const float2*>(call_.stats) + token * call_.stats_chunks, call_.stats_chunks,
                    call_.stats_chunk, call_.k);
            }
        }
        cp_async_wait<0>();
    }

    // A multiplying warp's sums: [eight rows][piece][lane], a quad of a row each, in the packing's order. Without
    // clusters those of other slices' rows go to the workspace: [slice][eight rows][piece][lane].
    __device__ __forceinline__ void store_sums(const LinearSums<Tile>& sums) const {
        const uint32_t first_eight = Tile::warp_m() * Tile::kMmasM * 2;
        const uint32_t first =
            (first_eight * Tile::kPieces + Tile::warp_n() * (Tile::kMmasN / 2)) * 32 + threadIdx.x % 32;
        float4 *const mine = sums_ + first, *const theirs = handed_over(block_.slice) + first;
#pragma unroll
        for (int eight = 0; eight < 2 * Tile::kMmasM; ++eight) {
            const auto& of_rows = sums[eight / 2];
            const int half = eight % 2 * 2;
            const bool kept = call_.clusters || first_eight + eight - block_.first_eight < block_.own_eights;
#pragma unroll
            for (int i = 0; i < Tile::kMmasN / 2; ++i) {
                const float4 sum{of_rows[2 * i][half], of_rows[2 * i][half + 1], of_rows[2 * i + 1][half],
                                 of_rows[2 * i + 1][half + 1]};
                const uint32_t at = (eight * Tile::kPieces + i) * 32;
                if (kept) {
                    mine[at] = sum;
                } else {
                    lamport_store(theirs + at, sum);
                }
            }
        }
    }

    // The sums of all slices, in their order; all are on their way at once, since the other blocks are far.
    __device__ __forceinline__ void reduce_split_k() {
        float4 parts[Tile::kGroups * Tile::kOwn][Tile::kSplitK];
        // action(part, slice, place in the sums) for each.
        const auto each_part = [&](auto action) {
            each_group([&](int group) {
                const uint32_t from = (block_.first_eight + eight(group)) * Tile::kPieces * 32 + threadIdx.x % 32;
                each_piece(group, [&](int i, uint32_t piece) {
#pragma unroll
                    for (uint32_t s = 0; s < Tile::kSplitK; ++s) {
                        action(parts[i][s], s, from + piece * 32);
                    }
                });
            });
        };
        if (Tile::kSplitK == 1) {
            each_part([&](float4& part, uint32_t, uint32_t place) { part = sums_[place]; });
        } else if (call_.clusters) {
            each_part([&](float4& part, uint32_t s, uint32_t place) { part = dsmem_load(sums_ + place, s); });
        } else {
            for (bool missing = true; missing;) {
                missing = false;
                each_part([&](float4& part, uint32_t s, uint32_t place) {
                    part = s == block_.slice ? sums_[place] : lamport_load(handed_over(s) + place);
                });
                each_part(
                    [&](float4& part, uint32_t s, uint32_t) { missing |= s != block_.slice && !lamport_ready(part); });
            }
            each_part([&](float4&, uint32_t s, uint32_t place) {
                if (s != block_.slice) lamport_reset(handed_over(s) + place);
            });
        }
        each_group([&](int group) {
            each_piece(group, [&](int i, uint32_t) {
                float4 sum = parts[i][0];
#pragma unroll
                for (int s = 1; s < Tile::kSplitK; ++s) {
                    const float4 part = parts[i][s];
                    sum = {sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w};
                }
                values_[i][0] = sum.x, values_[i][1] = sum.y, values_[i][2] = sum.z, values_[i][3] = sum.w;
            });
        });
    }

    __device__ __forceinline__ void finish() {
        each_group([&](int group) {
            const auto each = quads(group);
            const float2 mean_and_rstd = call_.column_sums ? statistics_[row(group)] : float2{0, 1};
            epilogue_.apply(mean_and_rstd, row(group), each);
            epilogue_.write(call_.output, block_.first_row + row(group), row(group) < block_.own_rows, each);
        });
        if (call_.stats_out) write_statistics();
        if (call_.next_scale) {
            each_group([&](int group) {
                const auto each = quads(group);
                epilogue_.scale_for_next(each);
                epilogue_.write(call_.scaled_out, block_.first_row + row(group), row(group) < block_.own_rows, each);
            });
        }
    }

  private:
    static __device__ __forceinline__ uint32_t fetch_thread() { return threadIdx.x - Tile::kFetchWarp * 32; }
    static __device__ __forceinline__ bool takes_part() {
        return Tile::kThreads == kEpilogueWarps * 32 || threadIdx.x < kEpilogueWarps * 32;
    }
    static __device__ __forceinline__ uint32_t eight(int group) {
        return group * Tile::kAtOnce + threadIdx.x / 32 / Tile::kShares;
    }
    static __device__ __forceinline__ uint32_t share() { return threadIdx.x / 32 % Tile::kShares; }
    static __device__ __forceinline__ uint32_t row(int group) { return eight(group) * 8 + threadIdx.x % 32 / 4; }

    // What a slice hands over to the others of its tile.
    __device__ __forceinline__ float4* handed_over(uint32_t slice) const {
        const size_t tile = blockIdx.z * block_.column_blocks + block_.column_block;
        return reinterpret_cast<float4*>(call_.workspace) + (tile * Tile::kSplitK + slice) * (Tile::kProductBytes / 16);
    }

    // Outputs of a share that are not padding.
    __device__ __forceinline__ uint32_t columns_of(uint32_t share) const {
        uint32_t columns = 0;
#pragma unroll
        for (uint32_t i = 0; i < Tile::kOwn; ++i) {
            const uint32_t first = 16 * (share + i * Tile::kShares);
            columns += first < epilogue_.outputs ? min(16u, epilogue_.outputs - first) : 0;
        }
        return columns;
    }

    // action(group) for each of the warp's eights.
    template <typename Action>
    __device__ __forceinline__ void each_group(Action action) const {
        if (!takes_part()) return;
#pragma unroll
        for (int group = 0; group < Tile::kGroups; ++group) {
            if (Tile::kEvenly || eight(group) < block_.own_eights) action(group);
        }
    }

    // action(i, piece) for each of the warp's in the rows of a group.
    template <typename Action>
    static __device__ __forceinline__ void each_piece(int group, Action action) {
#pragma unroll
        for (int i = 0; i < Tile::kOwn; ++i) {
            const uint32_t piece = share() + i * Tile::kShares;
            if (Tile::kPieces % Tile::kShares == 0 || piece < Tile::kPieces) action(group * Tile::kOwn + i, piece);
        }
    }

    // The lane's quads of its row of a group (epilogue.cuh).
    __device__ __forceinline__ auto quads(int group) {
        return [this, group](auto action) {
            each_piece(group, [&](int i, uint32_t piece) { action(values_[i], piece * 16 + threadIdx.x % 4 * 4); });
        };
    }

    // Of every warp's share, then merged over the warps that share the rows.
    __device__ __forceinline__ void write_statistics() {
        float2* const to = reinterpret_cast<float2*>(call_.stats_out) +
                           static_cast<size_t>(block_.first_row) * block_.column_blocks + block_.column_block;
        each_group([&](int group) {
            const float2 part = row_statistics<4>(quads(group), columns_of(share()), epilogue_.outputs);
            if (threadIdx.x % 4 != 0) return;
            if constexpr (Tile::kShares == 1) {
                if (row(group) < block_.own_rows) to[row(group) * block_.column_blocks] = part;
            } else {
                parts_[row(group) * Tile::kShares + share()] = part;
            }
        });
        if constexpr (Tile::kShares == 1) return;
        __syncthreads();
        if (threadIdx.x < block_.own_rows) {
            const float2* const parts = parts_ + threadIdx.x * Tile::kShares;
            float whole = 0, deviations = 0;
#pragma unroll
            for (int s = 0; s < Tile::kShares; ++s) {
                whole += parts[s].x * static_cast<float>(columns_of(s));
            }
            whole /= static_cast<float>(epilogue_.outputs);
#pragma unroll
            for (int s = 0; s < Tile::kShares; ++s) {
                const float apart = parts[s].x - whole;
                deviations += parts[s].y + apart * apart * static_cast<float>(columns_of(s));
            }
            to[threadIdx.x * block_.column_blocks] = {whole, deviations};
        }
        __syncwarp();
    }

    const LinearSkinny& call_;
    const BlockCoord<Tile>& block_;
    const typename Tile::Epilogue epilogue_;
    float2 *const statistics_, *const parts_;
    float4* const sums_;
    float values_[Tile::kGroups * Tile::kOwn][4] = {};
};

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
        const bool clustered = Tile::kSplitK > 1 && call.clusters;
        if (clustered) {
            cluster_arrive();
            cluster_wait();
        } else {
            __syncthreads();
        }
        own.reduce_split_k();
        // Others may still be reading this block's memory.
        if (clustered) cluster_arrive_relaxed();
        own.finish();
        if (clustered) cluster_wait();
    }
}

template <typename Tile>
void launch_tile(const LinearSkinny& call, cudaStream_t stream) {
    const dim3 blocks(Tile::kSplitK, (call.n - 1) / Tile::kN + 1, (call.m - 1) / Tile::kM + 1);
    launch("linear_skinny", linear_skinny_kernel<Tile>, Grid(blocks, call.clusters ? Tile::kSplitK : 1), Tile::kThreads,
           Tile::bytes(call.config.num_stages, call.config.input_stages), stream, call,
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
        validate<decltype(tile)>(call);
        launch_tile<decltype(tile)>(call, stream);
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
