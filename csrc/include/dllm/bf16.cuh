// bfloat16 as the kernels use it. tests/emulator has the same functions for a CPU.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace dllm {

using bf16 = __nv_bfloat16;

__device__ __forceinline__ float to_float(bf16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(float value) { return value; }

// Rounded to nearest even.
__device__ __forceinline__ bf16 to_bf16(float value) { return __float2bfloat16_rn(value); }

// Two neighbours in a word, `low` in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ float low_bf16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }

}  // namespace dllm
