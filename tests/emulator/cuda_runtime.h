// The part of CUDA C++ that kernels use, for a CPU: qualifiers, built-in variables, vector types, mathematics and what
// a warp or a block does together. How it is run: machine.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

// Whether kernels are compiled for what only Hopper has: clusters, products of warpgroups.
#ifndef DLLM_HOPPER
#define DLLM_HOPPER false
#endif

struct uint3 {
    unsigned x, y, z;
};

struct dim3 : uint3 {
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {}
};

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Set whenever another thread goes on.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

// glibc has functions of these names.
#define rsqrtf(x) (1.0f / sqrtf(x))
#define __expf(x) expf(x)
#define __logf(x) logf(x)

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }

inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float __uint_as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Byte i is byte `selector` nibble i of the eight bytes of a, then b, from the lowest on.
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) result |= (bytes >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i;
    return result;
}

template <typename T>
T __ldg(const T* source) {
    return *source;
}
template <typename T>
T __ldcg(const T* source) {
    return *source;
}

inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
#define DLLM_MIN_MAX(A, B, Result)                                                                  \
    inline Result min(A a, B b) { return static_cast<Result>(a) < static_cast<Result>(b) ? a : b; } \
    inline Result max(A a, B b) { return static_cast<Result>(a) > static_cast<Result>(b) ? a : b; }
DLLM_MIN_MAX(int, int, int)
DLLM_MIN_MAX(unsigned, unsigned, unsigned)
DLLM_MIN_MAX(int, unsigned, unsigned)
DLLM_MIN_MAX(unsigned, int, unsigned)
DLLM_MIN_MAX(int64_t, int64_t, int64_t)
DLLM_MIN_MAX(uint64_t, uint64_t, uint64_t)
#undef DLLM_MIN_MAX

namespace dllm::emulate {

using Where = std::source_location;

// Which of the planted faults is on (tests/emulate.py); 0: none.
extern uint32_t fault;

void block_barrier(Where where);

// Each lane brings 64 bits and the lane whose bits it wants.
uint64_t shuffle(uint32_t mask, uint64_t bits, uint32_t source, Where where);
uint32_t ballot(uint32_t mask, bool predicate, Where where);
void warp_barrier(uint32_t mask, Where where);

inline uint32_t lane() { return threadIdx.x % 32; }

template <typename T>
T shuffle_value(uint32_t mask, T value, uint32_t source, Where where) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = shuffle(mask, bits, source, where);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace dllm::emulate

inline void __syncthreads(dllm::emulate::Where where = dllm::emulate::Where::current()) {
    dllm::emulate::block_barrier(where);
}

inline void __syncwarp(uint32_t mask = 0xFFFFFFFFu, dllm::emulate::Where where = dllm::emulate::Where::current()) {
    dllm::emulate::warp_barrier(mask, where);
}

// Of `width` neighbouring lanes; where the source would lie outside of them a lane has its own value.
template <typename T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32,
              dllm::emulate::Where where = dllm::emulate::Where::current()) {
    const uint32_t lane = dllm::emulate::lane(), first = lane / width * width;
    return dllm::emulate::shuffle_value(mask, value, first + static_cast<uint32_t>(source) % width, where);
}

template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, int width = 32,
                  dllm::emulate::Where where = dllm::emulate::Where::current()) {
    const uint32_t lane = dllm::emulate::lane(), source = lane ^ static_cast<uint32_t>(lane_mask);
    const uint32_t end = lane / width * width + width;
    return dllm::emulate::shuffle_value(mask, value, source < end ? source : lane, where);
}

template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                   dllm::emulate::Where where = dllm::emulate::Where::current()) {
    const uint32_t lane = dllm::emulate::lane(), end = lane / width * width + width;
    return dllm::emulate::shuffle_value(mask, value, lane + delta < end ? lane + delta : lane, where);
}

template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                 dllm::emulate::Where where = dllm::emulate::Where::current()) {
    const uint32_t lane = dllm::emulate::lane();
    return dllm::emulate::shuffle_value(mask, value, lane % width >= delta ? lane - delta : lane, where);
}

inline uint32_t __ballot_sync(uint32_t mask, bool predicate,
                              dllm::emulate::Where where = dllm::emulate::Where::current()) {
    return dllm::emulate::ballot(mask, predicate, where);
}

inline int __any_sync(uint32_t mask, bool predicate, dllm::emulate::Where where = dllm::emulate::Where::current()) {
    return dllm::emulate::ballot(mask, predicate, where) != 0;
}

inline int __all_sync(uint32_t mask, bool predicate, dllm::emulate::Where where = dllm::emulate::Where::current()) {
    return dllm::emulate::ballot(mask, !predicate, where) == 0;
}
