// What follows the product of the skinny linear (linear_skinny.cu): where a block stands, the sums of all slices of K
// of the rows that it owns, and their epilogue.
#pragma once

#include <cstdint>

#include "dllm/async.cuh"
#include "dllm/epilogue.cuh"
#include "dllm/grid.cuh"
#include "dllm/kernels.h"
#include "dllm/linear_tile.cuh"
#include "dllm/row_statistics.cuh"

namespace dllm {

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
        float4* const mine = sums_ + first;
#pragma unroll
        for (int eight = 0; eight < 2 * Tile::kMmasM; ++eight) {
            const auto& of_rows = sums[eight / 2];
            const int half = eight % 2 * 2;
            const bool kept = !Tile::kHandsOver || first_eight + eight - block_.first_eight < block_.own_eights;
#pragma unroll
            for (int i = 0; i < Tile::kMmasN / 2; ++i) {
                const float4 sum{of_rows[2 * i][half], of_rows[2 * i][half + 1], of_rows[2 * i + 1][half],
                                 of_rows[2 * i + 1][half + 1]};
                const uint32_t at = (eight * Tile::kPieces + i) * 32;
                if (kept) {
                    mine[at] = sum;
                } else {
                    lamport_store(handed_over(block_.slice) + first + at, sum);
                }
            }
        }
    }

    // The sums of all slices, in their order; all are on their way at once, since the other blocks are far.
    __device__ __forceinline__ void reduce_split_k() {
        if constexpr (Tile::kHandsOver) {
            each_group([&](int group) {
                each_piece(group, [&](int i, uint32_t piece) { add_up(i, taken(place_of(group, piece))); });
            });
        } else {
            Parts parts[Tile::kGroups * Tile::kOwn];
            each_group([&](int group) {
                each_piece(group, [&](int i, uint32_t piece) {
                    const float4* const from = sums_ + place_of(group, piece);
#pragma unroll
                    for (int s = 0; s < Tile::kSplitK; ++s) {
                        parts[i].of_slice[s] = Tile::kSplitK > 1 ? dsmem_load(from, s) : *from;
                    }
                });
            });
            each_group([&](int group) { each_piece(group, [&](int i, uint32_t) { add_up(i, parts[i]); }); });
        }
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

    // A quad of a piece of a group, of each slice.
    struct Parts {
        float4 of_slice[Tile::kSplitK];
    };

    // Where the sums of a piece of a group are, in shared memory and in the workspace alike.
    __device__ __forceinline__ uint32_t place_of(int group, uint32_t piece) const {
        return ((block_.first_eight + eight(group)) * Tile::kPieces + piece) * 32 + threadIdx.x % 32;
    }

    __device__ __forceinline__ void add_up(int i, const Parts& parts) {
        float4 sum = parts.of_slice[0];
#pragma unroll
        for (int s = 1; s < Tile::kSplitK; ++s) {
            const float4 part = parts.of_slice[s];
            sum = {sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w};
        }
        values_[i][0] = sum.x, values_[i][1] = sum.y, values_[i][2] = sum.z, values_[i][3] = sum.w;
    }

    // The own part, and those that other slices have handed over, as soon as all are there; their places are emptied.
    __device__ __forceinline__ Parts taken(uint32_t place) const {
        Parts parts;
        for (bool missing = true; missing;) {
            missing = false;
#pragma unroll
            for (uint32_t s = 0; s < Tile::kSplitK; ++s) {
                parts.of_slice[s] = s == block_.slice ? sums_[place] : lamport_load(handed_over(s) + place);
            }
#pragma unroll
            for (uint32_t s = 0; s < Tile::kSplitK; ++s) {
                missing |= s != block_.slice && !lamport_ready(parts.of_slice[s]);
            }
        }
#pragma unroll
        for (uint32_t s = 0; s < Tile::kSplitK; ++s) {
            if (s != block_.slice) lamport_reset(handed_over(s) + place);
        }
        return parts;
    }

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

}  // namespace dllm
