// Products of warpgroups (PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate"). Each warp has its part
// of them in its own time, as on the hardware, where nothing holds the four together; whether they did the same is
// looked at as they come. Operands are read when a product is issued or when it is waited for.
#include "barrier.h"
#include "collective.h"
#include "dllm/mma.cuh"

namespace dllm::emulate {
namespace {

// An operand: the offset in shared memory, above it the step, or the bytes of a box's row, then a mark for its kind.
constexpr uint64_t kPlainMark = 0x0BE1, kBoxMark = 0xB0C5;

struct Operand {
    uint64_t mark;
    uint32_t offset, step;
};

Operand operand_of(uint64_t word) {
    return {word >> 48, static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32 & 0xFFFF) * 16};
}

uint64_t word_of(uint64_t mark, const void* shared, uint32_t step) {
    const auto offset = static_cast<uint64_t>(static_cast<const char*>(shared) - self().block->shared);
    return mark << 48 | static_cast<uint64_t>(step / 16) << 32 | offset;
}

void check_operand(const Block& block, uint64_t word, uint32_t rows, const Where& where) {
    const auto [mark, offset, step] = operand_of(word);
    if (mark != kPlainMark && mark != kBoxMark)
        fail("this is no operand of wgmma_descriptor() or wgmma_descriptor_swizzled()", &where);
    const uint32_t bytes = mark == kPlainMark ? step + rows * 16 : rows * step - offset % step;
    check_shared(block, block.shared + offset, bytes, 16, "an operand", &where);
}

// Columns 0 to 15 of a row.
void read_row(const Block& block, uint64_t word, uint32_t row, float (&values)[16]) {
    const auto [mark, offset, step] = operand_of(word);
    for (uint32_t half = 0; half < 2; ++half) {
        uint32_t at = offset + row * 16 + half * step;
        if (mark == kBoxMark) {
            const uint32_t piece = offset % step / 16 + half, change = step == 64 ? row / 2 % 4 : row % 8;
            at = offset / step * step + row * step + (piece ^ change) * 16;
        }
        uint32_t pairs[4];
        std::memcpy(pairs, block.shared + at, sizeof pairs);
        for (uint32_t i = 0; i < 4; ++i) {
            values[half * 8 + i * 2] = low_half(pairs[i]);
            values[half * 8 + i * 2 + 1] = high_half(pairs[i]);
        }
    }
}

// Of the warp's 16 rows of a and all of b.
void read_operands(const Thread& thread, Product& product) {
    const Block& block = *thread.block;
    const uint32_t columns = product.tiles * 8, first_row = thread.number / 32 % 4 * 16;
    float a[16][16], b[256][16];
    for (uint32_t row = 0; row < 16; ++row) read_row(block, product.a, first_row + row, a[row]);
    for (uint32_t column = 0; column < columns; ++column) read_row(block, product.b, column, b[column]);
    product.values.resize(16 * columns);
    for (uint32_t row = 0; row < 16; ++row) {
        for (uint32_t column = 0; column < columns; ++column) {
            float sum = 0;
            for (int k = 0; k < 16; ++k) sum += a[row][k] * b[column][k];
            product.values[row * columns + column] = sum;
        }
    }
}

// Keeps what c is, and makes it NaN, unless a product before has done so.
void hold(Warp& warp, Product& product) {
    for (const Product& other : warp.products) {
        if (&other == &product) break;
        if (other.c[0] == product.c[0]) return;
    }
    const uint32_t count = product.tiles * 4;
    for (float* const c : product.c) {
        product.before.insert(product.before.end(), c, c + count);
        std::memset(c, 0xFF, count * sizeof *c);
    }
}

void release(const Product& product, const Where& where) {
    const uint32_t count = product.tiles * 4;
    for (uint32_t lane = 0; lane < 32; ++lane) {
        for (uint32_t i = 0; i < count; ++i) {
            float& c = product.c[lane][i];
            if (__float_as_uint(c) != 0xFFFFFFFFu) fail("c is written between wgmma() and the wait for it", &where);
            c = product.before[lane * count + i];
        }
    }
}

void complete(const Thread& thread, Product& product, const Where& where) {
    if (!product.before.empty()) release(product, where);
    if (product.values.empty()) read_operands(thread, product);
    for (uint32_t lane = 0; lane < 32; ++lane) {
        for (uint32_t i = 0; i < product.tiles * 4; ++i) {
            const uint32_t row = lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            product.c[lane][i] += product.values[row * product.tiles * 8 + column];
        }
    }
}

// What this warp does must be what the others of its warpgroup do.
void note(const Meeting& meeting, uint64_t a = 0, uint64_t b = 0) {
    need_all_lanes(meeting);
    const Thread& thread = self();
    const uint32_t number = thread.number / 128;
    if (number >= thread.block->warpgroups.size()) fail("a warpgroup has four warps", &meeting.where);
    Warpgroup& group = thread.block->warpgroups[number];
    const uint64_t index = thread.warp->operations++ - group.passed;
    if (index == group.operations.size()) group.operations.push_back({meeting.what, meeting.where, a, b});
    Operation& operation = group.operations[index];
    if (operation.what != meeting.what || !same_place(operation.where, meeting.where)) {
        fail("warps of a warpgroup are in different places: others are in " + std::string(operation.what) +
                 " at line " + std::to_string(operation.where.line()) + ", this one in " + meeting.what,
             &meeting.where);
    }
    if (operation.a != a || operation.b != b) fail("warps of a warpgroup have different operands", &meeting.where);
    --operation.missing;
    while (!group.operations.empty() && group.operations.front().missing == 0) {
        group.operations.pop_front();
        ++group.passed;
    }
}

struct Brought {
    uint64_t a, b;
    float* c;
    uint32_t tiles;
};

void finish_mma(const Meeting& meeting) {
    const auto brought = [&](uint32_t lane) { return *static_cast<const Brought*>(meeting.operands[lane]); };
    const Thread& thread = self();
    Warp& warp = *thread.warp;
    const Brought first = brought(0);
    note(meeting, first.a, first.b);
    check_operand(*thread.block, first.a, 64, meeting.where);
    check_operand(*thread.block, first.b, first.tiles * 8, meeting.where);
    if (!warp.begun) fail("wgmma() without wgmma_fence()", &meeting.where);
    Product product{.a = first.a, .b = first.b, .tiles = first.tiles};
    for (uint32_t lane = 0; lane < 32; ++lane) {
        if (brought(lane).a != first.a || brought(lane).b != first.b) {
            fail("lanes of a warp have different operands", &meeting.where);
        }
        product.c[lane] = brought(lane).c;
    }
    if (chance(policy().land_at_once)) read_operands(thread, product);
    warp.products.push_back(std::move(product));
    hold(warp, warp.products.back());
}

void finish_begin(const Meeting& meeting) {
    note(meeting);
    self().warp->begun = true;
}

void finish_commit(const Meeting& meeting) {
    note(meeting);
    Warp& warp = *self().warp;
    ++warp.groups;
    for (Product& product : warp.products) {
        if (product.group == 0) product.group = warp.groups;
    }
}

void finish_wait(const Meeting& meeting) {
    const uint64_t pending = *static_cast<const uint32_t*>(meeting.operands[0]);
    note(meeting, pending);
    Warp& warp = *self().warp;
    const auto due = [&](const Product& product) {
        return product.group > 0 && product.group + pending <= warp.groups;
    };
    for (Product& product : warp.products) {
        if (due(product)) complete(self(), product, meeting.where);
    }
    std::erase_if(warp.products, due);
    for (Product& product : warp.products) {
        if (product.before.empty()) hold(warp, product);
    }
    warp.begun = false;
}

}  // namespace

uint64_t wgmma_descriptor(const void* shared, uint32_t step, Where where) {
    check_shared(*self().block, shared, 128, 128, "an operand", &where);
    if (step % 128) fail("the step of an operand is not a multiple of 128", &where);
    return word_of(kPlainMark, shared, step);
}

uint64_t wgmma_descriptor_swizzled(const void* shared, uint32_t columns, Where where) {
    const uint32_t row_bytes = columns * 2;
    const auto* const box =
        reinterpret_cast<const char*>(reinterpret_cast<uint64_t>(shared) & ~uint64_t{row_bytes - 32});
    check_shared(*self().block, box, row_bytes * 8, row_bytes * 8, "eight rows of a box", &where);
    return word_of(kBoxMark, shared, row_bytes);
}

void wgmma(float* c, uint32_t tiles, uint64_t a, uint64_t b, Where where) {
    Brought brought{a, b, c, tiles};
    meet(kAllLanes, &brought, finish_mma, "wgmma", where);
}

// Between two of them a warp may fall behind the others.
void wgmma_fence(Where where) {
    meet(kAllLanes, nullptr, finish_begin, "wgmma_fence", where);
    if (chance(0.25)) yield();
}

void wgmma_commit(Where where) { meet(kAllLanes, nullptr, finish_commit, "wgmma_commit", where); }

void wgmma_wait(uint32_t pending, Where where) {
    if (chance(0.25)) yield();
    meet(kAllLanes, &pending, finish_wait, "wgmma_wait", where);
}

void check_products_at_end(const Thread& thread) {
    if (!thread.warp->products.empty()) {
        fail(thread.block->launch->kernel + ": a thread ends while products of its warpgroup were not waited for");
    }
}

void check_warpgroups_at_end(const Block& block) {
    for (const Warpgroup& group : block.warpgroups) {
        if (!group.operations.empty()) {
            fail(block.launch->kernel + ": some warps of a warpgroup never came to " + group.operations.front().what,
                 &group.operations.front().where);
        }
    }
}

}  // namespace dllm::emulate
