#include "calls.h"

#include "dllm/describe.h"
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
DLLM_KERNEL(linear_persistent, LinearPersistent)
DLLM_KERNEL(linear_skinny, LinearSkinny)
DLLM_KERNEL(linear_skinny_wgmma, LinearSkinny)
DLLM_KERNEL(lm_head_chunked, LmHeadChunked)
DLLM_KERNEL(lm_head_persistent, LmHeadPersistent)
DLLM_KERNEL(lm_head_skinny, LmHeadSkinny)

}  // namespace dllm
