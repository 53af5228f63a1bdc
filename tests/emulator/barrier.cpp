// mbarriers: PTX ISA, "mbarrier". The word in shared memory holds the number of a state
// beside it, so that a barrier that was never made, was moved or was written over is noticed.
#include "barrier.h"

#include "dllm/async.cuh"
#include "machine.h"

namespace dllm::emulate {
namespace {

constexpr uint64_t kMark = 0xBA221E2;  // above the number
constexpr int64_t kMost = (1 << 20) - 1;

BarrierState* find(Block& block, const uint64_t* word) {
    const uint64_t number = *word & 0xFFFFFFFF;
    const bool known = *word >> 32 == kMark && number < block.barriers.size() && block.barriers[number].word == word;
    return known ? &block.barriers[number] : nullptr;
}

void complete_if_due(BarrierState& barrier) {
    if (barrier.pending > 0) return;
    if (barrier.bytes < 0) fail("more bytes landed on an mbarrier than its phase expected");
    if (barrier.bytes > 0) return;
    barrier.pending = barrier.arrivals;
    ++barrier.phase;
    wake_all(barrier.waiting);
}

void add_bytes(BarrierState& barrier, int64_t bytes) {
    barrier.bytes += bytes;
    if (barrier.bytes > kMost || barrier.bytes < -kMost) fail("an mbarrier counts up to 2^20 - 1 bytes");
}

}  // namespace

BarrierState& barrier_at(Block& block, const uint64_t* word, const Where* where) {
    check_shared(block, word, sizeof *word, 8, "an mbarrier", where);
    BarrierState* const barrier = find(block, word);
    if (!barrier)
        fail("this is no mbarrier: mbarrier_init() was not called yet, or its memory was written over", where);
    return *barrier;
}

void mbarrier_init(uint64_t* word, uint32_t arrivals, Where where) {
    Block& block = *self().block;
    check_shared(block, word, sizeof *word, 8, "an mbarrier", &where);
    if (find(block, word)) fail("this mbarrier was made already", &where);
    if (arrivals < 1 || arrivals > kMost) fail("an mbarrier counts 1 to 2^20 - 1 arrivals", &where);
    *word = kMark << 32 | block.barriers.size();
    block.barriers.push_back({.word = word, .arrivals = arrivals, .pending = arrivals, .maker = &self()});
}

void fence_mbarrier_init() {
    for (BarrierState& barrier : self().block->barriers) {
        if (barrier.maker == &self()) barrier.announced = true;
    }
}

void arrive(BarrierState& barrier) {
    if (barrier.pending == 0) fail("an mbarrier has more arrivals in a phase than it was made for");
    --barrier.pending;
    complete_if_due(barrier);
}

void complete_bytes(BarrierState& barrier, uint32_t bytes) {
    add_bytes(barrier, -static_cast<int64_t>(bytes));
    complete_if_due(barrier);
}

void mbarrier_arrive(uint64_t* word, uint32_t bytes, Where where) {
    BarrierState& barrier = usable_barrier(word, where);
    add_bytes(barrier, bytes);
    arrive(barrier);
    yield();
}

BarrierState& usable_barrier(const uint64_t* word, Where where) {
    Thread& thread = self();
    BarrierState& barrier = barrier_at(*thread.block, word, &where);
    if (barrier.maker != &thread && !barrier.announced) {
        fail("an mbarrier is used by another thread than its maker before fence_mbarrier_init()", &where);
    }
    return barrier;
}

void mbarrier_wait(uint64_t* word, uint32_t parity, Where where) {
    if (parity > 1) fail("parity " + std::to_string(parity), &where);
    // Looked at anew when woken, as the hardware does: a phase may have gone by.
    while ((usable_barrier(word, where).phase & 1) == parity) {
        usable_barrier(word, where).waiting.push_back(&self());
        park("an mbarrier", where);
    }
    if (chance(0.25)) yield();
}

}  // namespace dllm::emulate
