// What is kept of a row of logits (row_result.cuh) in several parts of the vocabulary, merged in their order.
#pragma once

#include <cstdint>

#include "dllm/async.cuh"
#include "dllm/grid.cuh"
#include "dllm/launch.cuh"
#include "dllm/row_result.cuh"

namespace dllm {
namespace {

// A row of the workspace has places for so many parts: a multiple of 16 bytes.
__host__ __device__ __forceinline__ uint32_t places(uint32_t parts) { return (parts + 3) / 4 * 4; }

// A warp merges a row's parts, which it brings into shared memory all at once.
__global__ void __launch_bounds__(32)
    merge_results_kernel(const RowResult* results, uint32_t parts, int64_t* tokens, float* logprobs) {
    pdl_trigger();
    pdl_wait();
    const uint32_t row = blockIdx.x, bytes = places(parts) * sizeof(RowResult);
    const char* const source = reinterpret_cast<const char*>(results) + static_cast<size_t>(row) * bytes;
    for (uint32_t byte = threadIdx.x * 16; byte < bytes; byte += 32 * 16) {
        cp_async_16(shared_memory() + byte, source + byte, true);
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
    const RowResult* const own = reinterpret_cast<const RowResult*>(shared_memory());
    const bool with_sum = logprobs != nullptr;
    RowResult result = no_result();
    for (uint32_t part = threadIdx.x; part < parts; part += 32) {
        result = merged(result, own[part], with_sum);
    }
    result = merged_over_warp(result, with_sum);
    if (threadIdx.x == 0) write_token(result, row, tokens, logprobs);
}

// results [rows, places(parts)].
inline void merge_results(const float* results, uint32_t rows, uint32_t parts, int64_t* tokens, float* logprobs,
                          cudaStream_t stream) {
    launch("lm_head", merge_results_kernel, dim3(rows), 32, places(parts) * sizeof(RowResult), stream,
           reinterpret_cast<const RowResult*>(results), parts, tokens, logprobs);
}

}  // namespace
}  // namespace dllm
