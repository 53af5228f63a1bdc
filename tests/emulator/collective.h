// What the lanes of a warp do together.
#pragma once

#include "machine.h"

namespace dllm::emulate {

constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

// Returns when all lanes of `mask` that have not ended are here and the last of them has run `finish`.
void meet(uint32_t mask, void* operand, void (*finish)(const Meeting&), const char* what, Where where);

bool same_place(const Where& a, const Where& b);
// For a `finish`: ends the run where a lane has ended.
void need_all_lanes(const Meeting& meeting);

// The bfloat16 values of a pair.
float low_half(uint32_t pair);
float high_half(uint32_t pair);

}  // namespace dllm::emulate
