// csrc/include/dllm/grid.cuh for a CPU: the same functions, whose meaning is in ../grid.cpp.
#pragma once

#include <cstdint>

#include "cuda_runtime.h"

namespace dllm {

constexpr uint32_t kEmpty = 0xFFFFFFFFu;

namespace emulate {

char* shared_memory();
void launch_dependents(Where where);
void wait_for_predecessors(Where where);
void hand_over(float4* place, float4 value, Where where);
float4 peek(const float4* place, Where where);
bool complete(float4 peeked);
void clear(float4* place, Where where);

}  // namespace emulate

inline char* shared_memory() { return emulate::shared_memory(); }

inline void read_now(const void*) {}
inline void read_now(uint32_t) {}

inline void launch_dependents(emulate::Where where = emulate::Where::current()) { emulate::launch_dependents(where); }

inline void wait_for_predecessors(emulate::Where where = emulate::Where::current()) {
    emulate::wait_for_predecessors(where);
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
