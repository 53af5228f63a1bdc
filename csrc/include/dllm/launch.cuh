// What launchers share.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace dllm {

// Throws what the last launch failed with; the text reaches Python as a RuntimeError.
inline void check_launch(const char* kernel) {
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
        throw std::runtime_error(std::string(kernel) + " could not be launched: " + cudaGetErrorString(error));
    }
}

}  // namespace dllm
