// csrc/include/dllm/mma.cuh for a CPU; the fragments are taken apart in ../collective.cpp, the
// products of warpgroups are in ../warpgroup.cpp.
#pragma once

#include <cstdint>

#include "cuda_runtime.h"

namespace dllm {

namespace emulate {

struct Fragments {
    uint32_t a[4], b[2];
    float* c;
};

void mma(Fragments fragments, Where where);
uint4 ldmatrix_x4(const void* row, Where where);
uint64_t wgmma_descriptor(const void* shared, uint32_t step, Where where);
uint64_t wgmma_descriptor_swizzled(const void* shared, uint32_t columns, Where where);
void wgmma(float* c, uint32_t tiles, uint64_t a, uint64_t b, Where where);
void wgmma_fence(Where where);
void wgmma_commit(Where where);
void wgmma_wait(uint32_t pending, Where where);

}  // namespace emulate

inline void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1,
                     emulate::Where where = emulate::Where::current()) {
    emulate::mma({{a0, a1, a2, a3}, {b0, b1}, c}, where);
}

inline uint4 ldmatrix_x4(const void* row, emulate::Where where = emulate::Where::current()) {
    return emulate::ldmatrix_x4(row, where);
}

constexpr bool kHasWgmma = DLLM_HOPPER;

inline uint64_t wgmma_descriptor(const void* shared, uint32_t step, emulate::Where where = emulate::Where::current()) {
    return emulate::wgmma_descriptor(shared, step, where);
}

template <int kColumns>
uint64_t wgmma_descriptor_swizzled(const void* shared, emulate::Where where = emulate::Where::current()) {
    static_assert(kColumns == 32 || kColumns == 64);
    return emulate::wgmma_descriptor_swizzled(shared, kColumns, where);
}

template <int kTiles>
void wgmma(float (&c)[kTiles][4], uint64_t a, uint64_t b, emulate::Where where = emulate::Where::current()) {
    static_assert(kTiles % 2 == 0 && kTiles <= 32);
    emulate::wgmma(c[0], kTiles, a, b, where);
}

inline void keep_in_register(float&) {}

inline void wgmma_fence(emulate::Where where = emulate::Where::current()) { emulate::wgmma_fence(where); }

inline void wgmma_commit(emulate::Where where = emulate::Where::current()) { emulate::wgmma_commit(where); }

template <int kPending>
void wgmma_wait(emulate::Where where = emulate::Where::current()) {
    emulate::wgmma_wait(kPending, where);
}

}  // namespace dllm
