// Attention forward in bfloat16 for few queries (definition: dllm_kernels/ops/attention/op.py).
//
// A block owns 16 or 32 queries of a head and some columns of their output, and takes 64 keys and values at a time. A
// key or value is an operand of one warp only, so it goes from L2 straight into registers, and all loads of a tile are
// under way at once; queries, scores and weights are in shared memory. A tile takes three phases:
//   scores   warps split the keys in halves and the head dimension in groups, whose partial sums are added in the next
//   softmax  two rows a warp, online (FlashAttention, arXiv:2205.14135)
//   output   warps split the columns; a column of ones beside the values sums the weights
// The order of a sum within an MMA is free as long as both operands agree, so a thread owns what is contiguous in
// memory. What lies past the last query, key or column is read from the last one, and not used.
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "dllm/async.cuh"
#include "dllm/bf16.cuh"
#include "dllm/describe.h"
#include "dllm/grid.cuh"
#include "dllm/kernels.h"
#include "dllm/launch.cuh"
#include "dllm/mma.cuh"
#include "dllm/pack.cuh"

namespace dllm {
namespace {

constexpr int kRows = 16;                          // of an MMA: queries
constexpr int kKeys = 64, kHalf = 32, kSteps = 4;  // of a tile: keys; of a warp's scores; MMAs along the keys
constexpr int kChunk = 32;                         // head dimensions that four threads load at once, 8 each
constexpr int kScorePitch = kKeys + 8;             // of a row in shared memory, free of bank conflicts
constexpr uint32_t kOneWave = 128;      // blocks that run at once; an H200 has 132 processors, an RTX 5090 has 170
constexpr uint32_t kOnes = 0x3F803F80;  // 1, 1
constexpr uint32_t kMinHeadDim = 32, kMaxHeadDim = 640, kHeadDimMultiple = 8;
constexpr uint32_t kAllLanes = 0xFFFFFFFF;

template <int kWords>
using Words = Pack<uint32_t, kWords>;

template <int kWords>
__device__ __forceinline__ Words<kWords> load(const bf16* source) {
    return Words<kWords>::load(reinterpret_cast<const uint32_t*>(source));
}

// One multiply-add: it stands between the wait for the predecessors and the load.
__device__ __forceinline__ const bf16* row_of(const bf16* rows, uint32_t row, uint32_t row_bytes) {
    const char* const bytes = reinterpret_cast<const char*>(rows) + static_cast<uint64_t>(row) * row_bytes;
    return reinterpret_cast<const bf16*>(bytes);
}

// kGroups groups of kChunks chunks are the head dimension; a thread owns kOwned neighbouring columns of the values. The
// blocks of one tile of kTiles x 16 queries split the columns of the output.
template <int kGroups, int kChunks, int kOwned, int kTiles>
struct Shape {
    static constexpr int kWarps = 2 * kGroups, kThreads = 32 * kWarps;
    static constexpr int kQueries = kTiles * kRows, kWidth = kGroups * kChunks * kChunk;
    static constexpr int kColumns = kWarps * 8 * kOwned, kSplits = kWidth / kColumns;
    static_assert(kWidth % kColumns == 0 && kWarps >= 8);
    static constexpr int kPairs = kQueries / 2, kPasses = (kPairs - 1) / kWarps + 1;
    static constexpr int kQueryPitch = kWidth + 32;
    static constexpr int kScores = kGroups * kQueries * kScorePitch, kWeights = kTiles * kSteps * 32;
    static constexpr uint32_t kSharedBytes =
        sizeof(float) * (kScores + kQueries) + 16 * kWeights + sizeof(bf16) * kQueries * kQueryPitch + sizeof(Barrier);
};

// The fragment of the weights for thread `lane` and 16 keys; the swizzle spreads the softmax's stores over the banks.
__device__ __forceinline__ uint32_t weights_at(int tile, uint32_t step, uint32_t lane) {
    return (tile * kSteps + step) * 32 + (lane ^ step % 2 * 4);
}

template <int kGroups, int kChunks, int kOwned, int kTiles>
__global__ void __launch_bounds__(Shape<kGroups, kChunks, kOwned, kTiles>::kThreads)
    attention_kernel(const Attention call, uint32_t q_bytes, uint32_t k_bytes, uint32_t v_bytes, float scale) {
    using Shape = Shape<kGroups, kChunks, kOwned, kTiles>;
    pdl_trigger();
    float* const scores = reinterpret_cast<float*>(shared_memory());
    Words<4>* const weights = reinterpret_cast<Words<4>*>(scores + Shape::kScores);
    bf16* const queries = reinterpret_cast<bf16*>(weights + Shape::kWeights);
    float* const rescales = reinterpret_cast<float*>(queries + Shape::kQueries * Shape::kQueryPitch);
    Barrier* const queries_here = reinterpret_cast<Barrier*>(rescales + Shape::kQueries);

    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t head = blockIdx.y, sample = blockIdx.z, first = blockIdx.x / Shape::kSplits * Shape::kQueries;
    const uint32_t end = call.causal ? min(call.keys, first + Shape::kQueries) : call.keys;
    // For the scores: half of a tile's keys, and eight neighbours in each chunk of a group.
    const uint32_t half = warp / kGroups, dimension = warp % kGroups * kChunks * kChunk + 8 * t;
    // For the output: the warp's columns, of which the thread owns kOwned of the values and 2 kOwned of the output.
    const uint32_t columns = blockIdx.x % Shape::kSplits * Shape::kColumns + warp * 8 * kOwned;

    const bf16* const q =
        static_cast<const bf16*>(call.q) + sample * call.q_strides.sample + head * call.q_strides.head;
    const bf16* const k =
        static_cast<const bf16*>(call.k) + sample * call.k_strides.sample + head * call.k_strides.head + dimension;
    const bf16* const v = static_cast<const bf16*>(call.v) + sample * call.v_strides.sample +
                          head * call.v_strides.head + min(columns + g * kOwned, call.head_dim - kOwned);
    const bool* const key_mask = call.key_mask ? call.key_mask + static_cast<size_t>(sample) * call.keys : nullptr;

    Words<4> k_words[kChunks][4] = {};  // what lies past the head dimension stays 0
    Words<kOwned / 2> v_words[kSteps][4];
    bool flags[2];  // whether the tile's keys `lane` and `lane + 32` are attended to

    const auto load_keys = [&](uint32_t start) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const bf16* const row = row_of(k, min(start + half * kHalf + 8 * n + g, end - 1), k_bytes);
#pragma unroll
            for (int c = 0; c < kChunks; ++c) {
                if (dimension + c * kChunk < call.head_dim) {
                    k_words[c][n] = load<4>(row + c * kChunk);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t key = start + kHalf * i + lane;
            flags[i] = key < end && (!key_mask || key_mask[key]);
        }
    };
    const auto load_values = [&](uint32_t start) {
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                v_words[step][r] = load<kOwned / 2>(row_of(v, min(start + 16 * step + 4 * t + r, end - 1), v_bytes));
            }
        }
    };

    if (threadIdx.x == 0) {
        mbarrier_init(queries_here, Shape::kThreads);
        fence_mbarrier_init();
    }
    __syncthreads();
    pdl_wait();
    load_keys(0);
    constexpr int kRowCopies = Shape::kWidth / 8, kCopies = Shape::kQueries * kRowCopies;
#pragma unroll
    for (int i = 0; i < kCopies; i += Shape::kThreads) {
        const uint32_t copy = i + threadIdx.x, row = copy / kRowCopies, column = copy % kRowCopies * 8;
        if (copy < kCopies) {
            cp_async_16(queries + row * Shape::kQueryPitch + column,
                        row_of(q, min(first + row, call.queries - 1), q_bytes) + column, column < call.head_dim);
        }
    }
    cp_async_arrive(queries_here);
    load_values(0);

    float maximum[Shape::kPasses];  // of the rows whose softmax is this thread's
#pragma unroll
    for (int pass = 0; pass < Shape::kPasses; ++pass) {
        maximum[pass] = -INFINITY;
    }
    float out[kTiles][kOwned + 1][4] = {};  // the last one is the sum of the weights
    mbarrier_wait(queries_here, 0);

    for (uint32_t start = 0; start < end; start += kKeys) {
        float partial[kTiles][4][4] = {};
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
#pragma unroll
            for (int m = 0; m < kTiles; ++m) {
                const bf16* const source = queries + (m * kRows + g) * Shape::kQueryPitch + dimension + c * kChunk;
                const Words<4> a = load<4>(source), b = load<4>(source + 8 * Shape::kQueryPitch);
#pragma unroll
                for (int w = 0; w < 4; w += 2) {
#pragma unroll
                    for (int n = 0; n < 4; ++n) {
                        mma_bf16(partial[m][n], a.value[w], b.value[w], a.value[w + 1], b.value[w + 1],
                                 k_words[c][n].value[w], k_words[c][n].value[w + 1]);
                    }
                }
            }
        }
        const uint32_t attended[2] = {__ballot_sync(kAllLanes, flags[0]), __ballot_sync(kAllLanes, flags[1])};
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
            const uint32_t row = warp % kGroups * Shape::kQueries + m * kRows + g;
            float* const target = scores + row * kScorePitch + half * kHalf + 2 * t;
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                Pack<float, 2>{partial[m][n][0], partial[m][n][1]}.store(target + 8 * n);
                Pack<float, 2>{partial[m][n][2], partial[m][n][3]}.store(target + 8 * n + 8 * kScorePitch);
            }
        }
        if (start + kKeys < end) {
            load_keys(start + kKeys);
        }
        __syncthreads();

        // Half a warp has a row, a thread four neighbouring keys of it; the warp's rows share an MMA fragment.
#pragma unroll
        for (int pass = 0; pass < Shape::kPasses; ++pass) {
            const uint32_t pair = pass * Shape::kWarps + warp, quad = lane % 16, lower = lane / 16;
            if (pair >= Shape::kPairs) {
                break;
            }
            const uint32_t row = pair / 8 * kRows + pair % 8 + 8 * lower;
            float score[4] = {};
#pragma unroll
            for (int group = 0; group < kGroups; ++group) {
                const auto part =
                    Pack<float, 4>::load(scores + (group * Shape::kQueries + row) * kScorePitch + 4 * quad);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    score[i] += part.value[i];
                }
            }
            const uint32_t used = (quad < 8 ? attended[0] : attended[1]) >> 4 * (quad % 8);
            float largest = maximum[pass];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const bool before = !call.causal || start + 4 * quad + i <= first + row;
                score[i] = before && used >> i & 1 ? score[i] : -INFINITY;
                largest = fmaxf(largest, score[i]);
            }
#pragma unroll
            for (int offset = 8; offset > 0; offset /= 2) {
                largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, offset));
            }
            // While a row has met masked keys only, its maximum is -inf, and -inf - -inf would be NaN.
            const float shift = largest == -INFINITY ? 0.0f : largest;
            // Scaled after the difference: a large score loses no digits to the scale.
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                score[i] = exp2f((score[i] - shift) * scale);
            }
            uint32_t* const target = weights[weights_at(pair / 8, quad / 4, pair % 8 * 4 + quad % 4)].value + lower;
            target[0] = pack_bf16(score[0], score[1]);
            target[2] = pack_bf16(score[2], score[3]);
            if (quad == 0) {
                rescales[row] = exp2f((maximum[pass] - shift) * scale);
            }
            maximum[pass] = largest;
        }
        __syncthreads();

        // What a masked value holds, NaN included, must not meet its weight of 0.
        if ((attended[0] & attended[1]) != kAllLanes) {
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
#pragma unroll
                for (int r = 0; r < 4; ++r) {
                    const bool used = attended[step / 2] >> (step % 2 * 16 + 4 * t + r) & 1;
                    v_words[step][r] = used ? v_words[step][r] : Words<kOwned / 2>{};
                }
            }
        }
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
            const float upper = rescales[m * kRows + g], lower = rescales[m * kRows + g + 8];
#pragma unroll
            for (int n = 0; n <= kOwned; ++n) {
                out[m][n][0] *= upper;
                out[m][n][1] *= upper;
                out[m][n][2] *= lower;
                out[m][n][3] *= lower;
            }
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                const Words<4> a = weights[weights_at(m, step, lane)];
                const auto& rows = v_words[step];
#pragma unroll
                for (int n = 0; n <= kOwned; ++n) {
                    uint32_t b0 = kOnes, b1 = kOnes;
                    if (n < kOwned) {
                        // Column n of two rows in a word each: both lower halves, or both upper ones.
                        const uint32_t halves = n % 2 ? 0x7632 : 0x5410;
                        b0 = __byte_perm(rows[0].value[n / 2], rows[1].value[n / 2], halves);
                        b1 = __byte_perm(rows[2].value[n / 2], rows[3].value[n / 2], halves);
                    }
                    mma_bf16(out[m][n], a.value[0], a.value[1], a.value[2], a.value[3], b0, b1);
                }
            }
        }
        if (start + kKeys < end) {
            load_values(start + kKeys);
        }
    }

    // A thread has 2 kOwned neighbouring columns: its first column of every MMA, then its second.
    constexpr int kRun = kOwned < 4 ? kOwned : 4;
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t row = first + m * kRows + 8 * i + g;
            const float total = out[m][kOwned][2 * i], normalizer = total > 0 ? 1 / total : 0;
            const size_t position = (static_cast<size_t>(sample) * call.queries + row) * call.heads + head;
#pragma unroll
            for (int run = 0; run < kOwned; run += kRun) {
                Words<kRun> words;
#pragma unroll
                for (int w = 0; w < kRun; ++w) {
                    const int n = 2 * (run + w) % kOwned, part = 2 * i + 2 * (run + w) / kOwned;
                    words.value[w] = pack_bf16(out[m][n][part] * normalizer, out[m][n + 1][part] * normalizer);
                }
                const uint32_t column = columns + 2 * kOwned * t + 2 * run;
                if (row < call.queries && column < call.head_dim) {
                    bf16* const target = static_cast<bf16*>(call.out) + position * call.head_dim + column;
                    words.store(reinterpret_cast<uint32_t*>(target));
                }
            }
        }
    }
}

// Whether 16 bytes at a time can be read from q, k or v.
bool readable(const void* pointer, const Strides& strides) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && strides.sample % 8 == 0 && strides.row % 8 == 0 &&
           strides.head % 8 == 0 && strides.row < int64_t{1} << 31;
}

uint32_t row_bytes(const Strides& strides) { return static_cast<uint32_t>(strides.row * sizeof(bf16)); }

template <int kGroups, int kChunks, int kOwned, int kTiles>
void launch_shape(const Attention& call, cudaStream_t stream) {
    using Shape = Shape<kGroups, kChunks, kOwned, kTiles>;
    const dim3 grid(((call.queries - 1) / Shape::kQueries + 1) * Shape::kSplits, call.heads, call.batch);
    const float scale = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(call.head_dim)));
    launch("attention", attention_kernel<kGroups, kChunks, kOwned, kTiles>, grid, Shape::kThreads, Shape::kSharedBytes,
           stream, call, row_bytes(call.q_strides), row_bytes(call.k_strides), row_bytes(call.v_strides), scale);
}

}  // namespace

void attention(const Attention& call, cudaStream_t stream) {
    if (call.head_dim < kMinHeadDim || call.head_dim > kMaxHeadDim || call.head_dim % kHeadDimMultiple != 0) {
        throw std::invalid_argument(
            "the CUDA attention has head dimensions of 32 to 640 that are multiples of 8, not " +
            std::to_string(call.head_dim));
    }
    if (!readable(call.q, call.q_strides) || !readable(call.k, call.k_strides) || !readable(call.v, call.v_strides)) {
        throw std::invalid_argument("the CUDA attention takes rows of q, k and v that begin at multiples of 16 bytes");
    }
    const uint64_t tiles = uint64_t{call.batch} * call.heads * ((call.queries - 1) / kRows + 1);
    if (call.head_dim <= 128) {
        tiles <= 2 * kOneWave ? launch_shape<4, 1, 2, 1>(call, stream) : launch_shape<4, 1, 2, 2>(call, stream);
    } else if (call.head_dim <= 256) {
        tiles <= kOneWave ? launch_shape<4, 2, 4, 1>(call, stream) : launch_shape<4, 2, 4, 2>(call, stream);
    } else if (call.head_dim <= 384) {
        launch_shape<6, 2, 4, 1>(call, stream);
    } else if (call.head_dim <= 512) {
        launch_shape<4, 4, 4, 1>(call, stream);
    } else {
        launch_shape<5, 4, 4, 1>(call, stream);
    }
}

void describe_attention(Description& description) {
    description.limits.push_back({"attention", "min_head_dim", kMinHeadDim});
    description.limits.push_back({"attention", "max_head_dim", kMaxHeadDim});
    description.limits.push_back({"attention", "head_dim_multiple", kHeadDimMultiple});
}

}  // namespace dllm
