#include "calls.h"

#include "dllm/kernels.h"

namespace dllm::emulate {

std::map<std::string, Call>& calls() {
    static std::map<std::string, Call> all;
    return all;
}

}  // namespace dllm::emulate

// One line a kernel. A runner may be built without it.
#define DLLM_KERNEL(function, Structure)                                             \
    __attribute__((weak)) void function(const Structure& call, cudaStream_t stream); \
    DLLM_EMULATE(function, Structure)

namespace dllm {

DLLM_KERNEL(attention, Attention)
DLLM_KERNEL(denoise_update, DenoiseUpdate)
DLLM_KERNEL(linear, Linear)
DLLM_KERNEL(linear_tiled, TiledLinear)
DLLM_KERNEL(lm_head, LmHead)
DLLM_KERNEL(lm_head_chunk, LmHeadChunk)
DLLM_KERNEL(lm_head_tiled, TiledLmHead)

}  // namespace dllm
