// Row statistics between two products: (mean, sum of squared deviations), in chunks of columns.
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
__device__ __forceinline__ float2 merge_statistics_by_lanes(const float2* chunks, float2 first, uint32_t count,
                                                            uint32_t chunk, uint32_t k) {
    const uint32_t lane = threadIdx.x % kLanes;
    const auto columns = [&](uint32_t i) { return static_cast<float>(min(chunk, k - i * chunk)); };
    float mean = first.x * columns(lane);
    for (uint32_t i = lane + kLanes; i < count; i += kLanes) {
        mean += chunks[i].x * columns(i);
    }
    mean = sum_over<kLanes>(mean) / static_cast<float>(k);
    float squares = lane < count ? first.y + (first.x - mean) * (first.x - mean) * columns(lane) : 0;
    for (uint32_t i = lane + kLanes; i < count; i += kLanes) {
        const float2 one = chunks[i];
        squares += one.y + (one.x - mean) * (one.x - mean) * columns(i);
    }
    return {mean, rsqrtf(sum_over<kLanes>(squares) / static_cast<float>(k) + kEpsilon)};
}

// The same by one thread.
__device__ __forceinline__ float2 merge_statistics_by_thread(const float2* chunks, uint32_t count, uint32_t chunk,
                                                             uint32_t k) {
    const auto columns = [&](uint32_t i) { return static_cast<float>(min(chunk, k - i * chunk)); };
    float mean = 0, squares = 0;
#pragma unroll 8
    for (uint32_t i = 0; i < count; ++i) {
        mean += chunks[i].x * columns(i);
    }
    mean /= static_cast<float>(k);
#pragma unroll 8
    for (uint32_t i = 0; i < count; ++i) {
        const float2 one = chunks[i];
        squares += one.y + (one.x - mean) * (one.x - mean) * columns(i);
    }
    return {mean, rsqrtf(squares / static_cast<float>(k) + kEpsilon)};
}

}  // namespace dllm
