// The launchers of csrc/kernels. Pointers are device memory; a launcher returns as soon as its kernel is queued on
// `stream`.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace dllm {

enum class Dtype { float32, bfloat16 };

// Shapes and meaning: dllm_kernels/ops/denoise_update.py. `shift` and `guidance_scale` may be null.
struct DenoiseUpdate {
    float* latents;
    const void* prediction;
    float* previous;
    void* next_input;
    const float* coefficients;
    const int64_t* seed;
    const int64_t* first_sample;
    const float* shift;
    const float* guidance_scale;
    uint32_t step, batch, length, width;
    Dtype prediction_dtype, next_input_dtype;
    bool noise, self_condition;
};

void denoise_update(const DenoiseUpdate& call, cudaStream_t stream);

}  // namespace dllm
