// What the threads of a block or the lanes of a warp do together: __syncthreads, and the meetings of a warp.
#include "collective.h"

#include <bit>
#include <cstring>

#include "barrier.h"
#include "dllm/mma.cuh"

namespace dllm::emulate {

bool same_place(const Where& a, const Where& b) {
    return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

namespace {

// Lanes that have ended are not waited for.
bool complete(const Meeting& meeting, const Warp& warp) { return (meeting.mask & warp.alive & ~meeting.arrived) == 0; }

void wake_others(const Meeting& meeting, Warp& warp, const Thread* but) {
    for (uint32_t lanes = meeting.arrived; lanes; lanes &= lanes - 1) {
        Thread* const thread = warp.lanes[std::countr_zero(lanes)];
        if (thread != but) wake(thread);
    }
}

}  // namespace

void meet(uint32_t mask, void* operand, void (*finish)(const Meeting&), const char* what, Where where) {
    Thread& thread = self();
    Warp& warp = *thread.warp;
    const uint32_t bit = 1u << thread.lane;
    if (!(mask & bit)) fail(std::string("this lane is not in the mask of its ") + what, &where);
    size_t i = 0;
    while (i < warp.meetings.size() && warp.meetings[i].mask != mask) ++i;
    if (i == warp.meetings.size())
        warp.meetings.push_back({.mask = mask, .finish = finish, .what = what, .where = where});
    Meeting& meeting = warp.meetings[i];
    if (meeting.what != what || !same_place(meeting.where, where)) {
        fail("lanes of a warp meet in different places: others are in " + std::string(meeting.what) + " at line " +
                 std::to_string(meeting.where.line()) + ", this one in " + what,
             &where);
    }
    meeting.operands[thread.lane] = operand;
    meeting.arrived |= bit;
    if (!complete(meeting, warp)) {
        park(what, where);
        return;
    }
    finish(meeting);
    const Meeting done = meeting;
    warp.meetings.erase(warp.meetings.begin() + static_cast<std::ptrdiff_t>(i));
    wake_others(done, warp, &thread);
}

void need_all_lanes(const Meeting& meeting) {
    if (meeting.arrived != kAllLanes) fail(std::string(meeting.what) + " needs all 32 lanes", &meeting.where);
}

float low_half(uint32_t pair) { return __uint_as_float(pair << 16); }
float high_half(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }

namespace {

struct Exchange {
    uint64_t bits;
    uint32_t source;
};

Exchange& exchange(const Meeting& meeting, uint32_t lane) { return *static_cast<Exchange*>(meeting.operands[lane]); }

void finish_shuffle(const Meeting& meeting) {
    uint64_t bits[32];
    for (uint32_t lanes = meeting.arrived; lanes; lanes &= lanes - 1) {
        const int lane = std::countr_zero(lanes);
        bits[lane] = exchange(meeting, lane).bits;
    }
    for (uint32_t lanes = meeting.arrived; lanes; lanes &= lanes - 1) {
        Exchange& mine = exchange(meeting, std::countr_zero(lanes));
        if (!(meeting.arrived >> mine.source & 1)) {
            fail("a shuffle reads lane " + std::to_string(mine.source) + ", which takes no part", &meeting.where);
        }
        mine.bits = bits[mine.source];
    }
}

void finish_ballot(const Meeting& meeting) {
    uint64_t votes = 0;
    for (uint32_t lanes = meeting.arrived; lanes; lanes &= lanes - 1) {
        const int lane = std::countr_zero(lanes);
        votes |= exchange(meeting, lane).bits << lane;
    }
    for (uint32_t lanes = meeting.arrived; lanes; lanes &= lanes - 1) {
        exchange(meeting, std::countr_zero(lanes)).bits = votes;
    }
}

void finish_mma(const Meeting& meeting) {
    need_all_lanes(meeting);
    float a[16][16], b[8][16];  // b by columns
    for (uint32_t lane = 0; lane < 32; ++lane) {
        const Fragments& brought = *static_cast<const Fragments*>(meeting.operands[lane]);
        const uint32_t group = lane / 4, pair = lane % 4 * 2;
        for (uint32_t word = 0; word < 4; ++word) {
            float* const target = &a[group + word % 2 * 8][pair + word / 2 * 8];
            target[0] = low_half(brought.a[word]);
            target[1] = high_half(brought.a[word]);
        }
        for (uint32_t word = 0; word < 2; ++word) {
            b[group][pair + word * 8] = low_half(brought.b[word]);
            b[group][pair + word * 8 + 1] = high_half(brought.b[word]);
        }
    }
    for (uint32_t lane = 0; lane < 32; ++lane) {
        float* const c = static_cast<const Fragments*>(meeting.operands[lane])->c;
        for (uint32_t i = 0; i < 4; ++i) {
            const float* const row = a[lane / 4 + i / 2 * 8];
            const float* const column = b[lane % 4 * 2 + i % 2];
            float sum = 0;
            for (int k = 0; k < 16; ++k) sum += row[k] * column[k];
            c[i] += sum;
        }
    }
}

struct Row {
    const void* address;
    uint4 words;
};

void finish_load_tiles(const Meeting& meeting) {
    need_all_lanes(meeting);
    const auto row = [&](uint32_t lane) -> Row& { return *static_cast<Row*>(meeting.operands[lane]); };
    for (uint32_t lane = 0; lane < 32; ++lane) {
        check_shared(*self().block, row(lane).address, 16, 16, "a row of ldmatrix_x4", &meeting.where);
    }
    for (uint32_t lane = 0; lane < 32; ++lane) {
        uint32_t words[4];
        for (uint32_t tile = 0; tile < 4; ++tile) {
            const auto* const from = static_cast<const char*>(row(tile * 8 + lane / 4).address);
            std::memcpy(&words[tile], from + lane % 4 * 4, 4);
        }
        row(lane).words = {words[0], words[1], words[2], words[3]};
    }
}

}  // namespace

void block_barrier(Where where) {
    Block& block = *self().block;
    if (block.at_barrier.empty()) block.barrier_where = where;
    if (!same_place(block.barrier_where, where)) {
        fail("threads of a block meet at different __syncthreads: others are at line " +
                 std::to_string(block.barrier_where.line()),
             &where);
    }
    block.at_barrier.push_back(&self());
    if (block.at_barrier.size() == block.alive) wake_all(block.at_barrier);
    park("__syncthreads", where);
}

uint64_t shuffle(uint32_t mask, uint64_t bits, uint32_t source, Where where) {
    Exchange mine{bits, source};
    meet(mask, &mine, finish_shuffle, "a shuffle", where);
    return mine.bits;
}

uint32_t ballot(uint32_t mask, bool predicate, Where where) {
    Exchange mine{predicate, 0};
    meet(mask, &mine, finish_ballot, "a vote", where);
    return static_cast<uint32_t>(mine.bits);
}

void warp_barrier(uint32_t mask, Where where) {
    meet(mask, nullptr, [](const Meeting&) {}, "__syncwarp", where);
}

void mma(Fragments fragments, Where where) { meet(kAllLanes, &fragments, finish_mma, "mma", where); }

uint4 ldmatrix_x4(const void* address, Where where) {
    Row row{address, {}};
    meet(kAllLanes, &row, finish_load_tiles, "ldmatrix_x4", where);
    return row.words;
}

// A thread that ends may have been the last that others waited for.
void leave_collectives(Thread& thread) {
    Warp& warp = *thread.warp;
    for (size_t i = 0; i < warp.meetings.size();) {
        const Meeting meeting = warp.meetings[i];
        if (!complete(meeting, warp)) {
            ++i;
            continue;
        }
        meeting.finish(meeting);
        warp.meetings.erase(warp.meetings.begin() + static_cast<std::ptrdiff_t>(i));
        wake_others(meeting, warp, nullptr);
    }
    Block& block = *thread.block;
    if (block.at_barrier.size() == block.alive) wake_all(block.at_barrier);
}

}  // namespace dllm::emulate
