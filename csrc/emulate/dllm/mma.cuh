// csrc/include/dllm/mma.cuh for a CPU; the fragments are taken apart in ../collective.cpp.
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

}  // namespace emulate

inline void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1,
                     emulate::Where where = emulate::Where::current()) {
    emulate::mma({{a0, a1, a2, a3}, {b0, b1}, c}, where);
}

}  // namespace dllm
