// Asynchronous copies: bulk copies, which complete on an mbarrier, and cp.async, which a thread waits for. The target
// is NaN from issue to landing, the source is read when the copy lands, and copies land in any order.
#include <algorithm>
#include <cstring>
#include <functional>
#include <utility>

#include "barrier.h"
#include "dllm/async.cuh"
#include "machine.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace dllm::emulate {
namespace {

void check_multiple_of_16(const char* what, uint64_t value, const Where& where) {
    if (value % 16) fail(std::string(what) + " is not a multiple of 16", &where);
}

// Known with AddressSanitizer only.
void check_readable(const void* source, [[maybe_unused]] uint64_t bytes, const Where& where) {
#if defined(__SANITIZE_ADDRESS__)
    const auto* const bad = static_cast<const char*>(__asan_region_is_poisoned(const_cast<void*>(source), bytes));
    if (bad) {
        fail("a copy of " + std::to_string(bytes) + " bytes reads what is not allocated from byte " +
                 std::to_string(bad - static_cast<const char*>(source)) + " on",
             &where);
    }
#endif
    if (!source) fail("a copy from a null pointer", &where);
}

void check_source(const void* source, uint64_t bytes, const Where& where) {
    check_multiple_of_16("the address of a copy's source", reinterpret_cast<uint64_t>(source), where);
    check_readable(source, bytes, where);
}

void land_bulk(Block& block, size_t index) {
    const BulkCopy copy = block.bulk_copies[index];
    block.bulk_copies[index] = block.bulk_copies.back();
    block.bulk_copies.pop_back();
    --block.copies_in_flight;
    copy.land();
    complete_bytes(barrier_at(block, copy.barrier, nullptr), copy.bytes);
}

void perform(Block& block, const ThreadCopy& copy) {
    --block.copies_in_flight;
    if (copy.arrival) {
        arrive(barrier_at(block, copy.arrival, nullptr));
    } else if (copy.source) {
        std::memcpy(copy.target, copy.source, 16);
    } else {
        std::memset(copy.target, 0, 16);
    }
}

// The thread's copies before `end`.
void land_up_to(Thread& thread, size_t end) {
    for (size_t i = 0; i < end; ++i) perform(*thread.block, thread.copies[i]);
    thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<std::ptrdiff_t>(end));
}

void land_one(Thread& thread, size_t index) {
    const ThreadCopy copy = thread.copies[index];
    if (copy.arrival) {
        land_up_to(thread, index + 1);
    } else {
        thread.copies.erase(thread.copies.begin() + static_cast<std::ptrdiff_t>(index));
        perform(*thread.block, copy);
    }
}

bool land_bulk_of(Block& block) {
    if (block.bulk_copies.empty()) return false;
    land_bulk(block, random_below(block.bulk_copies.size()));
    return true;
}

void issue(ThreadCopy copy) {
    Thread& thread = self();
    copy.group = thread.group;
    thread.copies.push_back(copy);
    ++thread.block->copies_in_flight;
    if (chance(policy().land_at_once)) land_one(thread, thread.copies.size() - 1);
    if (chance(0.125)) yield();
}

void issue_bulk(void* target, uint32_t bytes, uint64_t* word, std::function<void()> land, const Where& where) {
    Block& block = *self().block;
    if (!usable_barrier(word, where).announced)
        fail("a bulk copy uses an mbarrier before fence_mbarrier_init()", &where);
    std::memset(target, 0xFF, bytes);
    block.bulk_copies.push_back({std::move(land), bytes, word});
    ++block.copies_in_flight;
    if (chance(policy().land_at_once)) land_bulk(block, block.bulk_copies.size() - 1);
    if (chance(0.5)) yield();
}

void check_map(const TensorMap& map, const Where& where) {
    if (map.mark != kMapMark) fail("this is no map of tensor_map()", &where);
}

// The box whose first element is (row, column), the pieces of eight values of each row in changed places.
void land_box(uint16_t* target, const TensorMap& map, int64_t row, int64_t column) {
    const uint32_t width = map.box_columns;
    for (uint32_t r = 0; r < map.box_rows; ++r) {
        const uint32_t change = width == 32 ? r / 2 % 4 : r % 8;
        for (uint32_t c = 0; c < width; ++c) {
            const int64_t i = row + r, j = column + c;
            const bool inside = i >= 0 && i < map.rows && j >= 0 && j < map.columns;
            target[r * width + (c / 8 ^ change) * 8 + c % 8] =
                inside ? static_cast<const uint16_t*>(map.matrix)[i * map.columns + j] : 0;
        }
    }
}

}  // namespace

void check_shared(const Block& block, const void* address, uint64_t bytes, uint64_t alignment, const char* what,
                  const Where* where) {
    const auto begin = reinterpret_cast<uint64_t>(address), memory = reinterpret_cast<uint64_t>(block.shared);
    if (begin < memory || begin + bytes > memory + block.launch->shared_bytes) {
        fail(std::string(what) + " lies outside of the block's shared memory", where);
    }
    if (begin % alignment) fail(std::string(what) + " is not aligned to " + std::to_string(alignment), where);
}

void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* word, uint64_t hint, Where where) {
    if (bytes == 0) fail("a bulk copy of nothing", &where);
    check_multiple_of_16("the size of a bulk copy", bytes, where);
    check_shared(*self().block, shared, bytes, 16, "the target of a bulk copy", &where);
    check_source(global, bytes, where);
    if (hint != kStreamingPolicy) fail("this is no policy of streaming_policy()", &where);
    issue_bulk(shared, bytes, word, [=] { std::memcpy(shared, global, bytes); }, where);
}

void tma_load_2d(void* shared, const TensorMap& map, int32_t row, int32_t column, uint64_t* word, Where where) {
    check_map(map, where);
    const uint32_t bytes = map.box_rows * map.box_columns * 2;
    check_shared(*self().block, shared, bytes, map.box_columns * 16, "the target of a tensor copy", &where);
    check_readable(map.matrix, static_cast<uint64_t>(map.rows * map.columns) * 2, where);
    auto* const target = static_cast<uint16_t*>(shared);
    issue_bulk(target, bytes, word, [=] { land_box(target, map, row, column); }, where);
}

void prefetch_tensor_map(const TensorMap& map, Where where) { check_map(map, where); }

void cp_async_16(void* shared, const void* global, bool real, Where where) {
    check_shared(*self().block, shared, 16, 16, "the target of cp_async_16", &where);
    if (real) check_source(global, 16, where);
    std::memset(shared, 0xFF, 16);
    issue({.target = shared, .source = real ? global : nullptr, .arrival = nullptr, .group = 0});
}

void cp_async_arrive(uint64_t* word, Where where) {
    usable_barrier(word, where);
    issue({.target = nullptr, .source = nullptr, .arrival = word, .group = 0});
}

void cp_async_commit() { ++self().group; }

void cp_async_wait(uint64_t pending) {
    Thread& thread = self();
    yield();
    size_t end = 0;
    while (end < thread.copies.size() && thread.copies[end].group + pending < thread.group) ++end;
    land_up_to(thread, end);
}

void land_some_copy() {
    if (blocks().empty()) return;
    Block& block = *blocks()[random_below(blocks().size())];
    Thread& thread = *block.threads[random_below(block.threads.size())];
    if (!thread.copies.empty()) {
        land_one(thread, random_below(thread.copies.size()));
    } else {
        land_bulk_of(block);
    }
}

bool land_a_copy_of_any_block() {
    std::vector<Block*> candidates;
    for (Block* block : blocks()) {
        if (block->copies_in_flight) candidates.push_back(block);
    }
    if (candidates.empty()) return false;
    Block& block = *candidates[random_below(candidates.size())];
    const bool bulk_only = block.bulk_copies.size() == block.copies_in_flight;
    if ((bulk_only || chance(0.5)) && land_bulk_of(block)) return true;
    const size_t first = random_below(block.threads.size());
    for (size_t i = 0; i < block.threads.size(); ++i) {
        Thread& thread = *block.threads[(first + i) % block.threads.size()];
        if (!thread.copies.empty()) {
            land_up_to(thread, thread.copies.size());
            return true;
        }
    }
    return false;
}

void check_copies_at_end(const Block& block) {
    if (block.copies_in_flight) {
        fail(block.launch->kernel + ": a block ends while " + std::to_string(block.copies_in_flight) +
             " of its copies, or arrivals after them, are still under way");
    }
}

}  // namespace dllm::emulate
