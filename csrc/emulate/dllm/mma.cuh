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
uint4 load_tiles(const void* row, Where where);
uint64_t operand(const void* shared, uint32_t step, Where where);
uint64_t operand_in_box(const void* shared, uint32_t columns, Where where);
void warpgroup_mma(float* c, uint32_t tiles, uint64_t a, uint64_t b, Where where);
void warpgroup_begin(Where where);
void warpgroup_commit(Where where);
void warpgroup_wait(uint32_t pending, Where where);

}  // namespace emulate

inline void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1,
                     emulate::Where where = emulate::Where::current()) {
    emulate::mma({{a0, a1, a2, a3}, {b0, b1}, c}, where);
}

inline uint4 load_tiles(const void* row, emulate::Where where = emulate::Where::current()) {
    return emulate::load_tiles(row, where);
}

constexpr bool kWarpgroups = DLLM_HOPPER;

inline uint64_t operand(const void* shared, uint32_t step, emulate::Where where = emulate::Where::current()) {
    return emulate::operand(shared, step, where);
}

template <int kColumns>
uint64_t operand_in_box(const void* shared, emulate::Where where = emulate::Where::current()) {
    static_assert(kColumns == 32 || kColumns == 64);
    return emulate::operand_in_box(shared, kColumns, where);
}

template <int kTiles>
void warpgroup_mma(float (&c)[kTiles][4], uint64_t a, uint64_t b, emulate::Where where = emulate::Where::current()) {
    static_assert(kTiles % 2 == 0 && kTiles <= 32);
    emulate::warpgroup_mma(c[0], kTiles, a, b, where);
}

inline void read_and_write(float&) {}

inline void warpgroup_begin(emulate::Where where = emulate::Where::current()) { emulate::warpgroup_begin(where); }

inline void warpgroup_commit(emulate::Where where = emulate::Where::current()) { emulate::warpgroup_commit(where); }

template <int kPending>
void warpgroup_wait(emulate::Where where = emulate::Where::current()) {
    emulate::warpgroup_wait(kPending, where);
}

}  // namespace dllm
