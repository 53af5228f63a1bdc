// csrc/include/dllm/launch.cuh for a CPU: a launch waits in a queue until the whole stream is run (../machine.h).
// Every kernel may start before the one ahead of it is complete.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>

#include "dllm/async.cuh"
#include "dllm/grid.cuh"
#include "machine.h"

namespace dllm {

struct Grid {
    Grid(dim3 blocks, uint32_t cluster = 1) : blocks(blocks), cluster(cluster) {}
    dim3 blocks;
    uint32_t cluster;
};

template <typename... Parameters>
int active_clusters(void (*)(Parameters...), uint32_t, uint32_t, uint32_t) {
    return 1;
}

inline bool on_hopper() { return kHopper; }

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), Grid grid, uint32_t threads, uint32_t shared_bytes,
            cudaStream_t, Arguments... arguments) {
    using Call = std::tuple<void (*)(Parameters...), std::tuple<Parameters...>>;
    emulate::enqueue({
        .kernel = name,
        .grid = grid.blocks,
        .cluster = grid.cluster,
        .threads = threads,
        .shared_bytes = shared_bytes,
        .shared_limit = kHopper ? 227 * 1024 : 99 * 1024,  // what a block may have on sm_90, on sm_120
        .call =
            [](const void* call) {
                std::apply(std::get<0>(*static_cast<const Call*>(call)), std::get<1>(*static_cast<const Call*>(call)));
            },
        .arguments =
            std::make_shared<const Call>(kernel, std::tuple<Parameters...>(static_cast<Parameters>(arguments)...)),
    });
}

// Refuses what the driver refuses (CUDA Driver API, cuTensorMapEncodeTiled).
inline TensorMap tensor_map(const void* matrix, uint64_t rows, uint64_t columns, uint32_t box_rows,
                            uint32_t box_columns = 32) {
    const bool aligned = reinterpret_cast<uint64_t>(matrix) % 16 == 0 && columns % 8 == 0;
    const auto fits = [](uint64_t size, uint32_t box) { return size > 0 && size >> 32 == 0 && box > 0 && box <= 256; };
    if (!matrix || !aligned || !fits(rows, box_rows) || !fits(columns, box_columns)) {
        throw std::runtime_error("the driver made no tensor map of a matrix of " + std::to_string(rows) + " x " +
                                 std::to_string(columns) + " values");
    }
    return {emulate::kMapMark, matrix,     static_cast<int64_t>(rows), static_cast<int64_t>(columns),
            box_rows,          box_columns};
}

}  // namespace dllm
