// Programmatic dependent launch, values handed over through global memory, and the block's shared memory.
#include "dllm/grid.cuh"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "machine.h"

namespace dllm::emulate {
namespace {

// A float32 of a value handed over, on its way; those of one value arrive one by one.
struct Store {
    float4* place;
    uint32_t part;
    float value;
    uint64_t launch;
};

std::vector<Thread*> held;
std::vector<Store> stores;
std::unordered_multimap<const float4*, Thread*> peekers;  // by the places of Thread::peeked

float& part_of(float4& value, uint32_t part) {
    float* const parts[] = {&value.x, &value.y, &value.z, &value.w};
    return *parts[part];
}

bool is_empty(float value) { return __float_as_uint(value) == kLamportEmpty; }

void forget_peeks(Thread* thread) {
    for (const float4* place : thread->peeked) {
        const auto [first, last] = peekers.equal_range(place);
        peekers.erase(std::find_if(first, last, [&](const auto& peeker) { return peeker.second == thread; }));
    }
    thread->peeked.clear();
}

void land_store(size_t index) {
    const Store store = stores[index];
    stores[index] = stores.back();
    stores.pop_back();
    part_of(*store.place, store.part) = store.value;
    for (auto peeker = peekers.find(store.place); peeker != peekers.end(); peeker = peekers.find(store.place)) {
        Thread* const thread = peeker->second;
        forget_peeks(thread);
        if (std::exchange(thread->peeking, false)) wake(thread);
    }
}

}  // namespace

char* shared_memory() { return self().block->shared; }

// A block counts from its first thread on: the earliest that the hardware may do.
void pdl_trigger(Where where) {
    Block& block = *self().block;
    if (!block.triggered) ++block.launch->triggered;
    block.triggered = true;
    if (policy().hold && block.launch != &launches().back()) {
        held.push_back(&self());
        park("its turn after pdl_trigger()", where);
    } else {
        yield();
    }
}

bool release_held() {
    const bool any = !held.empty();
    wake_all(held);
    return any;
}

void pdl_wait(Where where) {
    const Block& block = *self().block;
    block.launch->waited = true;
    if (block.launch_number > 0 && !launches()[block.launch_number - 1].complete()) {
        block.launch->waiting.push_back(&self());
        park("the kernels ahead", where);
    } else {
        yield();
    }
}

void launch_finished(uint64_t number) {
    const Launch& launch = launches()[number];
    if (!launch.waited) fail(launch.kernel + " never called pdl_wait()");
    for (size_t i = stores.size(); i-- > 0;) {
        if (stores[i].launch == number) land_store(i);
    }
    if (number + 1 < launches().size()) wake_all(launches()[number + 1].waiting);
}

void lamport_store(float4* place, float4 value, Where where) {
    for (uint32_t part = 0; part < 4; ++part) {
        if (!is_empty(part_of(*place, part))) fail("a value is handed over at a place that is not empty", &where);
        const float handed = part_of(value, part);
        // The NaN of a GPU's arithmetic, where a CPU's keeps the bits of kLamportEmpty.
        stores.push_back(
            {place, part, is_empty(handed) ? __uint_as_float(0x7FFFFFFF) : handed, self().block->launch_number});
        if (chance(policy().land_at_once)) land_store(stores.size() - 1);
    }
    if (chance(0.25)) yield();
}

bool lamport_ready(float4 peeked) {
    return !is_empty(peeked.x) && !is_empty(peeked.y) && !is_empty(peeked.z) && !is_empty(peeked.w);
}

// A thread that looks again where it saw nothing new spins: it is parked until something lands where it looked.
float4 lamport_load(const float4* place, Where where) {
    Thread& thread = self();
    if (chance(0.25)) yield();
    if (lamport_ready(*place)) return *place;
    if (std::ranges::find(thread.peeked, place) != thread.peeked.end()) {
        thread.peeking = true;
        park("a value handed over", where);
    } else {
        thread.peeked.push_back(place);
        peekers.emplace(place, &thread);
    }
    return *place;
}

void lamport_reset(float4* place, Where where) {
    if (!lamport_ready(*place)) fail("a place is cleared before its value is there", &where);
    const float empty = __uint_as_float(kLamportEmpty);
    *place = {empty, empty, empty, empty};
}

bool land_some_store() {
    if (stores.empty()) return false;
    land_store(random_below(stores.size()));
    return true;
}

}  // namespace dllm::emulate
