// The launchers that the runner can call, each with the one structure that it takes.
#pragma once

#include <cstddef>
#include <map>
#include <string>

#include "cuda_runtime_api.h"

namespace dllm::emulate {

struct Call {
    size_t bytes;  // of the structure
    void (*launch)(const void* structure);
};

std::map<std::string, Call>& calls();

struct Registration {
    Registration(const char* name, Call call) { calls()[name] = call; }
};

}  // namespace dllm::emulate

// `launch` is null where the launcher is a weak symbol that nothing defines.
#define DLLM_EMULATE(function, Structure)                                                                        \
    static const dllm::emulate::Registration registration_of_##function(                                         \
        #function,                                                                                               \
        {sizeof(Structure),                                                                                      \
         function ? +[](const void* structure) { function(*static_cast<const Structure*>(structure), nullptr); } \
                  : nullptr});
