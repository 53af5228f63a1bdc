// Asynchronous copies into shared memory, and the mbarriers on which they complete (PTX ISA, "Asynchronous copy",
// "mbarrier"), by cuda::ptx where it has the instruction. tests/emulator has the same functions for a CPU.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <cuda/ptx>

namespace dllm {

namespace ptx = cuda::ptx;

// An mbarrier in shared memory. A phase completes when `arrivals` arrivals and all expected bytes are in; then the
// next phase begins. Phases alternate in parity, the first has parity 0.
struct Barrier {
    uint64_t state;
};

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// By one thread. Before any other thread or copy uses the barrier: fence_mbarrier_init(), then __syncthreads().
__device__ __forceinline__ void mbarrier_init(Barrier* barrier, uint32_t arrivals) {
    ptx::mbarrier_init(&barrier->state, arrivals);
}

__device__ __forceinline__ void fence_mbarrier_init() {
    ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
}

__device__ __forceinline__ void mbarrier_arrive(Barrier* barrier) { ptx::mbarrier_arrive(&barrier->state); }

// One arrival, which also makes the phase wait for `bytes` of bulk copies.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(Barrier* barrier, uint32_t bytes) {
    ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &barrier->state, bytes);
}

// Returns when the phase of this parity has completed.
__device__ __forceinline__ void mbarrier_wait(Barrier* barrier, uint32_t parity) {
    while (!ptx::mbarrier_try_wait_parity(&barrier->state, parity)) {
    }
}

// What is read once: it does not push what is read again out of L2. A policy for bulk_load.
__device__ __forceinline__ uint64_t streaming_policy() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// One contiguous copy, both ends and `bytes` multiples of 16, by one thread. It counts as `bytes` on `barrier`.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, uint32_t bytes, Barrier* barrier,
                                          uint64_t policy) {
    asm volatile(
        "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
            shared_address(shared)),
        "l"(global), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
        : "memory");
}

// A matrix in global memory for tma_load_2d, made by tensor_map (launch.cuh); a kernel has it as a parameter declared
// `const __grid_constant__`.
using TensorMap = CUtensorMap;

__device__ __forceinline__ void prefetch_tensor_map(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Copies the map's box whose first element is (row, column) by one thread: rows of 64 or 128 bytes without gaps, zeros
// outside of the matrix. Of row r the piece p of 16 bytes lies at p ^ (r / 2 % 4), or at p ^ (r % 8) in rows of 128
// bytes, so that eight rows of the same piece lie in different banks ("64-byte swizzle", "128-byte swizzle"). `shared`
// is a multiple of eight rows; the whole box counts as its bytes on `barrier`.
__device__ __forceinline__ void tma_load_2d(void* shared, const TensorMap* map, int32_t row, int32_t column,
                                            Barrier* barrier) {
    const int32_t place[2] = {column, row};
    ptx::cp_async_bulk_tensor(ptx::space_shared, ptx::space_global, shared, map, place, &barrier->state);
}

// 16 bytes by one thread, through L2; zeros, without reading, where `real` is false.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool real) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(real ? 16 : 0)
                 : "memory");
}

// One arrival, counted in the barrier's `arrivals`, when this thread's copies so far have landed.
__device__ __forceinline__ void cp_async_arrive(Barrier* barrier) {
    ptx::cp_async_mbarrier_arrive_noinc(&barrier->state);
}

// This thread's copies since the last commit are one group; cp_async_wait<N> returns when all but the last N landed.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace dllm
