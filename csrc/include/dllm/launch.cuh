// How launchers start a kernel. tests/emulator has the same function for a CPU.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace dllm {

inline void check(cudaError_t error, const char* kernel) {
    if (error != cudaSuccess) {
        cudaGetLastError();  // a launch's error is not the next call's
        throw std::runtime_error(std::string(kernel) + " could not be launched: " + cudaGetErrorString(error));
    }
}

// Whether a kernel may start before the one ahead of it in the stream is complete (programmatic dependent launch).
inline bool overlapping = true;

// Percent of an SM's L1 cache and shared memory that kernels prefer as shared memory; the driver chooses where it is
// -1.
inline int carveout = cudaSharedmemCarveoutDefault;

// Blocks of a launch, `cluster` neighbours along x of which are a cluster (grid.cuh).
struct Grid {
    Grid(dim3 blocks, uint32_t cluster = 1) : blocks(blocks), cluster(cluster) {}
    dim3 blocks;
    uint32_t cluster;
};

// Of the current device.
inline int device_attribute(cudaDeviceAttr attribute) {
    int device, value;
    check(cudaGetDevice(&device), "a kernel");
    check(cudaDeviceGetAttribute(&value, attribute, device), "a kernel");
    return value;
}

// Whether the current device runs code for Hopper alone, kHopper.
inline bool on_hopper() { return device_attribute(cudaDevAttrComputeCapabilityMajor) == 9; }

// Queues `kernel` on `stream`; what it failed with reaches Python as a RuntimeError. Every kernel calls
// pdl_wait(), also one that reads nothing of theirs: whoever waits for it relies on it.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), Grid grid, uint32_t threads, uint32_t shared_bytes,
            cudaStream_t stream, Arguments... arguments) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
          name);
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, carveout), name);
    cudaLaunchAttribute attributes[2]{};
    uint32_t count = 0;
    if (overlapping) {
        attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[count++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (grid.cluster > 1) {
        attributes[count].id = cudaLaunchAttributeClusterDimension;
        attributes[count++].val.clusterDim = {grid.cluster, 1, 1};
    }
    cudaLaunchConfig_t config{};
    config.gridDim = grid.blocks;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = count;
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

// Clusters of `cluster` blocks that run at the same time on the current device; 0 where clusters do not run.
template <typename... Parameters>
int active_clusters(void (*kernel)(Parameters...), uint32_t cluster, uint32_t threads, uint32_t shared_bytes) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {cluster, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(cluster);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.attrs = &attribute;
    config.numAttrs = 1;
    int found = 0;
    if (cudaOccupancyMaxActiveClusters(&found, kernel, &config) != cudaSuccess) {
        cudaGetLastError();  // it is not the next call's
        return 0;
    }
    return found;
}

// A bfloat16 matrix [rows, columns] without gaps between its rows, a multiple of 16 bytes each, for tma_load_2d of
// boxes [box_rows, box_columns]; box_columns is 32 or 64.
inline CUtensorMap tensor_map(const void* matrix, uint64_t rows, uint64_t columns, uint32_t box_rows,
                              uint32_t box_columns = 32) {
    static const auto encode = [] {
        void* function = nullptr;
        cudaDriverEntryPointQueryResult found;
        check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
              "tensor_map");
        return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
    }();
    CUtensorMap map;
    const uint64_t shape[2] = {columns, rows}, stride[1] = {columns * 2};
    const uint32_t box[2] = {box_columns, box_rows}, step[2] = {1, 1};
    if (!encode || encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(matrix), shape, stride, box,
                          step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                          box_columns == 32 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B,
                          CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS) {
        throw std::runtime_error("the driver made no tensor map of a matrix of " + std::to_string(rows) + " x " +
                                 std::to_string(columns) + " values");
    }
    return map;
}

}  // namespace dllm
