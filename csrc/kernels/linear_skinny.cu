// The folded linear layer for few rows (definition: dllm_kernels/ops/stream_linear.py), on every card and for every
// shape; linear_skinny_wgmma.cu is faster where it can run. Weights stream once (skinny_gemm.cuh).
//
// K is split among `slices` neighbouring blocks. Each hands its sums over through global memory, and adds up those of
// the row tiles that it owns in the order of the slices: no atomics, so equal calls give equal bits, and a row's result
// does not depend on the rows beside it. What follows the products runs once a block, on few warps: it is written for
// few instructions.

#include <cstdint>
#include <stdexcept>

#include "dllm/kernels.h"
#include "dllm/launch.cuh"
#include "dllm/rows.cuh"
#include "dllm/skinny_gemm.cuh"

namespace dllm {
namespace {

// Places that a thread watches at once when it takes others' sums.
constexpr int kLoadsInFlight = 8;

// Shared memory: barriers, the block's part of four vectors, the own rows of the residual, the ring; later in the
// ring's place the result (float32, rows a few banks apart).
template <typename Tile>
struct Layout {
    static constexpr int kPitch = Tile::kOutputs + 4;
    static constexpr int kVectors = Tile::kBarrierBytes;
    static constexpr int kResidual = kVectors + 4 * Tile::kOutputs * 4;
    // Rows that one slice owns at most.
    static __host__ __device__ int max_rows(int slices) { return (Tile::kRows / 8 + slices - 1) / slices * 8; }
    static __host__ __device__ int ring(int slices, bool with_residual) {
        return (kResidual + (with_residual ? max_rows(slices) * Tile::kOutputs * 2 : 0) + 511) / 512 * 512;
    }
    static int bytes(int stages, int slices, bool with_residual) {
        return ring(slices, with_residual) + std::max(Tile::ring_bytes(stages), Tile::kRows * kPitch * 4);
    }
};

// Adds up kItems places a thread, kThreads apart, over the slices, `stride` apart, and empties them.
template <int kItems, int kThreads>
__device__ __forceinline__ void take(float4* place, uint32_t stride, uint32_t slices, float4 (&total)[kItems]) {
    constexpr int kSlices = kLoadsInFlight / kItems;
    for (uint32_t first = 0; first < slices; first += kSlices) {
        float4 seen[kSlices][kItems];
        const auto each = [&](auto action) {
#pragma unroll
            for (int s = 0; s < kSlices; ++s) {
#pragma unroll
                for (int i = 0; i < kItems; ++i) {
                    if (first + s < slices) {
                        action(seen[s][i], place + (first + s) * stride + i * kThreads, total[i]);
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

// Blocks of an SM: two, but one where half of the registers are too few.
template <typename Tile>
constexpr int kBlocks = Tile::kWarps <= 8 ? 2 : 1;

template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, kBlocks<Tile>)
    linear_kernel(const Linear call, const __grid_constant__ TensorMap input) {
    using Place = Layout<Tile>;
    constexpr int kPieces = Tile::kOutputs / 16;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t slices = gridDim.x, slice = blockIdx.x, column_block = blockIdx.y;
    const uint32_t first_row = blockIdx.z * Tile::kRows, first_output = column_block * Tile::kOutputs;
    const uint32_t column_blocks = (call.outputs - 1) / Tile::kOutputs + 1;
    const uint32_t rows = min(static_cast<uint32_t>(Tile::kRows), call.rows - first_row);
    const uint32_t outputs = min(static_cast<uint32_t>(Tile::kOutputs), call.outputs - first_output);
    const uint32_t stages = (call.width + Tile::kDepth - 1) / Tile::kDepth;
    const uint32_t begin = stages * slice / slices, end = stages * (slice + 1) / slices;
    read_now(call.next_scale);
    read_now(call.output_statistics);
    read_now(call.rows);

    // Constants: they arrive while the weights do.
    float* const vectors = reinterpret_cast<float*>(shared_memory() + Place::kVectors);
    for (uint32_t piece = threadIdx.x; piece < Tile::kOutputs; piece += Tile::kThreads) {
        const uint32_t vector = piece / (Tile::kOutputs / 4), output = piece % (Tile::kOutputs / 4) * 4;
        const float* const from = vector == 0   ? call.bias
                                  : vector == 1 ? call.column_sums
                                  : vector == 2 ? call.gate
                                                : call.next_scale;
        const bool real = output < outputs && from;
        cp_async_16(vectors + piece * 4, real ? from + first_output + output : call.bias, real);
    }
    const StreamSource source{
        .weight = static_cast<const char*>(call.weight) +
                  (static_cast<size_t>(column_block) * stages + begin) * Tile::kWeightBytes,
        .input = &input,
        .row = static_cast<int32_t>(first_row),
        .column = static_cast<int32_t>(begin * Tile::kDepth),
        .stages = end - begin,
        .products = 1,
    };
    // Row tiles of 8 rows: slice s owns those from tiles s / slices on.
    const uint32_t tiles = (rows + 7) / 8, own_begin = tiles * slice / slices, own_end = tiles * (slice + 1) / slices;
    const uint32_t own_rows = min(own_end * 8, rows) - min(own_begin * 8, rows);

    char* const ring = shared_memory() + Place::ring(slices, call.residual);
    WeightStream<Tile> stream(source, call.ring_stages, reinterpret_cast<Barrier*>(shared_memory()), ring);

    // What the end needs of the predecessors, while the first input is under way.
    bf16* const residual = reinterpret_cast<bf16*>(shared_memory() + Place::kResidual);
    if (call.residual) {
        for (uint32_t piece = threadIdx.x; piece < own_rows * (Tile::kOutputs / 8); piece += Tile::kThreads) {
            const uint32_t row = piece / (Tile::kOutputs / 8), output = piece % (Tile::kOutputs / 8) * 8;
            const uint32_t token = first_row + own_begin * 8 + row;
            const uint32_t from = token < call.residual_rows ? token : token % call.residual_rows;
            const bool real = output < outputs;
            cp_async_16(residual + row * Tile::kOutputs + output,
                        static_cast<const bf16*>(call.residual) +
                            (real ? static_cast<size_t>(from) * call.outputs + first_output + output : 0),
                        real);
        }
    }
    cp_async_commit();
    // A lane has eight outputs of a row, four and four, so that a warp finishes several rows at once; beyond the last
    // it does that one again. The statistics of its first row are read ahead.
    constexpr uint32_t kLanes = Tile::kOutputs / 8, kRowsAtOnce = 32 / kLanes, kStep = Tile::kWarps * kRowsAtOnce;
    const uint32_t first_own = first_row + own_begin * 8;
    const auto row_from = [&](uint32_t first) { return min(first + lane / kLanes, own_rows - 1); };
    const auto statistics_of = [&](uint32_t row) {
        return reinterpret_cast<const float2*>(call.statistics) + static_cast<size_t>(first_own + row) * call.chunks;
    };
    const auto read_ahead = [&](uint32_t first) {
        const bool there = call.column_sums && first < own_rows && lane % kLanes < call.chunks;
        return there ? statistics_of(row_from(first))[lane % kLanes] : float2{0, 0};
    };
    float2 statistics = read_ahead(warp * kRowsAtOnce);

    Sums<Tile> sums = {};
    stream.next(sums);

    // [slice][row tile][piece of 16 outputs][lane]
    constexpr uint32_t kSlice = Tile::kRows / 8 * kPieces * 32;
    float4* const workspace = reinterpret_cast<float4*>(call.workspace) +
                              static_cast<size_t>(blockIdx.z * column_blocks + column_block) * slices * kSlice;
    const uint32_t first_tile = Tile::warp_m() * Tile::kTiles, first_piece = Tile::warp_n() * Tile::kSixteens;
    const bool split = slices > 1;
    if (split) {
        float4* const place = workspace + slice * kSlice + (first_tile * kPieces + first_piece) * 32 + lane;
#pragma unroll
        for (int n = 0; n < Tile::kTiles; ++n) {
            if (first_tile + n < tiles) {
#pragma unroll
                for (int i = 0; i < Tile::kSixteens; ++i) {
                    lamport_store(place + (n * kPieces + i) * 32,
                                  {sums[i][n][0], sums[i][n][1], sums[i][n][2], sums[i][n][3]});
                }
            }
        }
    }
    cp_async_wait<0>();

    float* const result = reinterpret_cast<float*>(ring);
    // A lane's values of a piece: two rows of outputs 0 and 8.
    const auto store = [&](uint32_t tile, uint32_t piece, const float4& value) {
        float* const at = result + (tile * 8 + lane % 4 * 2) * Place::kPitch + piece * 16 + lane / 4;
        at[0] = value.x, at[Place::kPitch] = value.y, at[8] = value.z, at[Place::kPitch + 8] = value.w;
    };
    if (split) {
        // Items are the pieces of the own row tiles: neighbours in the workspace, one a warp at a time.
        const uint32_t items = own_end * kPieces;
        float4* const own = workspace + lane;
        uint32_t item = own_begin * kPieces + warp;
        for (; item + Tile::kWarps < items; item += 2 * Tile::kWarps) {
            float4 total[2] = {};
            take<2, Tile::kThreads>(own + item * 32, kSlice, slices, total);
            store(item / kPieces, item % kPieces, total[0]);
            store((item + Tile::kWarps) / kPieces, (item + Tile::kWarps) % kPieces, total[1]);
        }
        if (item < items) {
            float4 total[1] = {};
            take<1, Tile::kThreads>(own + item * 32, kSlice, slices, total);
            store(item / kPieces, item % kPieces, total[0]);
        }
    } else {
#pragma unroll
        for (int n = 0; n < Tile::kTiles; ++n) {
#pragma unroll
            for (int i = 0; i < Tile::kSixteens; ++i) {
                store(first_tile + n, first_piece + i, {sums[i][n][0], sums[i][n][1], sums[i][n][2], sums[i][n][3]});
            }
        }
    }
    __syncthreads();
    for (uint32_t first = warp * kRowsAtOnce; first < own_rows; first += kStep) {
        const uint32_t row = row_from(first);
        const size_t token = first_own + row;
        const float2 ahead = statistics;
        statistics = read_ahead(first + kStep);
        const auto output_of = [&](int quad) { return quad * (Tile::kOutputs / 2) + lane % kLanes * 4; };
        const float* const products = result + (own_begin * 8 + row) * Place::kPitch;
        float2 mean_and_factor{0, 1};
        if (call.column_sums) {
            mean_and_factor = merge_statistics<kLanes>(statistics_of(row), ahead, call.chunks, call.chunk, call.width);
        }
        float written[2][4], total = 0;
        bool real[2];
#pragma unroll
        for (int quad = 0; quad < 2; ++quad) {
            const uint32_t output = output_of(quad);
            real[quad] = output < outputs;  // what is not is zero
            const float* const at = vectors + output;
            const float4 product = *reinterpret_cast<const float4*>(products + output);
            const float4 bias = *reinterpret_cast<const float4*>(at);
            const float4 column_sums = *reinterpret_cast<const float4*>(at + Tile::kOutputs);
            float value[4] = {mean_and_factor.y * (product.x - mean_and_factor.x * column_sums.x),
                              mean_and_factor.y * (product.y - mean_and_factor.x * column_sums.y),
                              mean_and_factor.y * (product.z - mean_and_factor.x * column_sums.z),
                              mean_and_factor.y * (product.w - mean_and_factor.x * column_sums.w)};
            if (call.gate) {
                const float4 gate = *reinterpret_cast<const float4*>(at + 2 * Tile::kOutputs);
                value[0] *= gate.x, value[1] *= gate.y, value[2] *= gate.z, value[3] *= gate.w;
            }
            value[0] += bias.x, value[1] += bias.y, value[2] += bias.z, value[3] += bias.w;
            if (call.gelu) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    value[i] = gelu(value[i]);
                }
            }
            if (call.residual) {
                const uint2 left = *reinterpret_cast<const uint2*>(residual + row * Tile::kOutputs + output);
                value[0] += low_bf16(left.x), value[1] += high_bf16(left.x);
                value[2] += low_bf16(left.y), value[3] += high_bf16(left.y);
            }
            const uint2 pairs{pack_bf16(value[0], value[1]), pack_bf16(value[2], value[3])};
            const float rounded[4] = {low_bf16(pairs.x), high_bf16(pairs.x), low_bf16(pairs.y), high_bf16(pairs.y)};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                written[quad][i] = rounded[i];
                total += rounded[i];
            }
            if (real[quad]) {
                const size_t here = token * call.outputs + first_output + output;
                *reinterpret_cast<uint2*>(static_cast<bf16*>(call.output) + here) = pairs;
                if (call.next_scale) {
                    const float4 scale = *reinterpret_cast<const float4*>(at + 3 * Tile::kOutputs);
                    *reinterpret_cast<uint2*>(static_cast<bf16*>(call.scaled_output) + here) = {
                        pack_bf16(rounded[0] * (1 + scale.x), rounded[1] * (1 + scale.y)),
                        pack_bf16(rounded[2] * (1 + scale.z), rounded[3] * (1 + scale.w))};
                }
            }
        }
        if (call.output_statistics) {
            // The next layer's statistics, of what it will read.
            const float mean = sum_over<kLanes>(total) / static_cast<float>(outputs);
            float squares = 0;
#pragma unroll
            for (int quad = 0; quad < 2; ++quad) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float deviation = written[quad][i] - mean;
                    squares += real[quad] ? deviation * deviation : 0;
                }
            }
            squares = sum_over<kLanes>(squares);
            if (lane % kLanes == 0) {
                reinterpret_cast<float2*>(call.output_statistics)[token * column_blocks + column_block] = {mean,
                                                                                                           squares};
            }
        }
    }
}

template <typename Tile>
void launch_linear(const Linear& call, cudaStream_t stream) {
    // A ring of one would wait for what it loads afterwards.
    const uint32_t stages = (call.width - 1) / Tile::kDepth + 1;
    if (call.ring_stages < 2 || call.ring_stages > Tile::kMaxStages || call.slices == 0 || call.slices > stages) {
        throw std::invalid_argument("linear takes rings of 2 to 16 stages, and slices of at least a stage");
    }
    const uint32_t row_blocks = (call.rows - 1) / Tile::kRows + 1;
    const uint32_t column_blocks = (call.outputs - 1) / Tile::kOutputs + 1;
    launch("linear", linear_kernel<Tile>, Grid(dim3(call.slices, column_blocks, row_blocks)), Tile::kThreads,
           Layout<Tile>::bytes(call.ring_stages, call.slices, call.residual != nullptr), stream, call,
           tensor_map(call.input, call.rows, call.width, Tile::kRows));
}

}  // namespace

void linear(const Linear& call, cudaStream_t stream) {
    const auto is = [&](uint32_t n, uint32_t m, uint32_t sixteens, uint32_t tiles, uint32_t deep) {
        return call.warps_n == n && call.warps_m == m && call.sixteens == sixteens && call.tiles == tiles &&
               call.deep == deep;
    };
    if (call.warps_n == 1 && (call.warps_m == 4 || call.warps_m == 8) && call.tiles == 2 && call.deep == 2) {
        return linear_warpgroup(call, stream);
    }
    if (is(8, 1, 1, 8, 2)) return launch_linear<StreamTile<8, 1, 1, 8, 2>>(call, stream);
    if (is(8, 1, 2, 8, 1)) return launch_linear<StreamTile<8, 1, 2, 8, 1>>(call, stream);
    if (is(4, 1, 1, 8, 2)) return launch_linear<StreamTile<4, 1, 1, 8, 2>>(call, stream);
    if (is(4, 1, 2, 8, 2)) return launch_linear<StreamTile<4, 1, 2, 8, 2>>(call, stream);
    if (is(4, 2, 1, 4, 2)) return launch_linear<StreamTile<4, 2, 1, 4, 2>>(call, stream);
    if (is(4, 2, 2, 4, 2)) return launch_linear<StreamTile<4, 2, 2, 4, 2>>(call, stream);
    if (is(4, 2, 2, 8, 1)) return launch_linear<StreamTile<4, 2, 2, 8, 1>>(call, stream);
    if (is(4, 4, 2, 4, 1)) return launch_linear<StreamTile<4, 4, 2, 4, 1>>(call, stream);
    throw std::invalid_argument("linear has no code for this shape of warps");
}

}  // namespace dllm
