// N neighbouring values as one access; four float32 are 16 bytes.
#pragma once

namespace dllm {

template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
    T value[N];

    static __device__ __forceinline__ Pack load(const T* source) { return *reinterpret_cast<const Pack*>(source); }
    __device__ __forceinline__ void store(T* target) const { *reinterpret_cast<Pack*>(target) = *this; }
};

}  // namespace dllm
