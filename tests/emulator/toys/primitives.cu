// Small kernels, one a primitive, for tests of the emulator; some break a rule on purpose. They are CUDA too.
#include <cstdint>

#include "calls.h"
#include "dllm/async.cuh"
#include "dllm/bf16.cuh"
#include "dllm/call.h"
#include "dllm/grid.cuh"
#include "dllm/launch.cuh"
#include "dllm/mma.cuh"

namespace dllm {

#define DLLM_TOY_PRIMITIVE(X) \
    X(const void*, input)     \
    X(void*, output)          \
    X(uint64_t*, counter)     \
    X(uint32_t, which)        \
    X(uint32_t, blocks)       \
    X(uint32_t, threads)      \
    X(uint32_t, shared_bytes) \
    X(uint32_t, rows)         \
    X(uint32_t, columns)      \
    X(int32_t, row)           \
    X(int32_t, column)
DLLM_CALL(ToyPrimitive, DLLM_TOY_PRIMITIVE)

namespace {

constexpr uint32_t kAll = 0xFFFFFFFFu, kBoxRows = 8, kBoxColumns = 32;

// output [16, 8] += a [16, 16] b [8, 16]^T, one after the other in `input`.
__device__ void product(const bf16* a, float* output) {
    const bf16* const b = a + 16 * 16;
    const auto pair = [](const bf16* values) { return *reinterpret_cast<const uint32_t*>(values); };
    const uint32_t g = threadIdx.x / 4, t = threadIdx.x % 4;
    float c[4];
    for (uint32_t i = 0; i < 4; ++i) c[i] = output[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
    a += g * 16 + 2 * t;
    mma_bf16(c, pair(a), pair(a + 8 * 16), pair(a + 8), pair(a + 8 * 16 + 8), pair(b + g * 16 + 2 * t),
             pair(b + g * 16 + 2 * t + 8));
    for (uint32_t i = 0; i < 4; ++i) output[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = c[i];
}

// `input` has 32 rows of 16 bytes, four tiles, which lie scattered in shared memory; output [32, 4] words.
__device__ void tiles(const uint4* input, uint4* output, uint32_t offset) {
    uint4* const row = reinterpret_cast<uint4*>(shared_memory()) + threadIdx.x * 7 % 32;
    *row = input[threadIdx.x];
    __syncwarp();
    output[threadIdx.x] = ldmatrix_x4(reinterpret_cast<char*>(row) + offset);
}

// output [11, 32]: what each lane gets.
__device__ void exchanges(uint32_t* output) {
    const uint32_t lane = threadIdx.x, odd = 0xAAAAAAAAu;
    uint32_t row = 0;
    const auto put = [&](uint32_t value) { output[row++ * 32 + lane] = value; };
    put(__shfl_sync(kAll, lane, 5));
    put(__shfl_sync(kAll, lane, 11, 8));
    put(__shfl_xor_sync(kAll, lane, 16));
    put(__shfl_xor_sync(kAll, lane, 8, 8));
    put(__shfl_down_sync(kAll, lane, 3));
    put(__shfl_down_sync(kAll, lane, 3, 8));
    put(static_cast<uint32_t>(__shfl_xor_sync(kAll, uint64_t{lane} << 32, 1) >> 32));
    put(__ballot_sync(kAll, lane % 3 == 0));
    put(lane % 2 ? __ballot_sync(odd, lane > 8) : 0);
    put(__any_sync(kAll, lane == 31) * 2 + __any_sync(kAll, false));
    put(__all_sync(kAll, lane < 32) * 2 + __all_sync(kAll, lane < 31));
}

// Thread 0 and the others take turns, by one barrier each; output [rounds, threads - 1] sees what thread 0 wrote.
__device__ void turns(float* output) {
    Barrier* const there = reinterpret_cast<Barrier*>(shared_memory());
    Barrier* const back = there + 1;
    volatile float* const value = reinterpret_cast<float*>(there + 2);
    const uint32_t others = blockDim.x - 1;
    if (threadIdx.x == 0) {
        mbarrier_init(there, 1);
        mbarrier_init(back, others);
        fence_mbarrier_init();
    }
    __syncthreads();
    for (uint32_t round = 0; round < 5; ++round) {
        if (threadIdx.x == 0) {
            mbarrier_wait(back, (round + 1) % 2);  // at once in the first round
            *value = static_cast<float>(round);
            mbarrier_arrive(there);
        } else {
            mbarrier_wait(there, round % 2);
            output[round * others + threadIdx.x - 1] = *value;
            mbarrier_arrive(back);
        }
    }
}

// Each thread copies 3 x 4 values, in two groups and zeros; output [threads, 2, 12] after the first group, and after
// all.
__device__ void groups(const float* input, float* output) {
    const uint32_t thread = threadIdx.x;
    float* const memory = reinterpret_cast<float*>(shared_memory()) + thread * 12;
    cp_async_16(memory, input + thread * 8, true);
    cp_async_commit();
    cp_async_16(memory + 4, input + thread * 8 + 4, true);
    cp_async_16(memory + 8, input, false);
    cp_async_commit();
    cp_async_wait<1>();
    for (int i = 0; i < 12; ++i) output[thread * 24 + i] = memory[i];
    cp_async_wait<0>();
    for (int i = 0; i < 12; ++i) output[thread * 24 + 12 + i] = memory[i];
}

// One bulk copy of 16 values; output [2, 16] before and after the wait. Its source changes after the issue.
__device__ void bulk(float* input, float* output, uint32_t expected, uint32_t bytes, uint32_t offset) {
    Barrier* const barrier = reinterpret_cast<Barrier*>(shared_memory());
    float* const memory = reinterpret_cast<float*>(barrier + 2);
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
    for (int i = 0; i < 16; ++i) memory[i] = -1;
    mbarrier_arrive_expect_tx(barrier, expected);
    bulk_load(reinterpret_cast<char*>(memory) + offset, input, bytes, barrier, streaming_policy());
    input[15] = 99;
    for (int i = 0; i < 16; ++i) output[i] = memory[i];
    mbarrier_wait(barrier, 0);
    for (int i = 0; i < 16; ++i) output[16 + i] = memory[i];
}

// What was handed over at the place, which is then empty.
__device__ float4 take(float4* place) {
    float4 peeked = lamport_load(place);
    while (!lamport_ready(peeked)) peeked = lamport_load(place);
    lamport_reset(place);
    return peeked;
}

// Each block hands four values to the next one of all, three times; output [3, blocks].
__device__ void ring(float4* places, float* output) {
    const uint32_t blocks = gridDim.x, block = blockIdx.x, behind = (block + blocks - 1) % blocks;
    float value = static_cast<float>(block);
    for (uint32_t round = 0; round < 3; ++round) {
        lamport_store(places + round * blocks + block, {value, value, value, value + 1});
        float4* const place = places + round * blocks + behind;
        const float4 taken = take(place);
        value = taken.x + taken.y + taken.z + taken.w;
        output[round * blocks + block] = value;
    }
}

__device__ void breaks_a_rule(uint32_t which, const ToyPrimitive& p) {
    Barrier* const barrier = reinterpret_cast<Barrier*>(shared_memory());
    float* const input = static_cast<float*>(const_cast<void*>(p.input));
    float* const output = static_cast<float*>(p.output);
    switch (which) {
        case 100:  // a lane does not come
            if (threadIdx.x != 7) __shfl_sync(kAll, 1, 0);
            if (threadIdx.x == 7) take(static_cast<float4*>(p.output));
            break;
        case 101:  // reads a lane that has ended
            if (threadIdx.x == 7) return;
            output[threadIdx.x] = __shfl_sync(kAll, 1.0f, 7);
            break;
        case 102:  // two places
            if (threadIdx.x < 16) {
                __syncthreads();
            } else {
                __syncthreads();
            }
            break;
        case 103:  // an arrival too many, while bytes are missing
            mbarrier_init(barrier, 1);
            mbarrier_arrive_expect_tx(barrier, 16);
            mbarrier_arrive(barrier);
            break;
        case 104:
            mbarrier_arrive(barrier);
            break;
        case 105:  // written over
            mbarrier_init(barrier, 1);
            *reinterpret_cast<float*>(barrier) = 1;
            mbarrier_wait(barrier, 1);
            break;
        case 106:
            bulk(input, output, 64, 60, 0);
            break;
        case 107:
            bulk(input, output, 64, 64, 8);
            break;
        case 108:
            bulk(input, output, 64, 64, 32);
            break;
        case 109:
            bulk(input + 2, output, 64, 64, 0);
            break;
        case 110:
            bulk(input + 4, output, 64, 64, 0);
            break;
        case 111:
            bulk(input, output, 48, 64, 0);
            break;
        case 112:
            bulk(input, output, 80, 64, 0);
            break;
        case 113:
            reinterpret_cast<float*>(shared_memory())[p.shared_bytes / 4] = 1;
            break;
        case 114:
            output[-1] = 1;
            break;
        case 115:
            output[0] = reinterpret_cast<const float4*>(input + 1)->x;
            break;
        case 116:
            output[0] = static_cast<float>(1 << (p.blocks + 31));
            break;
        case 117:  // fewer than 32 lanes
            if (threadIdx.x == 7) return;
            product(static_cast<const bf16*>(p.input), output);
            break;
        case 118:
            __syncwarp(kAll & ~(1u << threadIdx.x));
            break;
        case 122:
            tiles(static_cast<const uint4*>(p.input), static_cast<uint4*>(p.output), 8);
            break;
        case 123:
            tiles(static_cast<const uint4*>(p.input), static_cast<uint4*>(p.output), 16);
            break;
        case 124:
            if (threadIdx.x == 7) return;
            tiles(static_cast<const uint4*>(p.input), static_cast<uint4*>(p.output), 0);
            break;
        case 120:
            lamport_store(static_cast<float4*>(p.output), {1, 2, 3, 4});
            break;
        case 121:
            lamport_reset(static_cast<float4*>(p.output));
            break;
    }
}

__global__ void primitive_kernel(ToyPrimitive p) {
    if (p.which != 119) pdl_wait();
    float* const values = static_cast<float*>(p.output);
    switch (p.which) {
        case 0:
            product(static_cast<const bf16*>(p.input), values);
            break;
        case 1:
            exchanges(static_cast<uint32_t*>(p.output));
            break;
        case 2:
            turns(values);
            break;
        case 3:
            groups(static_cast<const float*>(p.input), values);
            break;
        case 4:
            bulk(static_cast<float*>(const_cast<void*>(p.input)), values, 64, 64, 0);
            break;
        case 5:  // the order of all threads
            __syncwarp();
            static_cast<uint64_t*>(p.output)[blockIdx.x * blockDim.x + threadIdx.x] = (*p.counter)++;
            break;
        case 6:
            values[threadIdx.x] = reinterpret_cast<float*>(shared_memory())[threadIdx.x];
            break;
        case 7:
            ring(static_cast<float4*>(const_cast<void*>(p.input)), values);
            break;
        case 8:
            tiles(static_cast<const uint4*>(p.input), static_cast<uint4*>(p.output), 0);
            break;
        default:
            breaks_a_rule(p.which, p);
    }
}

// One tensor copy by one thread; output [2, kBoxRows, kBoxColumns] before and after the wait. The last value of its
// source changes after the issue. Counts the blocks.
__global__ void box_kernel(const ToyPrimitive p, const __grid_constant__ TensorMap map) {
    pdl_wait();
    if ((*p.counter)++ > 0) return;
    Barrier* const barrier = reinterpret_cast<Barrier*>(shared_memory());
    bf16* const box = reinterpret_cast<bf16*>(shared_memory() + (p.which == 201 ? 256 : 512));
    bf16* const output = static_cast<bf16*>(p.output);
    constexpr uint32_t kValues = kBoxRows * kBoxColumns;
    const TensorMap none{};
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
    prefetch_tensor_map(&map);
    mbarrier_arrive_expect_tx(barrier, kValues * (p.which == 202 ? 1 : 2));
    tma_load_2d(box, p.which == 203 ? &none : &map, p.row, p.column, barrier);
    static_cast<bf16*>(const_cast<void*>(p.input))[p.rows * p.columns - 1] = to_bf16(99);
    for (uint32_t i = 0; i < kValues; ++i) output[i] = box[i];
    mbarrier_wait(barrier, 0);
    for (uint32_t i = 0; i < kValues; ++i) output[kValues + i] = box[i];
}

}  // namespace

void toy_primitive(const ToyPrimitive& p, cudaStream_t stream) {
    if (p.which >= 200) {
        launch("box", box_kernel, dim3(p.blocks), 1, p.shared_bytes, stream, p,
               tensor_map(p.input, p.rows, p.columns, kBoxRows));
    } else {
        launch("primitive", primitive_kernel, dim3(p.blocks), p.threads, p.shared_bytes, stream, p);
    }
}

DLLM_EMULATE(toy_primitive, ToyPrimitive)

}  // namespace dllm
