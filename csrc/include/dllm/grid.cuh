// What blocks and kernels have to say to each other: programmatic dependent launch (CUDA C++ Programming Guide), and
// values handed over through global memory. tests/emulator has the same functions for a CPU.
#pragma once

#include <cstdint>

namespace dllm {

// The dynamic shared memory of the block, aligned to 1024 bytes.
__device__ __forceinline__ char* shared_memory() {
    extern __shared__ __align__(1024) char memory[];
    return memory;
}

// Reads a kernel's parameter now, so that a later use finds it in the constant cache.
__device__ __forceinline__ void read_now(const void* parameter) { asm volatile("" ::"l"(parameter)); }
__device__ __forceinline__ void read_now(uint32_t parameter) { asm volatile("" ::"r"(parameter)); }

// Lets the next kernel of the stream start; what it reads of ours it must wait for.
__device__ __forceinline__ void pdl_trigger() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// Returns when the kernels before this one in the stream are complete and their stores visible. Nothing that they write
// may be read before, and nothing that they read may be written.
__device__ __forceinline__ void pdl_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Whether this is code for Hopper alone.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHopper = true;
#else
constexpr bool kHopper = false;
#endif

// Blocks that are neighbours along x may be launched as a cluster: they run at the same time and read each other's
// shared memory (CUDA C++ Programming Guide, "Thread Block Clusters").
// All threads of a cluster arrive, then wait for all to have arrived: what they wrote to shared memory before is then
// visible. Of global memory it says nothing: the fence that would is slow.
__device__ __forceinline__ void cluster_arrive() {
    asm volatile(
        "fence.release.sync_restrict::shared::cta.cluster;\n"
        "barrier.cluster.arrive.relaxed.aligned;" ::
            : "memory");
}

// The same after reading only.
__device__ __forceinline__ void cluster_arrive_relaxed() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }

// What block `rank` of the cluster has where this block has `mine`, in shared memory.
__device__ __forceinline__ float4 dsmem_load(const float4* mine, uint32_t rank) {
    float4 value;
    uint32_t place;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(place)
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(mine))), "r"(rank));
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
                 : "r"(place)
                 : "memory");
    return value;
}

// Blocks of one kernel hand each other float32 values through global memory that holds kLamportEmpty wherever nothing
// is handed over: a value is its own flag, so neither fences nor counters are needed (the "Lamport" exchange of
// TensorRT-LLM's all-reduce). Arithmetic never makes kLamportEmpty: a NaN that it makes is 0x7FFFFFFF.
constexpr uint32_t kLamportEmpty = 0xFFFFFFFFu;

// A value of kLamportEmpty, which only a NaN of somebody else's making can be, becomes another NaN: else its taker
// would wait for ever.
__device__ __forceinline__ void lamport_store(float4* place, float4 value) {
    const auto other = [](float x) { return min(__float_as_uint(x), kLamportEmpty - 1); };
    asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(place), "r"(other(value.x)),
                 "r"(other(value.y)), "r"(other(value.z)), "r"(other(value.w))
                 : "memory");
}

// What the place holds now, whole or in part kLamportEmpty.
__device__ __forceinline__ float4 lamport_load(const float4* place) {
    float4 value;
    asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
                 : "l"(place)
                 : "memory");
    return value;
}

// Whether lamport_load saw all that was handed over. A block that waits for it needs the giver to run. Blocks begin in
// the order of their numbers and givers are neighbours, so it is enough that as many find room on the card at once.
__device__ __forceinline__ bool lamport_ready(float4 seen) {
    return __float_as_uint(seen.x) != kLamportEmpty && __float_as_uint(seen.y) != kLamportEmpty &&
           __float_as_uint(seen.z) != kLamportEmpty && __float_as_uint(seen.w) != kLamportEmpty;
}

// Empties a place whose value was taken.
__device__ __forceinline__ void lamport_reset(float4* place) {
    const float empty = __uint_as_float(kLamportEmpty);
    *place = {empty, empty, empty, empty};
}

}  // namespace dllm
