// The linear layer for few rows (definition: dllm_kernels/ops/linear/op.py), on every card and for every shape;
// linear_skinny_wgmma.cu is faster where it can run. Weights are read once (skinny_gemm.cuh).
//
// K is divided among split_k neighbouring blocks. Each stores its sums in global memory, and adds up those of the row
// tiles that it owns in the order of the slices: no atomics, so equal calls give equal bits, and a row's result does
// not depend on the rows beside it. Few warps do what follows the product, once a block: it is written for few
// instructions.

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "dllm/describe.h"
#include "dllm/epilogue.cuh"
#include "dllm/gemm_tiles.h"
#include "dllm/kernels.h"
#include "dllm/launch.cuh"
#include "dllm/skinny_gemm.cuh"

namespace dllm {
namespace {

// Slices of K that Python is told of; the kernel takes more.
constexpr uint32_t kMaxSplitK = 8;
// Values that a thread watches at once when it adds up the slices' sums.
constexpr int kLoadsInFlight = 8;

// Shared memory: mbarriers, the block's part of the epilogue's vectors, the own rows of the residual, the rings; later
// in the rings' place the product (float32, rows a few banks apart).
template <typename Tile>
struct SmemLayout {
    using Epilogue = SkinnyEpilogue<Tile::kN, Tile::kN>;
    static constexpr int kPitch = Tile::kN + 4;
    static constexpr int kVectors = Tile::kBarrierBytes;
    static constexpr int kResidual = kVectors + Epilogue::kVectorBytes;
    // Rows that one slice owns at most.
    static __host__ __device__ int max_rows(int split_k) { return (Tile::kM / 8 + split_k - 1) / split_k * 8; }
    static __host__ __device__ int ring(int split_k, bool with_residual) {
        return (kResidual + (with_residual ? max_rows(split_k) * Tile::kN * 2 : 0) + 511) / 512 * 512;
    }
    static constexpr int kProductBytes = Tile::kM * kPitch * 4;
    static int bytes(int num_stages, int split_k, bool with_residual) {
        return ring(split_k, with_residual) + std::max(Tile::ring_bytes(num_stages), kProductBytes);
    }
};

// Where a block stands. It owns the tiles of 8 rows from own_begin to own_end of its row_tiles.
template <typename Tile>
struct BlockCoord {
    uint32_t split_k, slice, column_block, column_blocks, first_row, rows, row_tiles, own_begin, own_end;
    uint32_t stages, begin, end;  // of K: all, and the slice's

    __device__ __forceinline__ explicit BlockCoord(const LinearSkinny& call)
        : split_k(gridDim.x),
          slice(blockIdx.x),
          column_block(blockIdx.y),
          column_blocks((call.n - 1) / Tile::kN + 1),
          first_row(blockIdx.z * Tile::kM),
          rows(min(static_cast<uint32_t>(Tile::kM), call.m - first_row)),
          row_tiles((rows + 7) / 8),
          own_begin(row_tiles * slice / split_k),
          own_end(row_tiles * (slice + 1) / split_k),
          stages((call.k + Tile::kK - 1) / Tile::kK),
          begin(stages * slice / split_k),
          end(stages * (slice + 1) / split_k) {}

    __device__ __forceinline__ uint32_t first_own_row() const { return first_row + own_begin * 8; }
    __device__ __forceinline__ uint32_t own_rows() const { return min(own_end * 8, rows) - min(own_begin * 8, rows); }

    __device__ __forceinline__ SkinnySource source(const LinearSkinny& call, const TensorMap& input) const {
        return {
            .weight = static_cast<const char*>(call.weight) +
                      (static_cast<size_t>(column_block) * stages + begin) * Tile::kWeightBytes,
            .input = &input,
            .row = static_cast<int32_t>(first_row),
            .column = static_cast<int32_t>(begin * Tile::kK),
            .stages = end - begin,
            .products = 1,
        };
    }
};

// The product in shared memory, in place of the rings. A warp's sums come in pieces of 8 rows by 16 outputs.
template <typename Tile>
struct Product {
    static constexpr int kPieces = Tile::kN / 16, kPitch = SmemLayout<Tile>::kPitch;
    float* const memory;

    // A lane's values of a piece: two rows of outputs 0 and 8.
    __device__ __forceinline__ void store(uint32_t row_tile, uint32_t piece, const float4& value) const {
        float* const at = memory + (row_tile * 8 + threadIdx.x % 4 * 2) * kPitch + piece * 16 + threadIdx.x % 32 / 4;
        at[0] = value.x, at[kPitch] = value.y, at[8] = value.z, at[kPitch + 8] = value.w;
    }

    // action(row tile, piece, value) for each piece of the warp's sums.
    template <typename Action>
    static __device__ __forceinline__ void each(const Sums<Tile>& sums, Action action) {
#pragma unroll
        for (int n = 0; n < Tile::kMmasM; ++n) {
#pragma unroll
            for (int i = 0; i < Tile::kMmasN; ++i) {
                action(Tile::warp_m() * Tile::kMmasM + n, Tile::warp_n() * Tile::kMmasN + i,
                       float4{sums[i][n][0], sums[i][n][1], sums[i][n][2], sums[i][n][3]});
            }
        }
    }
};

// The workspace of the blocks that divide one K: [slice][row tile][piece of 16 outputs][lane].
template <typename Tile>
struct SplitK {
    static constexpr uint32_t kPieces = Product<Tile>::kPieces, kSlice = Tile::kM / 8 * kPieces * 32;
    const BlockCoord<Tile>& block;
    float4* const workspace;

    __device__ __forceinline__ SplitK(const BlockCoord<Tile>& block, float* all)
        : block(block),
          workspace(reinterpret_cast<float4*>(all) +
                    static_cast<size_t>(blockIdx.z * block.column_blocks + block.column_block) * block.split_k *
                        kSlice +
                    threadIdx.x % 32) {}

    __device__ __forceinline__ void store(const Sums<Tile>& sums) const {
        float4* const own = workspace + block.slice * kSlice;
        Product<Tile>::each(sums, [&](uint32_t row_tile, uint32_t piece, float4 value) {
            if (row_tile < block.row_tiles) lamport_store(own + (row_tile * kPieces + piece) * 32, value);
        });
    }

    // Adds up the own pieces, neighbours in the workspace, a warp one or two at a time.
    __device__ __forceinline__ void reduce(const Product<Tile>& product) const {
        const uint32_t end = block.own_end * kPieces;
        const auto store = [&](uint32_t piece, const float4& total) {
            product.store(piece / kPieces, piece % kPieces, total);
        };
        uint32_t piece = block.own_begin * kPieces + threadIdx.x / 32;
        for (; piece + Tile::kWarps < end; piece += 2 * Tile::kWarps) {
            float4 total[2] = {};
            take<2>(workspace + piece * 32, total);
            store(piece, total[0]);
            store(piece + Tile::kWarps, total[1]);
        }
        if (piece < end) {
            float4 total[1] = {};
            take<1>(workspace + piece * 32, total);
            store(piece, total[0]);
        }
    }

  private:
    // Adds up kItems places, a block's threads apart, over the slices, and empties them.
    template <int kItems>
    __device__ __forceinline__ void take(float4* place, float4 (&total)[kItems]) const {
        constexpr int kSlices = kLoadsInFlight / kItems;
        for (uint32_t first = 0; first < block.split_k; first += kSlices) {
            float4 seen[kSlices][kItems];
            const auto each = [&](auto action) {
#pragma unroll
                for (int s = 0; s < kSlices; ++s) {
#pragma unroll
                    for (int i = 0; i < kItems; ++i) {
                        if (first + s < block.split_k) {
                            action(seen[s][i], place + (first + s) * kSlice + i * Tile::kThreads, total[i]);
                        }
                    }
                }
            };
            for (bool missing = true; missing;) {
                missing = false;
                each([&](float4& value, float4* at, float4&) { value = lamport_load(at); });
                each([&](float4& value, float4*, float4&) { missing |= !lamport_ready(value); });
            }
            each([&](float4& value, float4* at, float4& sum) {
                sum = {sum.x + value.x, sum.y + value.y, sum.z + value.z, sum.w + value.w};
                lamport_reset(at);
            });
        }
    }
};

// The own rows' epilogue. A lane has eight outputs of a row, four and four, so that a warp finishes several rows at
// once; beyond the last it does that one again. The statistics of its first row are read ahead.
template <typename Tile>
struct OwnRows {
    static constexpr uint32_t kLanes = Tile::kN / 8, kRowsAtOnce = 32 / kLanes, kStep = Tile::kWarps * kRowsAtOnce;
    const LinearSkinny& call;
    const BlockCoord<Tile>& block;
    float2 ahead;

    __device__ __forceinline__ OwnRows(const LinearSkinny& call, const BlockCoord<Tile>& block)
        : call(call), block(block), ahead(read_ahead(first_of_warp())) {}

    __device__ __forceinline__ void finish(const typename SmemLayout<Tile>::Epilogue& epilogue, const float* product) {
        for (uint32_t first = first_of_warp(); first < block.own_rows(); first += kStep) {
            const uint32_t row = row_from(first);
            const size_t token = block.first_own_row() + row;
            const float2 statistics = ahead;
            ahead = read_ahead(first + kStep);
            float2 mean_and_rstd{0, 1};
            if (call.column_sums) {
                mean_and_rstd = merge_statistics_by_lanes<kLanes>(statistics_of(row), statistics, call.stats_chunks,
                                                                  call.stats_chunk, call.k);
            }
            const float* const products = product + (block.own_begin * 8 + row) * SmemLayout<Tile>::kPitch;
            float values[2][4];
            const auto each = [&](auto action) {
#pragma unroll
                for (int quad = 0; quad < 2; ++quad) {
                    action(values[quad], quad * (Tile::kN / 2) + threadIdx.x % kLanes * 4);
                }
            };
            each([&](float (&quad)[4], uint32_t output) {
                const float4 at = *reinterpret_cast<const float4*>(products + output);
                quad[0] = at.x, quad[1] = at.y, quad[2] = at.z, quad[3] = at.w;
            });
            epilogue.apply(mean_and_rstd, row, each);
            epilogue.write(call.output, token, true, each);
            if (call.stats_out) {
                const float2 written = row_statistics<kLanes>(each, epilogue.outputs, epilogue.outputs);
                float2* const to = reinterpret_cast<float2*>(call.stats_out);
                if (threadIdx.x % kLanes == 0) to[token * block.column_blocks + block.column_block] = written;
            }
            if (call.next_scale) {
                epilogue.scale_for_next(each);
                epilogue.write(call.scaled_out, token, true, each);
            }
        }
    }

  private:
    static __device__ __forceinline__ uint32_t first_of_warp() { return threadIdx.x / 32 * kRowsAtOnce; }
    __device__ __forceinline__ uint32_t row_from(uint32_t first) const {
        return min(first + threadIdx.x % 32 / kLanes, block.own_rows() - 1);
    }
    __device__ __forceinline__ const float2* statistics_of(uint32_t row) const {
        return reinterpret_cast<const float2*>(call.stats) +
               static_cast<size_t>(block.first_own_row() + row) * call.stats_chunks;
    }
    __device__ __forceinline__ float2 read_ahead(uint32_t first) const {
        const uint32_t lane = threadIdx.x % kLanes;
        const bool there = call.column_sums && first < block.own_rows() && lane < call.stats_chunks;
        return there ? statistics_of(row_from(first))[lane] : float2{0, 0};
    }
};

// Blocks of an SM: two, but one where half of the registers are too few.
template <typename Tile>
constexpr int kBlocks = Tile::kWarps <= 8 ? 2 : 1;

template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, kBlocks<Tile>)
    linear_skinny_kernel(const LinearSkinny call, const __grid_constant__ TensorMap input) {
    using Smem = SmemLayout<Tile>;
    const BlockCoord<Tile> block(call);
    read_now(call.next_scale);
    read_now(call.stats_out);
    read_now(call.m);

    // Load: vectors arrive while the weights do, the residual while the first input is under way.
    char* const ring = shared_memory() + Smem::ring(block.split_k, call.residual);
    const typename Smem::Epilogue epilogue(call, block.column_block, shared_memory() + Smem::kVectors,
                                           shared_memory() + Smem::kResidual);
    epilogue.template load_vectors<Tile::kThreads>(threadIdx.x);
    SkinnyGemm<Tile> gemm(block.source(call, input), call.config.num_stages,
                          reinterpret_cast<Barrier*>(shared_memory()), ring);
    epilogue.template load_residual<Tile::kThreads>(threadIdx.x, block.first_own_row(), block.own_rows());
    cp_async_commit();
    OwnRows<Tile> own(call, block);

    // Main loop.
    Sums<Tile> sums = {};
    gemm.next(sums);

    // Split-K reduction.
    const Product<Tile> product{reinterpret_cast<float*>(ring)};
    const SplitK<Tile> split(block, call.workspace);
    if (block.split_k > 1) split.store(sums);
    cp_async_wait<0>();
    if (block.split_k > 1) {
        split.reduce(product);
    } else {
        Product<Tile>::each(sums, [&](uint32_t row_tile, uint32_t piece, const float4& value) {
            product.store(row_tile, piece, value);
        });
    }
    __syncthreads();

    own.finish(epilogue, product.memory);
}

template <typename Tile>
void launch_tile(const LinearSkinny& call, cudaStream_t stream) {
    const GemmConfig& config = call.config;
    // A ring of one would wait for what it loads afterwards.
    const uint32_t stages = (call.k - 1) / Tile::kK + 1;
    if (config.num_stages < 2 || config.num_stages > Tile::kMaxStages || config.split_k == 0 ||
        config.split_k > stages) {
        throw std::invalid_argument(
            "linear_skinny takes rings of 2 to 16 stages and slices of K of at least a stage, not " +
            std::to_string(config.num_stages) + " stages and " + std::to_string(config.split_k) +
            " slices of k = " + std::to_string(call.k));
    }
    const uint32_t row_blocks = (call.m - 1) / Tile::kM + 1, column_blocks = (call.n - 1) / Tile::kN + 1;
    launch("linear_skinny", linear_skinny_kernel<Tile>, Grid(dim3(config.split_k, column_blocks, row_blocks)),
           Tile::kThreads, SmemLayout<Tile>::bytes(config.num_stages, config.split_k, call.residual != nullptr), stream,
           call, tensor_map(call.input, call.m, call.k, Tile::kM));
}

using Tiles = TileList<SkinnyTile<64, 128, 64, 1, 8>, SkinnyTile<64, 256, 32, 1, 8>, SkinnyTile<64, 64, 64, 1, 4>,
                       SkinnyTile<64, 128, 64, 1, 4>, SkinnyTile<64, 64, 64, 2, 4>, SkinnyTile<64, 128, 64, 2, 4>,
                       SkinnyTile<128, 128, 32, 2, 4>, SkinnyTile<128, 128, 32, 4, 4>>;

}  // namespace

void linear_skinny(const LinearSkinny& call, cudaStream_t stream) {
    const bool found = Tiles::visit(call.config, [&](auto tile) { launch_tile<decltype(tile)>(call, stream); });
    if (!found) throw std::invalid_argument("linear_skinny has no code for " + described(call.config));
}

void describe_linear_skinny(Description& description) {
    Tiles::each([&](auto tile) {
        using Tile = decltype(tile);
        for (uint32_t split_k = 1; split_k <= kMaxSplitK; ++split_k) {
            description.tiles.push_back({.kernel = "linear_skinny",
                                         .config = config_of<Tile>(split_k, Tile::kInputStages),
                                         .max_stages = Tile::kMaxStages,
                                         .max_input_stages = Tile::kInputStages,
                                         .ring_offset = static_cast<uint32_t>(SmemLayout<Tile>::ring(split_k, true)),
                                         .product_bytes = SmemLayout<Tile>::kProductBytes});
        }
    });
}

}  // namespace dllm
