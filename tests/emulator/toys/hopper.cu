// Small kernels of what only Hopper has, products of warpgroups and clusters, for tests of the emulator; some break a
// rule on purpose. They are CUDA too.
#include <cstdint>

#include "calls.h"
#include "dllm/async.cuh"
#include "dllm/bf16.cuh"
#include "dllm/call.h"
#include "dllm/grid.cuh"
#include "dllm/launch.cuh"
#include "dllm/mma.cuh"

namespace dllm {

#define DLLM_TOY_HOPPER(X) \
    X(const bf16*, x)      \
    X(const bf16*, y)      \
    X(float*, output)      \
    X(uint32_t*, counter)  \
    X(uint32_t, which)     \
    X(uint32_t, blocks)    \
    X(uint32_t, cluster)   \
    X(uint32_t, threads)
DLLM_CALL(ToyHopper, DLLM_TOY_HOPPER)

namespace {

constexpr uint32_t kXBytes = 64 * 16 * 2, kYBytes = 64 * 32 * 2, kX = 512, kY = kX + kXBytes, kBytes = kY + kYBytes;

// Brings x and y into shared memory.
__device__ void bring(const ToyHopper& p, const TensorMap* map) {
    Barrier* const barrier = reinterpret_cast<Barrier*>(shared_memory());
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect_tx(barrier, kXBytes + kYBytes);
        bulk_load(shared_memory() + kX, p.x, kXBytes, barrier, streaming_policy());
        tma_load_2d(shared_memory() + kY, map, 0, 0, barrier);
    }
    __syncthreads();
    mbarrier_wait(barrier, 0);
}

__device__ uint64_t x_operand() { return wgmma_descriptor(shared_memory() + kX, kXBytes / 2); }
__device__ uint64_t y_operand(uint32_t half) { return wgmma_descriptor_swizzled<32>(shared_memory() + kY + half * 32); }

// output [number][64, 8 kTiles]
template <int kTiles>
__device__ void put(float* output, uint32_t number, const float (&c)[kTiles][4]) {
    const uint32_t lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
    for (uint32_t n = 0; n < kTiles; ++n) {
        for (uint32_t i = 0; i < 4; ++i) {
            output[(number * 64 + row + i / 2 * 8) * kTiles * 8 + n * 8 + lane % 4 * 2 + i % 2] = c[n][i];
        }
    }
}

// output [2][64, 8 kTiles]: 1 + a b^T, before and after the wait. x[0] changes in between.
template <int kTiles>
__device__ void product(float* output, uint64_t a, uint64_t b) {
    float c[kTiles][4];
    for (auto& tile : c) {
        for (float& value : tile) value = 1;
    }
    wgmma_fence();
    wgmma<kTiles>(c, a, b);
    wgmma_commit();
    put(output, 0, c);
    __syncthreads();
    if (threadIdx.x == 0) *reinterpret_cast<bf16*>(shared_memory() + kX) = to_bf16(99);
    __syncthreads();
    wgmma_wait<0>();
    put(output, 1, c);
}

// output [3][64, 64]: two products in one place, and one that is not in the group waited for, before and after its own.
__device__ void groups(float* output) {
    float c[8][4] = {}, d[8][4] = {};
    wgmma_fence();
    wgmma<8>(c, x_operand(), y_operand(0));
    wgmma<8>(c, x_operand(), y_operand(1));
    wgmma_commit();
    wgmma<8>(d, x_operand(), y_operand(0));
    wgmma_wait<0>();
    put(output, 0, c);
    put(output, 1, d);
    wgmma_commit();
    wgmma_wait<0>();
    put(output, 2, d);
}

// output [3][64, 64]: of two groups the first, and the last before and after it is waited for.
__device__ void pending(float* output) {
    float c[8][4] = {}, d[8][4] = {};
    wgmma_fence();
    wgmma<8>(c, x_operand(), y_operand(0));
    wgmma_commit();
    wgmma<8>(d, x_operand(), y_operand(1));
    wgmma_commit();
    wgmma_wait<1>();
    put(output, 0, c);
    put(output, 1, d);
    wgmma_wait<0>();
    put(output, 2, d);
}

__device__ void breaks_a_rule_of_products(const ToyHopper& p) {
    const uint32_t warp = threadIdx.x / 32;
    float c[8][4] = {};
    switch (p.which) {
        case 100:
            wgmma<8>(c, x_operand(), y_operand(0));
            break;
        case 101:  // does not wait
            wgmma_fence();
            wgmma<8>(c, x_operand(), y_operand(0));
            wgmma_commit();
            break;
        case 102:  // waits for nothing
            wgmma_fence();
            wgmma<8>(c, x_operand(), y_operand(0));
            wgmma_wait<0>();
            break;
        case 103:
            wgmma_fence();
            wgmma<8>(c, x_operand(), y_operand(0));
            wgmma_commit();
            c[7][3] = 0;
            wgmma_wait<0>();
            break;
        case 104:  // two places
            if (warp < 3) {
                wgmma_fence();
            } else {
                wgmma_fence();
            }
            break;
        case 105:  // a warp does not come
            if (warp < 3) wgmma_fence();
            break;
        case 106:
            wgmma_fence();
            wgmma<8>(c, x_operand(), y_operand(warp / 3));
            wgmma_commit();
            wgmma_wait<0>();
            break;
        case 107:
            wgmma_fence();
            wgmma<8>(c, x_operand(), y_operand(threadIdx.x % 2));
            break;
        case 108:  // with fewer than 128 threads
            wgmma_fence();
            break;
        case 109:
            wgmma_descriptor(shared_memory() + kX + 16, 1024);
            break;
        case 110:
            wgmma_descriptor(shared_memory() + kX, 1040);
            break;
        case 111:
            wgmma_descriptor_swizzled<32>(shared_memory() + kY + 16);
            break;
        case 112:  // its last columns are past the end
            wgmma_fence();
            wgmma<8>(c, wgmma_descriptor(shared_memory() + kX, kBytes - kX), y_operand(0));
            break;
        case 113:
            wgmma_fence();
            wgmma<8>(c, 1, y_operand(0));
            break;
        case 114:
            if (threadIdx.x == 7) return;
            wgmma_fence();
            break;
        case 115:  // a new group without a new beginning
            wgmma_fence();
            wgmma_wait<0>();
            wgmma<8>(c, x_operand(), y_operand(0));
            break;
    }
}

__global__ void product_kernel(const ToyHopper p, const __grid_constant__ TensorMap map) {
    pdl_wait();
    if (p.which < 100) bring(p, &map);
    switch (p.which) {
        case 0:
            product<8>(p.output, x_operand(), y_operand(0));
            break;
        case 1:
            product<4>(p.output, y_operand(1), x_operand());
            break;
        case 2:
            groups(p.output);
            break;
        case 3:
            pending(p.output);
            break;
        default:
            breaks_a_rule_of_products(p);
    }
}

// output [blocks, cluster]: what each block reads of each in its cluster. counter [2, blocks, threads]: how many
// threads of the cluster had come to the barrier when a thread left its arrival, and its wait; after it as many zeros
// as blocks.
__device__ void peers(const ToyHopper& p) {
    const uint32_t thread = blockIdx.x * p.threads + threadIdx.x, all = p.blocks * p.threads;
    uint32_t& come = p.counter[2 * all + blockIdx.x / p.cluster];
    float4* const mine = reinterpret_cast<float4*>(shared_memory()) + 1;
    if (threadIdx.x == 0) *mine = {static_cast<float>(blockIdx.x), 0, 0, 1};
    ++come;
    cluster_arrive();
    p.counter[thread] = come;
    cluster_wait();
    p.counter[all + thread] = come;
    if (threadIdx.x < p.cluster) {
        const float4 value = dsmem_load(mine, threadIdx.x);
        p.output[blockIdx.x * p.cluster + threadIdx.x] = value.x + value.w;
    }
    cluster_arrive_relaxed();
    cluster_wait();
}

__device__ void breaks_a_rule_of_clusters(const ToyHopper& p) {
    float4* const mine = reinterpret_cast<float4*>(shared_memory());
    *mine = {};
    switch (p.which) {
        case 210:
            dsmem_load(mine, 1 - blockIdx.x);
            break;
        case 211:  // nothing says that what was written is to be seen
            cluster_arrive_relaxed();
            cluster_wait();
            dsmem_load(mine, 1 - blockIdx.x);
            break;
        case 212:  // nobody waits for the readers
            cluster_arrive();
            cluster_wait();
            dsmem_load(mine, 1 - blockIdx.x);
            break;
        case 213:
            cluster_arrive();
            cluster_arrive();
            break;
        case 214:
            cluster_wait();
            break;
        case 215:
            cluster_arrive();
            break;
        case 216:
            dsmem_load(mine, 2);
            break;
        case 217:
            dsmem_load(mine + kBytes / 16, 0);
            break;
        case 218:  // a block waits for something else
            if (blockIdx.x == 1) {
                Barrier* const barrier = reinterpret_cast<Barrier*>(shared_memory());
                if (threadIdx.x == 0) mbarrier_init(barrier, 1);
                if (threadIdx.x == 0) mbarrier_wait(barrier, 0);
            }
            cluster_arrive();
            cluster_wait();
            break;
    }
}

__global__ void cluster_kernel(const ToyHopper p) {
    pdl_wait();
    if (p.which == 200) {
        peers(p);
    } else {
        breaks_a_rule_of_clusters(p);
    }
}

}  // namespace

void toy_hopper(const ToyHopper& p, cudaStream_t stream) {
    if (p.which < 200) {
        launch("product", product_kernel, dim3(1), p.threads, kBytes, stream, p, tensor_map(p.y, 64, 32, 64));
    } else {
        launch("cluster", cluster_kernel, Grid(dim3(p.blocks), p.cluster), p.threads, kBytes, stream, p);
    }
}

DLLM_EMULATE(toy_hopper, ToyHopper)

}  // namespace dllm
