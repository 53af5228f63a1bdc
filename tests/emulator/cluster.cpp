// Clusters of blocks: the barrier of all their threads (PTX ISA, "barrier.cluster") and the memory of peers.
#include "barrier.h"
#include "collective.h"
#include "dllm/grid.cuh"

namespace dllm::emulate {
namespace {

void complete_if_due(Cluster& cluster) {
    if (cluster.arrived == 0 || cluster.arrived < cluster.alive) return;
    cluster.published |= !cluster.relaxed;
    cluster.arrived = 0;
    cluster.relaxed = false;
    ++cluster.phase;
    wake_all(cluster.waiting);
}

void meet_warp(const char* what, Where where) {
    meet(kAllLanes, nullptr, [](const Meeting&) {}, what, where);
}

}  // namespace

void cluster_arrive(bool relaxed, Where where) {
    meet_warp("cluster_arrive", where);
    Thread& thread = self();
    Cluster& cluster = *thread.block->cluster;
    if (thread.arrived) fail("a thread arrives at its cluster's barrier again, without cluster_wait()", &where);
    thread.arrived = true;
    thread.cluster_phase = cluster.phase;
    cluster.relaxed |= relaxed;
    ++cluster.arrived;
    complete_if_due(cluster);
    if (chance(0.25)) yield();
}

void cluster_wait(Where where) {
    meet_warp("cluster_wait", where);
    Thread& thread = self();
    Cluster& cluster = *thread.block->cluster;
    if (!thread.arrived) fail("cluster_wait() without cluster_arrive()", &where);
    if (cluster.phase == thread.cluster_phase) {
        cluster.waiting.push_back(&thread);
        park("its cluster", where);
    }
    thread.arrived = false;
}

// A peer may not have begun, nor what it wrote be visible, until all have arrived once.
float4 dsmem_load(const float4* mine, uint32_t rank, Where where) {
    const Block& block = *self().block;
    const Cluster& cluster = *block.cluster;
    if (chance(0.25)) yield();
    check_shared(block, mine, sizeof *mine, 16, "what a peer is read for", &where);
    if (rank >= cluster.blocks.size()) fail("the cluster has no block " + std::to_string(rank), &where);
    const Block* const peer = cluster.blocks[rank];
    if (!peer) fail("the memory of a peer that has ended is read", &where);
    if (peer != &block && !cluster.published)
        fail("the memory of a peer is read before cluster_arrive() of all", &where);
    float4 value;
    std::memcpy(&value, peer->shared + (reinterpret_cast<const char*>(mine) - block.shared), sizeof value);
    return value;
}

void leave_cluster(Thread& thread) {
    const Block& block = *thread.block;
    if (thread.arrived) fail(block.launch->kernel + ": a thread ends between cluster_arrive() and cluster_wait()");
    --block.cluster->alive;
    complete_if_due(*block.cluster);
}

}  // namespace dllm::emulate
