// What copies do to mbarriers.
#pragma once

#include "machine.h"

namespace dllm::emulate {

// Ends the run unless the bytes lie in the block's shared memory at a multiple of `alignment`.
void check_shared(const Block& block, const void* address, uint64_t bytes, uint64_t alignment, const char* what,
                  const Where* where);

BarrierState& barrier_at(Block& block, const uint64_t* word, const Where* where);
// The same for the thread that runs, which must be allowed to use it.
BarrierState& usable_barrier(const uint64_t* word, Where where);
void arrive(BarrierState& barrier);
void complete_bytes(BarrierState& barrier, uint32_t bytes);

}  // namespace dllm::emulate
