// csrc/include/dllm/grid.cuh for a CPU: the same functions, whose meaning is in ../grid.cpp and
// ../cluster.cpp.
#pragma once

#include <cstdint>

#include "cuda_runtime.h"

namespace dllm {

constexpr uint32_t kEmpty = 0xFFFFFFFFu;

constexpr bool kClusters = DLLM_HOPPER;

namespace emulate {

char* shared_memory();
void launch_dependents(Where where);
void wait_for_predecessors(Where where);
void hand_over(float4* place, float4 value, Where where);
float4 peek(const float4* place, Where where);
bool complete(float4 peeked);
void clear(float4* place, Where where);
void cluster_arrive(bool relaxed, Where where);
void cluster_wait(Where where);
float4 read_peer(const float4* mine, uint32_t rank, Where where);

}  // namespace emulate

inline char* shared_memory() { return emulate::shared_memory(); }

inline void read_now(const void*) {}
inline void read_now(uint32_t) {}

inline void launch_dependents(emulate::Where where = emulate::Where::current()) { emulate::launch_dependents(where); }

inline void wait_for_predecessors(emulate::Where where = emulate::Where::current()) {
    emulate::wait_for_predecessors(where);
}

inline void cluster_arrive(emulate::Where where = emulate::Where::current()) { emulate::cluster_arrive(false, where); }

inline void cluster_arrive_relaxed(emulate::Where where = emulate::Where::current()) {
    emulate::cluster_arrive(true, where);
}

inline void cluster_wait(emulate::Where where = emulate::Where::current()) { emulate::cluster_wait(where); }

inline float4 read_peer(const float4* mine, uint32_t rank, emulate::Where where = emulate::Where::current()) {
    return emulate::read_peer(mine, rank, where);
}

inline void hand_over(float4* place, float4 value, emulate::Where where = emulate::Where::current()) {
    emulate::hand_over(place, value, where);
}

inline float4 peek(const float4* place, emulate::Where where = emulate::Where::current()) {
    return emulate::peek(place, where);
}

inline bool complete(float4 peeked) { return emulate::complete(peeked); }

inline void clear(float4* place, emulate::Where where = emulate::Where::current()) { emulate::clear(place, where); }

}  // namespace dllm
