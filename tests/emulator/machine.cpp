#include "machine.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <memory>

namespace dllm::emulate {
namespace {

constexpr uint32_t kThreadsAtOnce = 8192;  // a stack each
constexpr uint32_t kMaxClustered = 8;      // blocks of a cluster on every card that has them

std::vector<Launch> queue;
std::vector<Block*> alive;
std::vector<std::unique_ptr<Thread>> idle_threads;
std::vector<Warp*> ready[2];  // usual and slow
Thread* current = nullptr;
Warp* last = nullptr;
uint64_t next_launch = 0;
uint64_t state = 0;
Policy habits{};

uint64_t random_word() {
    // splitmix64
    uint64_t z = state += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

void unlist(Warp* warp) {
    auto& list = ready[warp->slow];
    list[warp->place] = list.back();
    list[warp->place]->place = warp->place;
    list.pop_back();
}

uint3 position(uint64_t number, const dim3& grid) {
    const uint64_t row = number / grid.x;
    return {static_cast<uint32_t>(number % grid.x), static_cast<uint32_t>(row % grid.y),
            static_cast<uint32_t>(row / grid.y)};
}

void begin_thread() {
    const Launch& launch = *current->block->launch;
    launch.call(launch.arguments.get());
}

void start_block(const std::shared_ptr<Cluster>& cluster) {
    Launch& launch = queue[next_launch];
    void* shared = nullptr;
    if (launch.shared_bytes) {
        if (posix_memalign(&shared, 1024, launch.shared_bytes) != 0) std::abort();
        std::memset(shared, 0xFF, launch.shared_bytes);
    }
    auto* const block = new Block{.launch = &launch,
                                  .launch_number = next_launch,
                                  .index = position(launch.started++, launch.grid),
                                  .shared = static_cast<char*>(shared),
                                  .alive = launch.threads,
                                  .cluster = cluster};
    cluster->blocks.push_back(block);
    cluster->alive += launch.threads;
    for (uint32_t i = 0; i < launch.threads; ++i) {
        if (i % 32 == 0) {
            block->warps.push_back(std::make_unique<Warp>(Warp{.block = block, .slow = chance(habits.slow)}));
        }
        if (idle_threads.empty()) idle_threads.push_back(std::make_unique<Thread>());
        Thread* const thread = idle_threads.back().release();
        idle_threads.pop_back();
        Warp* const warp = block->warps.back().get();
        thread->block = block;
        thread->warp = warp;
        thread->number = i;
        thread->lane = i % 32;
        thread->group = 0;
        thread->peeking = false;
        thread->arrived = false;
        thread->fiber.start(begin_thread);
        warp->lanes[i % 32] = thread;
        warp->alive |= 1u << i % 32;
        block->threads.push_back(thread);
    }
    block->warpgroups.resize(launch.threads / 128);
    for (Thread* thread : block->threads) wake(thread);
    alive.push_back(block);
}

void start_cluster() {
    const Launch& launch = queue[next_launch];
    const auto cluster = std::make_shared<Cluster>();
    for (uint32_t i = 0; i < launch.cluster; ++i) start_block(cluster);
    if (launch.started == launch.blocks) ++next_launch;
}

bool may_start_cluster() {
    if (next_launch == queue.size()) return false;
    const Launch& launch = queue[next_launch];
    const size_t blocks = alive.size() + launch.cluster;
    // At least 16: blocks of a group that wait for each other are alive together.
    if (blocks > habits.residency || blocks > std::max(16u, kThreadsAtOnce / launch.threads)) return false;
    return next_launch == 0 || queue[next_launch - 1].triggered == queue[next_launch - 1].blocks;
}

void end_block(Block* block) {
    check_copies_at_end(*block);
    check_warpgroups_at_end(*block);
    Launch& launch = *block->launch;
    if (!block->triggered) ++launch.triggered;
    const uint64_t number = block->launch_number;
    for (Thread* thread : block->threads) idle_threads.emplace_back(thread);
    std::erase(alive, block);
    std::ranges::replace(block->cluster->blocks, block, nullptr);
    std::free(block->shared);
    delete block;
    last = nullptr;
    ++launch.finished;
    if (launch.complete()) launch_finished(number);
}

void end_thread(Thread* thread) {
    Block* const block = thread->block;
    thread->warp->alive &= ~(1u << thread->lane);
    --block->alive;
    leave_collectives(*thread);
    leave_cluster(*thread);
    check_products_at_end(*thread);
    if (block->alive == 0) end_block(block);
}

Warp* pick_warp() {
    if (ready[0].empty() && ready[1].empty()) return nullptr;
    // The last kernel goes as far as it can before the ones ahead of it do anything.
    if (habits.hold && alive.front()->launch != alive.back()->launch) {
        for (const auto& list : ready) {
            for (Warp* warp : list) {
                if (warp->block->launch == alive.back()->launch) return warp;
            }
        }
    }
    if (last && last->ready && chance(habits.stay)) return last;
    const bool slow = ready[0].empty() || (!ready[1].empty() && random_below(64) == 0);
    return ready[slow][random_below(ready[slow].size())];
}

void resume(Warp* warp) {
    const auto turn = static_cast<int>(random_below(32));
    const uint32_t lane = (std::countr_zero(std::rotr(warp->ready, turn)) + turn) % 32;
    warp->ready &= ~(1u << lane);
    if (!warp->ready) unlist(warp);
    last = warp;
    current = warp->lanes[lane];
    Thread* const thread = current;
    threadIdx = {thread->number, 0, 0};
    blockIdx = warp->block->index;
    blockDim = dim3(warp->block->launch->threads);
    gridDim = warp->block->launch->grid;
    thread->fiber.resume();
    current = nullptr;
    if (thread->fiber.finished()) end_thread(thread);
}

std::string name(const uint3& index) {
    return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

std::string name(const Thread& thread) {
    return thread.block->launch->kernel + ", block " + name(thread.block->index) + ", thread " +
           std::to_string(thread.number);
}

std::string name(const Where& where) { return std::string(where.file_name()) + ":" + std::to_string(where.line()); }

void fail_deadlock() {
    std::string text = "deadlock: no thread can go on";
    uint64_t count = 0;
    for (const Block* block : alive) {
        for (const Thread* thread : block->threads) {
            if (thread->fiber.finished()) continue;
            if (++count <= 8) {
                text += "\n  " + name(*thread) + " waits for " + thread->waits_for + " at " + name(thread->where);
            }
        }
    }
    if (count > 8) text += "\n  and " + std::to_string(count - 8) + " more";
    fail(text);
}

}  // namespace

uint32_t fault = 0;

Thread& self() { return *current; }

void wake(Thread* thread) {
    Warp* const warp = thread->warp;
    if (!warp->ready) {
        warp->place = ready[warp->slow].size();
        ready[warp->slow].push_back(warp);
    }
    warp->ready |= 1u << thread->lane;
}

void wake_all(std::vector<Thread*>& threads) {
    for (Thread* thread : threads) wake(thread);
    threads.clear();
}

void yield() {
    wake(current);
    Fiber::suspend();
}

void park(const char* waits_for, Where where) {
    current->waits_for = waits_for;
    current->where = where;
    Fiber::suspend();
}

void fail(const std::string& what, const Where* where) {
    const std::string who = current ? name(*current) + ": " : "";
    const std::string at = where ? " (" + name(*where) + ")" : "";
    std::fprintf(stderr, "emulate: %s%s%s\n", who.c_str(), what.c_str(), at.c_str());
    std::fflush(stderr);
    _exit(3);
}

uint64_t random_below(uint64_t bound) { return random_word() % bound; }

bool chance(double probability) {
    return probability >= 1 || (probability > 0 && static_cast<double>(random_word() >> 11) * 0x1p-53 < probability);
}

const Policy& policy() { return habits; }
std::vector<Launch>& launches() { return queue; }
const std::vector<Block*>& blocks() { return alive; }

Policy make_policy(uint64_t seed) {
    // Neighbouring seeds differ in all habits, and eight in a row have every pair of landing and hold.
    constexpr double kLandAtOnce[] = {0, 0.125, 1, 0}, kLand[] = {0, 0.125, 0, 0.01};
    constexpr double kStay[] = {0, 0.9, 0.99}, kSlow[] = {0.25, 0.5, 0};
    return {
        .residency = seed % 4 == 3 ? kThreadsAtOnce : 16 + static_cast<uint32_t>(random_below(32)),
        .start = seed % 3 == 0 ? 1 : 0.03,
        .land_at_once = kLandAtOnce[seed % 4],
        .land = kLand[seed % 4],
        .stay = kStay[seed % 3],
        .slow = kSlow[seed / 3 % 3],
        .hold = ((seed ^ seed >> 2) & 1) == 0,
    };
}

void enqueue(Launch launch) {
    launch.blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
    if (launch.blocks == 0 || launch.grid.y > 65535 || launch.grid.z > 65535 || launch.threads == 0 ||
        launch.threads > 1024 || launch.shared_bytes > launch.shared_limit || launch.cluster == 0 ||
        launch.cluster > kMaxClustered || launch.grid.x % launch.cluster) {
        fail(launch.kernel + " could not be launched: grid " + name(launch.grid) + " in clusters of " +
             std::to_string(launch.cluster) + ", " + std::to_string(launch.threads) + " threads, " +
             std::to_string(launch.shared_bytes) + " bytes of shared memory");
    }
    queue.push_back(std::move(launch));
}

void run(uint64_t seed) {
    state = seed;
    habits = make_policy(seed);
    for (;;) {
        if (may_start_cluster() && chance(habits.start)) start_cluster();
        if (chance(habits.land)) land_some_copy();
        if (chance(habits.land)) land_some_store();
        if (Warp* const warp = pick_warp()) {
            resume(warp);
        } else if (may_start_cluster()) {
            start_cluster();
        } else if (!land_a_copy_of_any_block() && !land_some_store() && !release_held()) {
            break;
        }
    }
    if (!alive.empty()) fail_deadlock();
}

}  // namespace dllm::emulate
