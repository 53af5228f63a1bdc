// The matrix unit: products of tiles by one warp (PTX ISA, mma.m16n8k16, ldmatrix) and, where the card has them, by
// four warps at once (wgmma.mma_async). tests/emulator has the same functions for a CPU.
#pragma once

#include <cstdint>

#include "dllm/async.cuh"

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

// Four 8 x 8 tiles of shared memory by a warp: lane 8 i + r brings where row r of tile i begins, 16 bytes; lane 4 g + t
// takes of each tile i the values 2 t and 2 t + 1 of row g, as word i.
__device__ __forceinline__ uint4 ldmatrix_x4(const void* row) {
    uint4 words;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                 : "r"(shared_address(row))
                 : "memory");
    return words;
}

// Products of warpgroups: four warps, the first a multiple of four, run each function together. Warp w of them has of
// c[64 x 8 kTiles] the rows 16 w to 16 w + 15 as mma_bf16 does, tile by tile. The operands lie in shared memory,
// written by copies; c must not be touched between wgmma and the wait for its group.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasWgmma = true;
#else
constexpr bool kHasWgmma = false;
#endif

// An operand of 16 columns: rows of 16 bytes without gaps for columns 0 to 7, `step` bytes on for columns 8 to 15.
__device__ __forceinline__ uint64_t wgmma_descriptor(const void* shared, uint32_t step) {
    return (shared_address(shared) & 0x3FFFF) >> 4 | static_cast<uint64_t>(step >> 4) << 16 | uint64_t{128 >> 4} << 32;
}

// An operand of 16 columns in a box of tma_load_2d, kColumns wide, from its first column on, itself a multiple of 16.
template <int kColumns>
__device__ __forceinline__ uint64_t wgmma_descriptor_swizzled(const void* shared) {
    static_assert(kColumns == 32 || kColumns == 64);
    return (shared_address(shared) & 0x3FFFF) >> 4 | uint64_t{1} << 16 | uint64_t{kColumns * 16 >> 4} << 32 |
           uint64_t{kColumns == 32 ? 2 : 1} << 62;
}

// c[64 x 8 kTiles] += a b of two operands.
template <int kTiles>
__device__ __forceinline__ void wgmma(float (&c)[kTiles][4], uint64_t a, uint64_t b) {
    static_assert(kTiles == 4 || kTiles == 8 || kTiles == 10 || kTiles == 12 || kTiles == 16 || kTiles == 18 ||
                  kTiles == 20 || kTiles == 32);
#define DLLM_C(n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define DLLM_C2(n) DLLM_C(n), DLLM_C(n + 1)
#define DLLM_C4(n) DLLM_C2(n), DLLM_C2(n + 2)
#define DLLM_PRODUCT(columns, places, a_and_b, ...)                                                     \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" columns "k16.f32.bf16.bf16 {" places "}, " a_and_b \
                 ", 1, 1, 1, "                                                                          \
                 "0, 0;"                                                                                \
                 : __VA_ARGS__                                                                          \
                 : "l"(a), "l"(b))
#define DLLM_PLACES_4 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define DLLM_PLACES_8 DLLM_PLACES_4 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define DLLM_PLACES_10 DLLM_PLACES_8 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define DLLM_PLACES_12 DLLM_PLACES_8 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define DLLM_PLACES_16 DLLM_PLACES_12 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define DLLM_PLACES_18 DLLM_PLACES_16 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define DLLM_PLACES_20 DLLM_PLACES_16 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define DLLM_PLACES_32                                                                             \
    DLLM_PLACES_20                                                                                 \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"             \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
    ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
    if constexpr (kTiles == 4) {
        DLLM_PRODUCT("32", DLLM_PLACES_4, "%16, %17", DLLM_C4(0));
    } else if constexpr (kTiles == 8) {
        DLLM_PRODUCT("64", DLLM_PLACES_8, "%32, %33", DLLM_C4(0), DLLM_C4(4));
    } else if constexpr (kTiles == 10) {
        DLLM_PRODUCT("80", DLLM_PLACES_10, "%40, %41", DLLM_C4(0), DLLM_C4(4), DLLM_C2(8));
    } else if constexpr (kTiles == 12) {
        DLLM_PRODUCT("96", DLLM_PLACES_12, "%48, %49", DLLM_C4(0), DLLM_C4(4), DLLM_C4(8));
    } else if constexpr (kTiles == 16) {
        DLLM_PRODUCT("128", DLLM_PLACES_16, "%64, %65", DLLM_C4(0), DLLM_C4(4), DLLM_C4(8), DLLM_C4(12));
    } else if constexpr (kTiles == 18) {
        DLLM_PRODUCT("144", DLLM_PLACES_18, "%72, %73", DLLM_C4(0), DLLM_C4(4), DLLM_C4(8), DLLM_C4(12), DLLM_C2(16));
    } else if constexpr (kTiles == 20) {
        DLLM_PRODUCT("160", DLLM_PLACES_20, "%80, %81", DLLM_C4(0), DLLM_C4(4), DLLM_C4(8), DLLM_C4(12), DLLM_C4(16));
    } else if constexpr (kTiles == 32) {
        DLLM_PRODUCT("256", DLLM_PLACES_32, "%128, %129", DLLM_C4(0), DLLM_C4(4), DLLM_C4(8), DLLM_C4(12), DLLM_C4(16),
                     DLLM_C4(20), DLLM_C4(24), DLLM_C4(28));
    }
#undef DLLM_PLACES_32
#undef DLLM_PLACES_20
#undef DLLM_PLACES_18
#undef DLLM_PLACES_16
#undef DLLM_PLACES_12
#undef DLLM_PLACES_10
#undef DLLM_PLACES_8
#undef DLLM_PLACES_4
#undef DLLM_PRODUCT
#undef DLLM_C4
#undef DLLM_C2
#undef DLLM_C
}

// A value that may change here as far as the compiler knows.
__device__ __forceinline__ void keep_in_register(float& value) { asm volatile("" : "+f"(value)::"memory"); }

// Before the first product of a group, and after what the threads did to c.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// The products since the last commit are one group; wgmma_wait returns when all but the last kPending groups are
// complete.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

}  // namespace dllm
