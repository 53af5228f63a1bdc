// bfloat16 as CUDA has it, for a CPU.
#pragma once

#include "cuda_runtime.h"

struct __nv_bfloat16 {
    uint16_t bits;

    __nv_bfloat16() = default;
    // To the nearest, ties to even; NaN is 0x7FFF, as on a GPU.
    __nv_bfloat16(float value) {
        const uint32_t word = __float_as_uint(value);
        bits = static_cast<uint16_t>(std::isnan(value) ? 0x7FFF : (word + 0x7FFF + (word >> 16 & 1)) >> 16);
    }
    operator float() const { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }
};

struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 value) { return value; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
