// The emulated machine: the launches of one stream, their blocks, warps and threads, and who runs next.
//
// A thread is a fiber. It runs alone until it reaches a place of synchronisation; then a generator seeded by the run
// picks the next. Blocks start in the order of their index, several are alive at once, and a kernel may start while the
// one ahead of it is still running (programmatic dependent launch). Asynchronous copies land at a seeded time between
// issue and the wait for them. The seed also sets habits (Policy) that push each of these to its extremes.
//
// Modelled: mbarriers, bulk and tensor copies, cp.async, warp collectives, mma fragments, products of warpgroups,
// clusters, dependent launches, values handed over between blocks, which arrive late and in parts; memory that nobody
// wrote is NaN. Not modelled: weak memory (any other store is seen by all at once and in order, fences do nothing),
// named barriers, timing, the rounding inside the matrix unit, fused multiply-adds.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <source_location>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "fiber.h"

namespace dllm::emulate {

struct Thread;
struct Warp;
struct Block;

struct Launch {
    std::string kernel;
    dim3 grid;
    uint32_t cluster;  // blocks of one
    uint32_t threads, shared_bytes, shared_limit;
    void (*call)(const void* arguments);
    std::shared_ptr<const void> arguments;
    uint64_t blocks = 0, started = 0, triggered = 0, finished = 0;
    bool waited = false;
    std::vector<Thread*> waiting = {};  // for the launches ahead

    bool complete() const { return finished == blocks; }
};

// A copy of cp.async, or an arrival that waits for the copies before it.
struct ThreadCopy {
    void* target;
    const void* source;  // null: zeros
    uint64_t* arrival;   // an mbarrier, then it is no copy
    uint64_t group;
};

struct BulkCopy {
    std::function<void()> land;
    uint32_t bytes;
    uint64_t* barrier;
};

struct Thread {
    Fiber fiber;
    Block* block;
    Warp* warp;
    uint32_t number, lane;
    const char* waits_for;  // for the report of a deadlock
    Where where;
    std::vector<ThreadCopy> copies;
    uint64_t group;                     // of the copies that follow
    std::vector<const float4*> peeked;  // places seen incomplete, at none of which anything landed since
    bool peeking;                       // parked until something lands at one of them
    bool arrived;                       // at the cluster's barrier, and did not wait yet
    uint64_t cluster_phase;             // in which it arrived
};

// Lanes that meet: each leaves a pointer to what it brings, the last one works for all.
struct Meeting {
    uint32_t mask, arrived = 0;
    void (*finish)(const Meeting& meeting);
    const char* what;
    Where where;
    void* operands[32] = {};
};

// A product of a warpgroup, as far as one of its warps has it. From issue to completion c is NaN.
struct Product {
    uint64_t a, b;  // operands
    uint32_t tiles;
    float* c[32] = {};               // of each lane
    std::vector<float> before = {};  // what c was, if no product before this one has the same
    std::vector<float> values = {};  // [16][8 tiles], once the operands are read
    uint64_t group = 0;              // from 1 on, once committed
};

struct Warp {
    Block* block;
    uint32_t alive = 0, ready = 0;  // a bit a lane
    bool slow = false;
    uint64_t groups = 0;  // of products, committed
    size_t place = 0;     // in the list of warps that are ready
    Thread* lanes[32] = {};
    std::vector<Meeting> meetings = {};
    std::vector<Product> products = {};
    bool begun = false;       // wgmma_fence() since products were waited for
    uint64_t operations = 0;  // done with its warpgroup
};

// Four warps do the same one after the other, each in its own time.
struct Operation {
    const char* what;
    Where where;
    uint64_t a, b;
    uint32_t missing = 4;  // warps
};

struct Warpgroup {
    std::deque<Operation> operations = {};  // that some of the warps did not come to yet
    uint64_t passed = 0;                    // operations before those
};

// Neighbouring blocks, which start together.
struct Cluster {
    std::vector<Block*> blocks = {};          // null: ended
    uint32_t alive = 0, arrived = 0;          // threads
    uint64_t phase = 0;                       // of its barrier
    bool relaxed = false, published = false;  // an arrival of this phase; some phase had none such
    std::vector<Thread*> waiting = {};
};

struct BarrierState {
    uint64_t* word;
    uint32_t arrivals, pending;
    int64_t bytes = 0;
    uint64_t phase = 0;
    Thread* maker;
    bool announced = false;  // fence_mbarrier_init() after it was made
    std::vector<Thread*> waiting = {};
};

struct Block {
    Launch* launch;
    uint64_t launch_number;
    uint3 index;
    char* shared;
    uint32_t alive;  // threads
    std::shared_ptr<Cluster> cluster;
    std::vector<Thread*> threads = {};
    std::vector<std::unique_ptr<Warp>> warps = {};
    std::vector<Warpgroup> warpgroups = {};
    std::vector<BarrierState> barriers = {};
    std::vector<Thread*> at_barrier = {};  // __syncthreads
    Where barrier_where = {};
    std::vector<BulkCopy> bulk_copies = {};
    uint64_t copies_in_flight = 0;  // bulk copies and those of threads
    bool triggered = false;
};

// What a seed does all along. The first few seeds have each of the extremes.
struct Policy {
    uint32_t residency;   // blocks that may be alive
    double start;         // that a block which may start does so, at each turn
    double land_at_once;  // that a copy, or a value handed over, lands as soon as it is issued
    double land;          // that one does at each turn; 0: only when nothing else can happen
    double stay;          // that the warp which ran goes on
    double slow;          // that a warp gets a turn only now and then
    bool hold;            // stop at pdl_trigger() until the next kernel can go no further
};

Policy make_policy(uint64_t seed);

// From a running thread.
Thread& self();
void yield();
// Stops until somebody wakes the thread.
void park(const char* waits_for, Where where);
void wake(Thread* thread);
void wake_all(std::vector<Thread*>& threads);

// Ends the run, and the process: a fault is reported once, with who, what and where.
[[noreturn]] void fail(const std::string& what, const Where* where = nullptr);

uint64_t random_below(uint64_t bound);
bool chance(double probability);
const Policy& policy();

// Launches wait in a queue until run(), which runs them all.
void enqueue(Launch launch);
void run(uint64_t seed);
// All launches of this run, and the blocks that are alive.
std::vector<Launch>& launches();
const std::vector<Block*>& blocks();

// What other files of the machine do when it turns or a thread ends.
void land_some_copy();
bool land_a_copy_of_any_block();
void check_copies_at_end(const Block& block);
void leave_collectives(Thread& thread);
void leave_cluster(Thread& thread);
void check_products_at_end(const Thread& thread);
void check_warpgroups_at_end(const Block& block);
bool land_some_store();
bool release_held();
void launch_finished(uint64_t number);

}  // namespace dllm::emulate
