// Two small kernels with everything that the real ones are made of, for tests of the emulator and for faults planted in
// it: a = x / rms(x) by rows, then c = a b^T with b in tiles of 32 rows by 32 columns. Calls may share a and partial.
#include <cstdint>

#include "calls.h"
#include "dllm/async.cuh"
#include "dllm/bf16.cuh"
#include "dllm/call.h"
#include "dllm/grid.cuh"
#include "dllm/launch.cuh"
#include "dllm/mma.cuh"

namespace dllm {

#define DLLM_TOY_PIPELINE(X) \
    X(const float*, x)       \
    X(bf16*, a)              \
    X(const bf16*, b)        \
    X(float*, partial)       \
    X(float*, c)             \
    X(uint32_t, rows)        \
    X(uint32_t, n)           \
    X(uint32_t, k)           \
    X(uint32_t, splits)
DLLM_CALL(ToyPipeline, DLLM_TOY_PIPELINE)

namespace {

constexpr int kTile = 32, kSlots = 3, kAStride = 40;
constexpr uint32_t kTileBytes = kTile * kTile * sizeof(bf16);

// What was handed over at the place, which is then empty.
__device__ float4 take(float4* place) {
    float4 peeked = lamport_load(place);
    while (!lamport_ready(peeked)) peeked = lamport_load(place);
    lamport_reset(place);
    return peeked;
}

__global__ void normalize_kernel(ToyPipeline p) {
    pdl_trigger();
    float* const row = reinterpret_cast<float*>(shared_memory());
    float* const sums = row + p.k;
    for (uint32_t i = threadIdx.x * 4; i < p.k; i += blockDim.x * 4)
        cp_async_16(row + i, p.x + blockIdx.x * p.k + i, true);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // the copies of all threads
    float sum = 0;
    for (uint32_t i = threadIdx.x; i < p.k; i += blockDim.x) sum += row[i] * row[i];
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, lanes);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();  // the sums of all warps
    const float scale = rsqrtf((sums[0] + sums[1]) / static_cast<float>(p.k));
    pdl_wait();  // the call before reads a
    for (uint32_t i = threadIdx.x; i < p.k; i += blockDim.x) p.a[blockIdx.x * p.k + i] = to_bf16(row[i] * scale);
}

struct Slot {
    bf16 a[16 * kAStride];
    bf16 b[kTile * kTile];
};

struct Memory {
    Slot slots[kSlots];
    alignas(16) float staged[16][kTile];
    Barrier full[kSlots], empty[kSlots];
};

__device__ __forceinline__ uint32_t pair(const bf16* values) { return *reinterpret_cast<const uint32_t*>(values); }

__global__ void product_kernel(ToyPipeline p) {
    pdl_trigger();
    Memory& memory = *reinterpret_cast<Memory*>(shared_memory());
    const uint32_t thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const uint32_t all_tiles = p.k / kTile, split = blockIdx.x, column = blockIdx.y * kTile;
    const uint32_t first = all_tiles * split / p.splits, tiles = all_tiles * (split + 1) / p.splits - first;
    if (thread == 0) {
        for (int slot = 0; slot < kSlots; ++slot) {
            mbarrier_init(&memory.full[slot], 64 + 1);
            mbarrier_init(&memory.empty[slot], 4);
        }
        fence_mbarrier_init();
    }
    __syncthreads();  // the barriers are made

    if (warp == 4) {
        if (lane == 0) {
            const uint64_t policy = streaming_policy();
            for (uint32_t i = 0; i < tiles; ++i) {
                Slot& slot = memory.slots[i % kSlots];
                if (i >= kSlots) mbarrier_wait(&memory.empty[i % kSlots], (i / kSlots - 1) % 2);  // for b
                mbarrier_arrive_expect_tx(&memory.full[i % kSlots], kTileBytes);
                const bf16* const tile = p.b + (blockIdx.y * all_tiles + first + i) * kTile * kTile;
                bulk_load(slot.b, tile, kTileBytes, &memory.full[i % kSlots], policy);
            }
        }
        pdl_wait();
    } else {
        pdl_wait();  // for a
        const auto copy_a = [&](uint32_t i) {
            if (thread >= 64 || i >= tiles) return;
            if (i >= kSlots) mbarrier_wait(&memory.empty[i % kSlots], (i / kSlots - 1) % 2);  // for a
            const uint32_t row = thread / 4, chunk = thread % 4 * 8;
            const bf16* const source = p.a + row * p.k + (first + i) * kTile + chunk;
            cp_async_16(memory.slots[i % kSlots].a + row * kAStride + chunk, row < p.rows ? source : p.a, row < p.rows);
            cp_async_arrive(&memory.full[i % kSlots]);
        };
        float sum[4] = {};
        copy_a(0);
        copy_a(1);
        for (uint32_t i = 0; i < tiles; ++i) {
            copy_a(i + 2);
            mbarrier_wait(&memory.full[i % kSlots], i / kSlots % 2);
            const Slot& slot = memory.slots[i % kSlots];
            for (int k = 0; k < kTile; k += 16) {
                const bf16* const a = slot.a + lane / 4 * kAStride + k + lane % 4 * 2;
                const bf16* const b = slot.b + (warp * 8 + lane / 4) * kTile + k + lane % 4 * 2;
                mma_bf16(sum, pair(a), pair(a + 8 * kAStride), pair(a + 8), pair(a + 8 * kAStride + 8), pair(b),
                         pair(b + 8));
            }
            __syncwarp();
            if (lane == 0) mbarrier_arrive(&memory.empty[i % kSlots]);
        }
        for (int i = 0; i < 4; ++i) memory.staged[lane / 4 + i / 2 * 8][warp * 8 + lane % 4 * 2 + i % 2] = sum[i];
    }

    __syncthreads();  // all of staged
    const auto place = [&](uint32_t s, uint32_t i) {
        return reinterpret_cast<float4*>(p.partial + (s * p.rows + i / kTile) * p.n + column + i % kTile);
    };
    for (uint32_t i = thread * 4; i < p.rows * kTile; i += blockDim.x * 4) {
        const float4 mine = *reinterpret_cast<const float4*>(&memory.staged[i / kTile][i % kTile]);
        if (split > 0) {
            lamport_store(place(split, i), mine);
            continue;
        }
        float4 total = mine;
        for (uint32_t s = 1; s < p.splits; ++s) {
            const float4 other = take(place(s, i));
            total = {total.x + other.x, total.y + other.y, total.z + other.z, total.w + other.w};
        }
        *reinterpret_cast<float4*>(p.c + i / kTile * p.n + column + i % kTile) = total;
    }
}

}  // namespace

void toy_pipeline(const ToyPipeline& p, cudaStream_t stream) {
    launch("normalize", normalize_kernel, dim3(p.rows), 64, p.k * 4 + 8, stream, p);
    launch("product", product_kernel, dim3(p.splits, p.n / kTile), 160, sizeof(Memory), stream, p);
}

DLLM_EMULATE(toy_pipeline, ToyPipeline)

}  // namespace dllm
