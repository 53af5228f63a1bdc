// What the kernels have code for, told to Python: dllm_kernels/ops/kernels.json is what these functions say
// (python -m tests.emulator.describe writes it, a test compares it).
#pragma once

#include <cstdint>
#include <vector>

#include "dllm/kernels.h"

namespace dllm {

// A tile of a GEMM: its config with the least depths of the rings, the most that they may be, and the shared memory of
// a block: ring_offset bytes, with a residual, and then the rings or product_bytes, what is more.
struct DescribedTile {
    const char* kernel;
    GemmConfig config;
    bool wgmma;  // whether it multiplies by wgmma, on Hopper only
    uint32_t max_stages, max_input_stages, ring_offset, product_bytes;
};

struct Limit {
    const char *kernel, *name;
    uint32_t value;
};

struct Description {
    std::vector<DescribedTile> tiles;
    std::vector<Limit> limits;
};

void describe_attention(Description& description);
void describe_denoise_update(Description& description);
void describe_linear_persistent(Description& description);
void describe_linear_skinny(Description& description);
void describe_lm_head_persistent(Description& description);
void describe_lm_head_skinny(Description& description);

}  // namespace dllm
