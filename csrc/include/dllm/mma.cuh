// The matrix unit: one warp multiplies a 16 x 16 by a 16 x 8 tile (PTX ISA, mma.m16n8k16). csrc/emulate has the same
// function for a CPU.
#pragma once

#include <cstdint>

namespace dllm {

// c[16 x 8] += a[16 x 16] b[16 x 8], bfloat16 products summed in float32. With g = lane / 4 and t = lane % 4, pairs of
// neighbouring values in a word, the lower index in the lower half:
//   a: rows g, g + 8, g, g + 8; columns 2t (words 0, 1) and 2t + 8 (words 2, 3)
//   b: column g; rows 2t (word 0) and 2t + 8 (word 1)
//   c: row g columns 2t, 2t + 1; row g + 8 columns 2t, 2t + 1
__device__ __forceinline__ void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

}  // namespace dllm
