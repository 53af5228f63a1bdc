// The lm_head for many rows (definition: dllm_kernels/ops/lm_head/op.py): takes a library's logits, some entries of the
// vocabulary at a time, and goes on with what is kept of each row. A block takes a row.

#include <cstdint>
#include <stdexcept>

#include "dllm/grid.cuh"
#include "dllm/kernels.h"
#include "dllm/launch.cuh"
#include "dllm/pack.cuh"
#include "dllm/philox.cuh"
#include "dllm/row_result.cuh"

namespace dllm {
namespace {

constexpr uint32_t kThreads = 256, kWarps = kThreads / 32, kQuad = 4;

using Quad = Pack<float, kQuad>;

__global__ void __launch_bounds__(kThreads) lm_head_chunked_kernel(const LmHeadChunked call) {
    pdl_trigger();
    pdl_wait();
    const uint32_t row = blockIdx.x, width = call.end - call.begin;
    const float* const logits = call.logits + static_cast<size_t>(row) * call.pitch;
    const float temperature = *call.temperature;
    const bool with_sum = call.logprobs != nullptr;
    const int64_t seed = *call.seed, sample = *call.first_sample + row / call.length;
    const uint32_t row_quad = row % call.length * ((call.vocab_size + 3) / 4);

    RowResult result = no_result();
    for (uint32_t column = threadIdx.x * kQuad; column < width; column += kThreads * kQuad) {
        const uint32_t index = call.begin + column;
        Quad logit = Quad::load(logits + column), value;
#pragma unroll
        for (uint32_t i = 0; i < kQuad; ++i) {
            // The pitch goes on past the chunk's end.
            const float sum = logit.value[i] + call.bias[min(index + i, call.vocab_size - 1)];
            logit.value[i] = column + i < width ? sum : -INFINITY;
        }
        value = logit;
        if (temperature > 0) {
            const Words words = random_words(seed, row_quad + index / kQuad, 0, sample, kGumbelNoise);
#pragma unroll
            for (uint32_t i = 0; i < kQuad; ++i) {
                value.value[i] += temperature * gumbel(words.word[i]);
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < kQuad; ++i) {
            result.best = better(result.best, {comparable(value.value[i]), index + i, logit.value[i]});
        }
        if (with_sum) {
            const auto& x = logit.value;
            const float largest = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])), shift = exponent_shift(largest);
            const float total =
                (__expf(x[0] - shift) + __expf(x[1] - shift)) + (__expf(x[2] - shift) + __expf(x[3] - shift));
            result.sum = merged(result.sum, ExpSum{largest, total});
        }
    }

    result = merged_over_warp(result, with_sum);
    RowResult* const table = reinterpret_cast<RowResult*>(shared_memory());
    if (threadIdx.x % 32 == 0) table[threadIdx.x / 32] = result;
    __syncthreads();
    if (threadIdx.x == 0) {
        RowResult& state = reinterpret_cast<RowResult*>(call.state)[row];
        result = call.begin == 0 ? no_result() : state;
        for (uint32_t warp = 0; warp < kWarps; ++warp) {
            result = merged(result, table[warp], with_sum);
        }
        state = result;
        if (call.end == call.vocab_size) write_token(result, row, call.tokens, call.logprobs);
    }
}

}  // namespace

void lm_head_chunked(const LmHeadChunked& call, cudaStream_t stream) {
    if (call.begin % kQuad || call.pitch % kQuad || reinterpret_cast<uintptr_t>(call.logits) % sizeof(Quad)) {
        throw std::invalid_argument("lm_head_chunked needs rows of logits that begin at multiples of four values");
    }
    launch("lm_head_chunked", lm_head_chunked_kernel, dim3(call.m), kThreads, kWarps * sizeof(RowResult), stream, call);
}

}  // namespace dllm
