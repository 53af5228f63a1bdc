// What is done to rows of activations between two products.
#pragma once

#include <cstdint>

namespace dllm {

constexpr float kEpsilon = 1e-5f;

// Over `kLanes` neighbouring lanes, for each of them.
template <int kLanes>
__device__ __forceinline__ float sum_over(float value) {
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xFFFFFFFFu, value, distance);
    }
    return value;
}

// A row's statistics (mean, sum of squared deviations), given in chunks of `chunk` columns, as its mean and 1 / std, by
// `kLanes` lanes. Each has read its first chunk ahead: zeros where there is none.
template <int kLanes>
__device__ __forceinline__ float2 merge_statistics(const float2* chunks, float2 first, uint32_t count, uint32_t chunk,
                                                   uint32_t width) {
    const uint32_t lane = threadIdx.x % kLanes;
    const auto columns = [&](uint32_t i) { return static_cast<float>(min(chunk, width - i * chunk)); };
    float mean = first.x * columns(lane);
    for (uint32_t i = lane + kLanes; i < count; i += kLanes) {
        mean += chunks[i].x * columns(i);
    }
    mean = sum_over<kLanes>(mean) / static_cast<float>(width);
    float squares = lane < count ? first.y + (first.x - mean) * (first.x - mean) * columns(lane) : 0;
    for (uint32_t i = lane + kLanes; i < count; i += kLanes) {
        const float2 one = chunks[i];
        squares += one.y + (one.x - mean) * (one.x - mean) * columns(i);
    }
    return {mean, rsqrtf(sum_over<kLanes>(squares) / static_cast<float>(width) + kEpsilon)};
}

// The same by one thread.
__device__ __forceinline__ float2 merge_chunks(const float2* chunks, uint32_t count, uint32_t chunk, uint32_t width) {
    const auto columns = [&](uint32_t i) { return static_cast<float>(min(chunk, width - i * chunk)); };
    float mean = 0, squares = 0;
#pragma unroll 8
    for (uint32_t i = 0; i < count; ++i) {
        mean += chunks[i].x * columns(i);
    }
    mean /= static_cast<float>(width);
#pragma unroll 8
    for (uint32_t i = 0; i < count; ++i) {
        const float2 one = chunks[i];
        squares += one.y + (one.x - mean) * (one.x - mean) * columns(i);
    }
    return {mean, rsqrtf(squares / static_cast<float>(width) + kEpsilon)};
}

// x Phi(x), with erfc by Abramowitz and Stegun 7.1.26, whose error of 1.5e-7 is far below bfloat16's rounding.
__device__ __forceinline__ float gelu(float x) {
    const float t = __fdividef(1.0f, 1.0f + 0.23164189f * fabsf(x));
    const float polynomial =
        t * (0.127414796f + t * (-0.142248368f + t * (0.71070687f + t * (-0.726576013f + t * 0.53070271f))));
    return fmaxf(x, 0.0f) - fabsf(x) * (polynomial * __expf(-0.5f * x * x));
}

}  // namespace dllm
