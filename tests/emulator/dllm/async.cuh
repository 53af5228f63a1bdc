// csrc/include/dllm/async.cuh for a CPU: the same functions, whose meaning is in ../barrier.cpp and ../copy.cpp.
#pragma once

#include <cstdint>

#include "cuda_runtime.h"

namespace dllm {

struct Barrier {
    uint64_t state;
};

// As tensor_map makes it.
struct alignas(64) TensorMap {
    uint64_t mark;
    const void* matrix;
    int64_t rows, columns;
    uint32_t box_rows, box_columns;
};

namespace emulate {

constexpr uint64_t kStreamingPolicy = 0x12F0000000000000, kMapMark = 0x7E4502;

void mbarrier_init(uint64_t* word, uint32_t arrivals, Where where);
void fence_mbarrier_init();
void mbarrier_arrive(uint64_t* word, uint32_t bytes, Where where);
void mbarrier_wait(uint64_t* word, uint32_t parity, Where where);
void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* word, uint64_t policy, Where where);
void tma_load_2d(void* shared, const TensorMap& map, int32_t row, int32_t column, uint64_t* word, Where where);
void prefetch_tensor_map(const TensorMap& map, Where where);
void cp_async_16(void* shared, const void* global, bool real, Where where);
void cp_async_arrive(uint64_t* word, Where where);
void cp_async_commit();
void cp_async_wait(uint64_t pending);

}  // namespace emulate

inline void mbarrier_init(Barrier* barrier, uint32_t arrivals, emulate::Where where = emulate::Where::current()) {
    emulate::mbarrier_init(&barrier->state, arrivals, where);
}

inline void fence_mbarrier_init() { emulate::fence_mbarrier_init(); }

inline void mbarrier_arrive(Barrier* barrier, emulate::Where where = emulate::Where::current()) {
    emulate::mbarrier_arrive(&barrier->state, 0, where);
}

inline void mbarrier_arrive_expect_tx(Barrier* barrier, uint32_t bytes,
                                      emulate::Where where = emulate::Where::current()) {
    emulate::mbarrier_arrive(&barrier->state, bytes, where);
}

inline void mbarrier_wait(Barrier* barrier, uint32_t parity, emulate::Where where = emulate::Where::current()) {
    emulate::mbarrier_wait(&barrier->state, parity, where);
}

inline uint64_t streaming_policy() { return emulate::kStreamingPolicy; }

inline void bulk_load(void* shared, const void* global, uint32_t bytes, Barrier* barrier, uint64_t policy,
                      emulate::Where where = emulate::Where::current()) {
    emulate::bulk_load(shared, global, bytes, &barrier->state, policy, where);
}

inline void prefetch_tensor_map(const TensorMap* map, emulate::Where where = emulate::Where::current()) {
    emulate::prefetch_tensor_map(*map, where);
}

inline void tma_load_2d(void* shared, const TensorMap* map, int32_t row, int32_t column, Barrier* barrier,
                        emulate::Where where = emulate::Where::current()) {
    emulate::tma_load_2d(shared, *map, row, column, &barrier->state, where);
}

inline void cp_async_16(void* shared, const void* global, bool real, emulate::Where where = emulate::Where::current()) {
    emulate::cp_async_16(shared, global, real, where);
}

inline void cp_async_arrive(Barrier* barrier, emulate::Where where = emulate::Where::current()) {
    emulate::cp_async_arrive(&barrier->state, where);
}

inline void cp_async_commit() { emulate::cp_async_commit(); }

template <int kPending>
void cp_async_wait() {
    emulate::cp_async_wait(kPending);
}

}  // namespace dllm
