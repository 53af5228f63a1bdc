// The lm_head for few rows (definition: dllm_kernels/ops/lm_head/op.py). Weights stream once (skinny_gemm.cuh), logits
// never leave the registers.
//
// A block owns a part of the vocabulary, some tiles that lie one behind the other, and keeps of each row the best entry
// so far and, for log-probabilities, the log-sum-exp. A second kernel merges the parts in their order: no atomics, so
// equal calls give equal bits, and a row's result does not depend on the rows beside it.

#include <cstdint>
#include <stdexcept>

#include "dllm/describe.h"
#include "dllm/gemm_tiles.h"
#include "dllm/grid.cuh"
#include "dllm/kernels.h"
#include "dllm/launch.cuh"
#include "dllm/merge_results.cuh"
#include "dllm/philox.cuh"
#include "dllm/skinny_gemm.cuh"

namespace dllm {
namespace {

// A lane has sixteen rows of its warp's 64, and of each row four entries, eight apart, of its warp's 32.
constexpr int kRows = 16, kEntries = 4, kEntryStep = 8, kWarpEntries = kEntries * kEntryStep;
constexpr uint32_t kWholeWarp = 0xFFFFFFFFu;

// Shared memory: barriers, the results [warp along the outputs][row], the ring.
template <typename Tile>
struct SmemLayout {
    static constexpr int kResults = Tile::kBarrierBytes;
    static constexpr int kRing = (kResults + Tile::kWarpsN * Tile::kM * sizeof(RowResult) + 511) / 512 * 512;
    static constexpr int bytes(int stages) { return kRing + Tile::ring_bytes(stages); }
};

// Entry k of a lane's row i, which lane 4 g + t has at row 8 (i / 2) + 2 t + i % 2 of its warp's.
template <typename Tile>
__device__ __forceinline__ float& at(Sums<Tile>& sums, int i, int k) {
    return sums[k / 2][i / 2][k % 2 * 2 + i % 2];
}

__device__ __forceinline__ float from_lane(float value, int distance) {
    return __shfl_xor_sync(kWholeWarp, value, distance);
}

__device__ __forceinline__ float either(bool first, float a, float b) { return first ? a : b; }

// Eight lanes have something of the same rows. Combined over them, that of the warp's rows 2 lane and 2 lane + 1 comes
// to x[0] and x[1].
template <int kHalf = kRows / 2, typename T, typename Combine>
__device__ __forceinline__ void reduce_to_rows(T (&x)[kRows], Combine combine) {
    const bool upper = threadIdx.x & 2 * kHalf;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
        const T given = either(upper, x[i], x[i + kHalf]);
        x[i] = combine(either(upper, x[i + kHalf], x[i]), given, 2 * kHalf);
    }
    if constexpr (kHalf > 2) reduce_to_rows<kHalf / 2>(x, combine);
}

// The best of a lane's entries of a row, `first` and those after it, takes the place of their logits.
template <typename Tile>
__device__ __forceinline__ void keep_best(Sums<Tile>& sums, int i, const float (&values)[kEntries], uint32_t first) {
    Entry best{comparable(values[0]), first, at<Tile>(sums, i, 0)};
#pragma unroll
    for (int k = 1; k < kEntries; ++k) {
        const float value = comparable(values[k]);
        best = either(value > best.value, {value, first + k * kEntryStep, at<Tile>(sums, i, k)}, best);
    }
    at<Tile>(sums, i, 0) = best.value;
    at<Tile>(sums, i, 1) = __uint_as_float(best.index);
    at<Tile>(sums, i, 2) = best.logit;
}

// Four lanes, 4 apart, bring the words of a call each; the i-th of them takes word i of all calls.
__device__ __forceinline__ void transpose(Words& words) {
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2) {
        const bool upper = threadIdx.x & 4 * bit;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i & bit) continue;
            uint32_t &low = words.word[i], &high = words.word[i | bit];
            const uint32_t got = __shfl_xor_sync(kWholeWarp, upper ? low : high, 4 * bit);
            low = upper ? got : low;
            high = upper ? high : got;
        }
    }
}

// Lane i brings the bias of the warp's entry i. Entries past the end of the vocabulary never win.
template <typename Tile>
__device__ __forceinline__ void add_bias(Sums<Tile>& sums, float bias, uint32_t warp_first, uint32_t vocab_size) {
    const uint32_t group = threadIdx.x % 32 / 4;
#pragma unroll
    for (int k = 0; k < kEntries; ++k) {
        const float added = __shfl_sync(kWholeWarp, bias, k * kEntryStep + group);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
            at<Tile>(sums, i, k) += added;
        }
    }
    if (warp_first + kWarpEntries > vocab_size) {
#pragma unroll
        for (int k = 0; k < kEntries; ++k) {
            const bool real = warp_first + k * kEntryStep + group < vocab_size;
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
                at<Tile>(sums, i, k) = either(real, at<Tile>(sums, i, k), -INFINITY);
            }
        }
    }
}

// Adds the logits to the sums of this lane's two rows.
template <typename Tile>
__device__ __forceinline__ void add_exponentials(Sums<Tile>& sums, RowResult* results) {
    float x[kRows], shift[2];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
        x[i] =
            fmaxf(fmaxf(at<Tile>(sums, i, 0), at<Tile>(sums, i, 1)), fmaxf(at<Tile>(sums, i, 2), at<Tile>(sums, i, 3)));
    }
    reduce_to_rows(x, [](float kept, float given, int distance) { return fmaxf(kept, from_lane(given, distance)); });
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        ExpSum& sum = results[j].sum;
        const float largest = fmaxf(sum.largest, x[j]);
        shift[j] = exponent_shift(largest);
        sum = {largest, sum.total * __expf(sum.largest - shift[j])};
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
        // From the lane that has the row.
        const float here = __shfl_sync(kWholeWarp, shift[i % 2], i / 2 * 4 + threadIdx.x % 4);
        x[i] = 0;
#pragma unroll
        for (int k = 0; k < kEntries; ++k) {
            x[i] += __expf(at<Tile>(sums, i, k) - here);
        }
    }
    reduce_to_rows(x, [](float kept, float given, int distance) { return kept + from_lane(given, distance); });
    results[0].sum.total += x[0];
    results[1].sum.total += x[1];
}

// The best entries with noise. `row` is the lane's first, `warp_first` the warp's first entry.
template <typename Tile>
__device__ __forceinline__ void keep_best_noisy(Sums<Tile>& sums, const LmHeadSkinny& call, float temperature,
                                                uint32_t row, uint32_t warp_first) {
    const uint32_t group = threadIdx.x % 32 / 4, row_quads = (call.vocab_size + 3) / 4;
    // Four neighbouring entries are a call of Philox and lie in four lanes, which make one each.
    const uint32_t quad = warp_first / 4 + group % 4 * 2 + group / 4;
    const int64_t seed = *call.seed, first_sample = *call.first_sample;
    // A loop, since the code of all rows would not fit the instruction cache: each pair is the first in its turn.
#pragma unroll 1
    for (int pair = 0; pair < kRows / 2; ++pair, row += 8) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const uint32_t token = (row + j) % call.length, sample = (row + j) / call.length;
            Words words = random_words(seed, token * row_quads + quad, 0, first_sample + sample, kGumbelNoise);
            transpose(words);
            float values[kEntries];
#pragma unroll
            for (int k = 0; k < kEntries; ++k) {
                values[k] = at<Tile>(sums, j, k) + temperature * gumbel(words.word[k]);
            }
            keep_best<Tile>(sums, j, values, warp_first + group);
        }
#pragma unroll
        for (int k = 0; k < kEntries; ++k) {
            const float done[2] = {at<Tile>(sums, 0, k), at<Tile>(sums, 1, k)};
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
                at<Tile>(sums, i, k) = i + 2 < kRows ? at<Tile>(sums, i + 2, k) : done[i % 2];
            }
        }
    }
}

template <typename Tile, bool kLogprobs>
__global__ void __launch_bounds__(Tile::kThreads, 2)
    lm_head_skinny_kernel(const LmHeadSkinny call, const __grid_constant__ TensorMap hidden) {
    static_assert(Tile::kMmasN == 2 && Tile::kMmasM == 8);
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t part = blockIdx.y, first_row = blockIdx.x * Tile::kM;
    const uint32_t tiles = (call.vocab_size - 1) / Tile::kN + 1;
    const uint32_t begin = tiles * part / call.parts, end = tiles * (part + 1) / call.parts;
    const uint32_t stages = (call.k - 1) / Tile::kK + 1;
    // A lane keeps the results of two rows of its warp's 64.
    RowResult* const table = reinterpret_cast<RowResult*>(shared_memory() + SmemLayout<Tile>::kResults);
    RowResult* const results = table + Tile::warp_n() * Tile::kM + Tile::warp_m() * 64 + 2 * lane;

    const SkinnySource source{
        .weight = static_cast<const char*>(call.weight) + static_cast<size_t>(begin) * stages * Tile::kWeightBytes,
        .input = &hidden,
        .row = static_cast<int32_t>(first_row),
        .column = 0,
        .stages = stages,
        .products = end - begin,
    };
    SkinnyGemm<Tile> stream(source, call.config.num_stages, reinterpret_cast<Barrier*>(shared_memory()),
                            shared_memory() + SmemLayout<Tile>::kRing);
    results[0] = results[1] = no_result();
    for (uint32_t tile = begin; tile < end; ++tile) {
        const uint32_t warp_first = tile * Tile::kN + Tile::warp_n() * kWarpEntries;
        // Asked for before the product, so that it is there after it.
        const float bias = call.bias[min(warp_first + lane, call.vocab_size - 1)];
        Sums<Tile> sums = {};
        stream.next(sums);
        __syncwarp();
        // From L1, which costs less than a register during the product.
        const float temperature = *call.temperature;
        add_bias<Tile>(sums, bias, warp_first, call.vocab_size);
        if constexpr (kLogprobs) add_exponentials<Tile>(sums, results);
        if (temperature > 0) {
            keep_best_noisy<Tile>(sums, call, temperature, first_row + Tile::warp_m() * 64 + lane % 4 * 2, warp_first);
        } else {
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
                const float values[kEntries] = {at<Tile>(sums, i, 0), at<Tile>(sums, i, 1), at<Tile>(sums, i, 2),
                                                at<Tile>(sums, i, 3)};
                keep_best<Tile>(sums, i, values, warp_first + lane / 4);
            }
        }

        Entry entries[kRows];
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
            entries[i] = {at<Tile>(sums, i, 0), __float_as_uint(at<Tile>(sums, i, 1)),
                          kLogprobs ? at<Tile>(sums, i, 2) : 0};
        }
        reduce_to_rows(entries, [](const Entry& kept, const Entry& given, int distance) {
            return better(kept, {from_lane(given.value, distance), __shfl_xor_sync(kWholeWarp, given.index, distance),
                                 kLogprobs ? from_lane(given.logit, distance) : 0});
        });
        results[0].best = better(results[0].best, entries[0]);
        results[1].best = better(results[1].best, entries[1]);
    }

    __syncthreads();
    const uint32_t row = first_row + threadIdx.x;
    if (threadIdx.x < Tile::kM && row < call.m) {
        RowResult result = table[threadIdx.x];
        for (int n = 1; n < Tile::kWarpsN; ++n) {
            result = merged(result, table[n * Tile::kM + threadIdx.x], kLogprobs);
        }
        reinterpret_cast<RowResult*>(call.workspace)[static_cast<size_t>(row) * places(call.parts) + part] = result;
    }
}

template <typename Tile>
void launch_tile(const LmHeadSkinny& call, cudaStream_t stream) {
    const uint32_t row_blocks = (call.m - 1) / Tile::kM + 1;
    launch("lm_head_skinny", call.logprobs ? lm_head_skinny_kernel<Tile, true> : lm_head_skinny_kernel<Tile, false>,
           dim3(row_blocks, call.parts), Tile::kThreads, SmemLayout<Tile>::bytes(call.config.num_stages), stream, call,
           tensor_map(call.hidden, call.m, call.k, Tile::kM));
    merge_results(call.workspace, call.m, call.parts, call.tokens, call.logprobs, stream);
}

using Tiles = TileList<SkinnyTile<64, 256, 32, 1, 8>, SkinnyTile<128, 128, 32, 2, 4>>;

}  // namespace

void lm_head_skinny(const LmHeadSkinny& call, cudaStream_t stream) {
    const bool found = Tiles::visit(call.config, [&](auto tile) { launch_tile<decltype(tile)>(call, stream); });
    if (!found) throw std::invalid_argument("lm_head_skinny has no code for " + described(call.config));
}

void describe_lm_head_skinny(Description& description) {
    Tiles::each([&](auto tile) {
        using Tile = decltype(tile);
        description.tiles.push_back({.kernel = "lm_head_skinny",
                                     .config = config_of<Tile>(1, Tile::kInputStages),
                                     .wgmma = false,
                                     .max_stages = Tile::kMaxStages,
                                     .max_input_stages = Tile::kInputStages,
                                     .ring_offset = SmemLayout<Tile>::kRing,
                                     .product_bytes = 0});
    });
    description.limits.push_back({"lm_head_skinny", "result_values", sizeof(RowResult) / sizeof(float)});
}

}  // namespace dllm
