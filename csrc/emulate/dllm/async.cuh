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

void barrier_init(uint64_t* word, uint32_t arrivals, Where where);
void barriers_ready();
void barrier_arrive(uint64_t* word, uint32_t bytes, Where where);
void barrier_wait(uint64_t* word, uint32_t parity, Where where);
void bulk_copy(void* shared, const void* global, uint32_t bytes, uint64_t* word, uint64_t policy, Where where);
void tensor_copy(void* shared, const TensorMap& map, int32_t row, int32_t column, uint64_t* word, Where where);
void prefetch_map(const TensorMap& map, Where where);
void copy_16(void* shared, const void* global, bool real, Where where);
void arrive_when_copied(uint64_t* word, Where where);
void copies_commit();
void copies_wait(uint64_t pending);

}  // namespace emulate

inline void barrier_init(Barrier* barrier, uint32_t arrivals, emulate::Where where = emulate::Where::current()) {
    emulate::barrier_init(&barrier->state, arrivals, where);
}

inline void barriers_ready() { emulate::barriers_ready(); }

inline void barrier_arrive(Barrier* barrier, emulate::Where where = emulate::Where::current()) {
    emulate::barrier_arrive(&barrier->state, 0, where);
}

inline void barrier_arrive_expect(Barrier* barrier, uint32_t bytes, emulate::Where where = emulate::Where::current()) {
    emulate::barrier_arrive(&barrier->state, bytes, where);
}

inline void barrier_wait(Barrier* barrier, uint32_t parity, emulate::Where where = emulate::Where::current()) {
    emulate::barrier_wait(&barrier->state, parity, where);
}

inline uint64_t streaming_policy() { return emulate::kStreamingPolicy; }

inline void bulk_copy(void* shared, const void* global, uint32_t bytes, Barrier* barrier, uint64_t policy,
                      emulate::Where where = emulate::Where::current()) {
    emulate::bulk_copy(shared, global, bytes, &barrier->state, policy, where);
}

inline void prefetch_map(const TensorMap* map, emulate::Where where = emulate::Where::current()) {
    emulate::prefetch_map(*map, where);
}

inline void tensor_copy(void* shared, const TensorMap* map, int32_t row, int32_t column, Barrier* barrier,
                        emulate::Where where = emulate::Where::current()) {
    emulate::tensor_copy(shared, *map, row, column, &barrier->state, where);
}

inline void copy_16(void* shared, const void* global, bool real, emulate::Where where = emulate::Where::current()) {
    emulate::copy_16(shared, global, real, where);
}

inline void arrive_when_copied(Barrier* barrier, emulate::Where where = emulate::Where::current()) {
    emulate::arrive_when_copied(&barrier->state, where);
}

inline void copies_commit() { emulate::copies_commit(); }

template <int kPending>
void copies_wait() {
    emulate::copies_wait(kPending);
}

}  // namespace dllm
