// csrc/include/dllm/grid.cuh for a CPU: the same functions, whose meaning is in ../grid.cpp and
// ../cluster.cpp.
#pragma once

#include <cstdint>

#include "cuda_runtime.h"

namespace dllm {

constexpr uint32_t kLamportEmpty = 0xFFFFFFFFu;

constexpr bool kHopper = DLLM_HOPPER;

namespace emulate {

char* shared_memory();
void pdl_trigger(Where where);
void pdl_wait(Where where);
void lamport_store(float4* place, float4 value, Where where);
float4 lamport_load(const float4* place, Where where);
bool lamport_ready(float4 peeked);
void lamport_reset(float4* place, Where where);
void cluster_arrive(bool relaxed, Where where);
void cluster_wait(Where where);
float4 dsmem_load(const float4* mine, uint32_t rank, Where where);

}  // namespace emulate

inline char* shared_memory() { return emulate::shared_memory(); }

inline void read_now(const void*) {}
inline void read_now(uint32_t) {}

inline void pdl_trigger(emulate::Where where = emulate::Where::current()) { emulate::pdl_trigger(where); }

inline void pdl_wait(emulate::Where where = emulate::Where::current()) { emulate::pdl_wait(where); }

inline void cluster_arrive(emulate::Where where = emulate::Where::current()) { emulate::cluster_arrive(false, where); }

inline void cluster_arrive_relaxed(emulate::Where where = emulate::Where::current()) {
    emulate::cluster_arrive(true, where);
}

inline void cluster_wait(emulate::Where where = emulate::Where::current()) { emulate::cluster_wait(where); }

inline float4 dsmem_load(const float4* mine, uint32_t rank, emulate::Where where = emulate::Where::current()) {
    return emulate::dsmem_load(mine, rank, where);
}

inline void lamport_store(float4* place, float4 value, emulate::Where where = emulate::Where::current()) {
    emulate::lamport_store(place, value, where);
}

inline float4 lamport_load(const float4* place, emulate::Where where = emulate::Where::current()) {
    return emulate::lamport_load(place, where);
}

inline bool lamport_ready(float4 peeked) { return emulate::lamport_ready(peeked); }

inline void lamport_reset(float4* place, emulate::Where where = emulate::Where::current()) {
    emulate::lamport_reset(place, where);
}

}  // namespace dllm
