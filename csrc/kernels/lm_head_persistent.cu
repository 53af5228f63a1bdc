// The lm_head for many rows, on Hopper (definition: dllm_kernels/ops/lm_head/op.py). Logits never leave the registers.
//
// A block has 128 rows and a part of the vocabulary, which it takes 256 entries at a time; of each row it keeps the
// best entry so far and, for log-probabilities, the log-sum-exp. One warp fills the ring, two warpgroups multiply and
// keep. A second kernel merges the parts in their order: no atomics, so equal calls give equal bits.

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "dllm/describe.h"
#include "dllm/kernels.h"
#include "dllm/merge_results.cuh"
#include "dllm/persistent_gemm.cuh"
#include "dllm/philox.cuh"

namespace dllm {
namespace {

// A tile has at least four stages (fill), and a bulk load of the bias multiples of 16 bytes.
constexpr uint32_t kMinK = 4 * kTileK, kVocabMultiple = 4;
constexpr uint32_t kThreads = 32 * (kMultiplyingWarps + 1), kWholeWarp = 0xFFFFFFFFu;

struct Shared {
    TileRing ring;
    Barrier bias_full[2];
    alignas(16) float bias[2][kTileN];
};
constexpr uint32_t kRing = (sizeof(Shared) + 1023) / 1024 * 1024, kSharedBytes = kRing + kTileRingBytes;

// What a block does at once: a tile's rows and a part's tiles.
struct Unit {
    uint32_t row, part, begin, end;

    static __device__ __forceinline__ uint32_t count(const LmHeadPersistent& call) {
        return ((call.m - 1) / kTileM + 1) * call.parts;
    }

    // Blocks that run at once share a part's weights in L2.
    __device__ __forceinline__ Unit(const LmHeadPersistent& call, uint32_t number) {
        const uint32_t high = (call.m - 1) / kTileM + 1, tiles = (call.vocab_size - 1) / kTileN + 1;
        row = number % high * kTileM;
        part = number / high;
        begin = tiles * part / call.parts;
        end = tiles * (part + 1) / call.parts;
    }
};

// By one thread. A tile's bias takes the place of that two tiles before, which was read when the fourth stage from the
// end of the tile between them was left: there are at least four.
__device__ __forceinline__ void fill(const LmHeadPersistent& call, const TensorMap& hidden, const TensorMap& weight,
                                     Shared* shared, char* ring) {
    Slot slot;
    uint32_t place = 0;
    for (uint32_t number = blockIdx.x; number < Unit::count(call); number += gridDim.x) {
        const Unit unit(call, number);
        for (uint32_t tile = unit.begin; tile < unit.end; ++tile, place ^= 1) {
            const uint32_t first = tile * kTileN, bytes = min(kTileN, call.vocab_size - first) * 4;
            mbarrier_arrive_expect_tx(shared->bias_full + place, bytes);
            bulk_load(shared->bias[place], call.bias + first, bytes, shared->bias_full + place, streaming_policy());
            shared->ring.fill(ring, hidden, weight, unit.row, first, call.k, slot);
        }
    }
    pdl_trigger();
}

// The lane's rows of its warp's 16, eight apart, and the noise of one of them: that of an even lane is the first.
struct Noise {
    int64_t seed, sample;
    uint32_t row_quad;

    __device__ __forceinline__ Noise(const LmHeadPersistent& call, uint32_t row)
        : seed(*call.seed),
          sample(*call.first_sample + own(row) / call.length),
          row_quad(own(row) % call.length * ((call.vocab_size + 3) / 4)) {}

    static __device__ __forceinline__ bool odd() { return threadIdx.x % 2; }
    static __device__ __forceinline__ uint32_t own(uint32_t row) { return row + (odd() ? 8 : 0); }

    // Of the entries 2 t and 2 t + 1 of the eight from `first` on, lane 4 g + t: of the first row, then of the second.
    // Two lanes share the calls of two rows.
    __device__ __forceinline__ void of(uint32_t first, uint32_t (&words)[4]) const {
        const uint32_t quad = first / 4 + threadIdx.x % 4 / 2;
        const Words own = random_words(seed, row_quad + quad, 0, sample, kGumbelNoise);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t got = __shfl_xor_sync(kWholeWarp, odd() ? own.word[i] : own.word[i + 2], 1);
            words[i] = odd() ? got : own.word[i];
            words[i + 2] = odd() ? own.word[i + 2] : got;
        }
    }
};

// What a lane keeps of its two rows: four lanes share a row, of every eight entries two each.
struct Kept {
    RowResult rows[2];

    // Where all logits are -inf, the lowest index is the token.
    __device__ __forceinline__ explicit Kept(uint32_t first) : rows{no_result(), no_result()} {
        rows[0].best.index = rows[1].best.index = first + threadIdx.x % 4 * 2;
    }

    // Sum i of an eight whose first entry this is.
    __device__ __forceinline__ void keep(int i, float value, uint32_t eight, float logit) {
        value = comparable(value);
        Entry& best = rows[i / 2].best;
        best = either(value > best.value, {value, eight + threadIdx.x % 4 * 2 + i % 2, logit}, best);
    }

    __device__ __forceinline__ void keep_best(const TileSums& sums, uint32_t first) {
#pragma unroll
        for (uint32_t eight = 0; eight < kTileN / 8; ++eight) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                keep(i, sums[eight][i], first + eight * 8, sums[eight][i]);
            }
        }
    }

    // The same with noise. The sums are used up.
    __device__ __forceinline__ void keep_best_noisy(TileSums& sums, uint32_t first, float temperature,
                                                    const Noise& noise) {
        // A loop, since the code of all eights would not fit the instruction cache: each four are the first in turn.
        constexpr uint32_t kTurn = 4;
#pragma unroll 1
        for (uint32_t turn = 0; turn < kTileN / 8; turn += kTurn) {
#pragma unroll
            for (uint32_t j = 0; j < kTurn; ++j) {
                const uint32_t eight = first + (turn + j) * 8;
                uint32_t words[4];
                noise.of(eight, words);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    keep(i, sums[j][i] + temperature * gumbel(words[i]), eight, sums[j][i]);
                }
            }
#pragma unroll
            for (uint32_t j = 0; j + kTurn < kTileN / 8; ++j) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    sums[j][i] = sums[j + kTurn][i];
                }
            }
        }
    }

    __device__ __forceinline__ void add_exponentials(const TileSums& sums) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            ExpSum& sum = rows[row].sum;
            float largest = sum.largest, total = 0;
#pragma unroll
            for (const auto& four : sums) {
                largest = fmaxf(largest, fmaxf(four[2 * row], four[2 * row + 1]));
            }
            const float shift = exponent_shift(largest);
#pragma unroll
            for (const auto& four : sums) {
                total += __expf(four[2 * row] - shift) + __expf(four[2 * row + 1] - shift);
            }
            sum = {largest, sum.total * __expf(sum.largest - shift) + total};
        }
    }

    // A row's, over the four lanes that share it.
    __device__ __forceinline__ RowResult merged_row(int row, bool with_sum) const {
        RowResult result = rows[row];
#pragma unroll
        for (int distance = 1; distance <= 2; distance *= 2) {
            const auto other = [&](auto value) { return __shfl_xor_sync(kWholeWarp, value, distance); };
            const Entry best{other(result.best.value), other(result.best.index), other(result.best.logit)};
            const ExpSum sum{other(result.sum.largest), other(result.sum.total)};
            result = merged(result, {best, sum}, with_sum);
        }
        return result;
    }
};

// The sums begin at the bias.
__device__ __forceinline__ void begin_at(TileSums& sums, const float* bias) {
#pragma unroll
    for (uint32_t eight = 0; eight < kTileN / 8; ++eight) {
        const float2 two = *reinterpret_cast<const float2*>(bias + eight * 8 + threadIdx.x % 4 * 2);
        sums[eight][0] = sums[eight][2] = two.x;
        sums[eight][1] = sums[eight][3] = two.y;
    }
}

// Entries past the end of the vocabulary never win, nor count.
__device__ __forceinline__ void hide_padding(TileSums& sums, uint32_t real) {
#pragma unroll
    for (uint32_t eight = 0; eight < kTileN / 8; ++eight) {
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            if (eight * 8 + threadIdx.x % 4 * 2 + i % 2 >= real) sums[eight][i] = -INFINITY;
        }
    }
}

template <bool kLogprobs>
__global__ void __launch_bounds__(kThreads, 1)
    lm_head_persistent_kernel(const LmHeadPersistent call, const __grid_constant__ TensorMap hidden,
                              const __grid_constant__ TensorMap weight) {
    if constexpr (kHasWgmma) {
        const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        Shared* const shared = reinterpret_cast<Shared*>(shared_memory());
        char* const ring = shared_memory() + kRing;
        if (threadIdx.x == 0) {
            shared->ring.make();
            mbarrier_init(shared->bias_full, 1);
            mbarrier_init(shared->bias_full + 1, 1);
            fence_mbarrier_init();
            prefetch_tensor_map(&hidden);
            prefetch_tensor_map(&weight);
        }
        __syncthreads();
        pdl_wait();

        if (warp == kMultiplyingWarps) {
            if (lane == 0) fill(call, hidden, weight, shared, ring);
            return;
        }
        Slot slot;
        uint32_t taken = 0;
        for (uint32_t number = blockIdx.x; number < Unit::count(call); number += gridDim.x) {
            const Unit unit(call, number);
            const uint32_t row = unit.row + warp * 16 + lane / 4;
            Kept kept(unit.begin * kTileN);
            for (uint32_t tile = unit.begin; tile < unit.end; ++tile, ++taken) {
                const uint32_t first = tile * kTileN;
                TileSums sums;
                mbarrier_wait(shared->bias_full + taken % 2, taken / 2 % 2);
                begin_at(sums, shared->bias[taken % 2]);
                shared->ring.multiply(sums, ring, warp / 4 * 64, call.k, slot);
                if (call.vocab_size - first < kTileN) hide_padding(sums, call.vocab_size - first);
                if constexpr (kLogprobs) kept.add_exponentials(sums);
                // From L1, which costs less than registers during the product.
                const float temperature = *call.temperature;
                if (temperature > 0) {
                    kept.keep_best_noisy(sums, first, temperature, Noise(call, row));
                } else {
                    kept.keep_best(sums, first);
                }
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const RowResult result = kept.merged_row(i, kLogprobs);
                const size_t to = static_cast<size_t>(row + 8 * i) * places(call.parts) + unit.part;
                if (lane % 4 == 0 && row + 8 * i < call.m) reinterpret_cast<RowResult*>(call.workspace)[to] = result;
            }
        }
    }
}

}  // namespace

void lm_head_persistent(const LmHeadPersistent& call, cudaStream_t stream) {
    if (!on_hopper()) throw std::invalid_argument("lm_head_persistent runs on Hopper only");
    if (call.vocab_size % kVocabMultiple != 0 || call.k % kTileK != 0 || call.k < kMinK) {
        throw std::invalid_argument(
            "lm_head_persistent takes vocabularies that are multiples of 4 and k that are multiples of 64, from 256 "
            "on, not " +
            std::to_string(call.vocab_size) + " and " + std::to_string(call.k));
    }
    if (call.parts == 0 || call.parts > (call.vocab_size - 1) / kTileN + 1) {
        throw std::invalid_argument("lm_head_persistent takes parts of at least 256 entries of the vocabulary, not " +
                                    std::to_string(call.parts) + " parts of " + std::to_string(call.vocab_size));
    }
    const uint32_t units = ((call.m - 1) / kTileM + 1) * call.parts;
    launch("lm_head_persistent", call.logprobs ? lm_head_persistent_kernel<true> : lm_head_persistent_kernel<false>,
           Grid(dim3(std::min(units, call.blocks))), kThreads, kSharedBytes, stream, call,
           tensor_map(call.hidden, call.m, call.k, kTileM, kTileK),
           tensor_map(call.weight, call.vocab_size, call.k, kTileN, kTileK));
    merge_results(call.workspace, call.m, call.parts, call.tokens, call.logprobs, stream);
}

void describe_lm_head_persistent(Description& description) {
    description.tiles.push_back({.kernel = "lm_head_persistent",
                                 .config = {kTileM, kTileN, kTileK, kMultiplyingWarps, 1, 1, kNumStages, kNumStages},
                                 .max_stages = kNumStages,
                                 .max_input_stages = kNumStages,
                                 .ring_offset = kRing,
                                 .product_bytes = 0});
    description.limits.push_back({"lm_head_persistent", "min_k", kMinK});
    description.limits.push_back({"lm_head_persistent", "vocab_multiple", kVocabMultiple});
}

}  // namespace dllm
