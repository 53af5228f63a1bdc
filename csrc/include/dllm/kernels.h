// The launchers of csrc/kernels. Pointers are device memory; a launcher returns as soon as its kernel is queued on
// `stream`.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace dllm {

enum class Dtype { float32, bfloat16 };

// Shapes and meaning: dllm_kernels/ops/denoise_update.py. `previous`, `shift`, `guidance_scale`, `statistics`, and both
// of `norm_scale` and `norm_shift` may be null.
struct DenoiseUpdate {
    float* latents;
    const void* prediction;
    float* previous;
    void* next_input;
    const float* coefficients;
    const int64_t* seed;
    const int64_t* first_sample;
    const float* shift;
    const float* guidance_scale;
    const float* norm_scale;
    const float* norm_shift;
    float* statistics;
    uint32_t step, batch, length, width;
    Dtype prediction_dtype, next_input_dtype;
    bool noise, self_condition;
};

void denoise_update(const DenoiseUpdate& call, cudaStream_t stream);

// bfloat16 attention; shapes and meaning: dllm_kernels/ops/attention.py. q is [batch, queries, heads, head_dim] with
// strides in elements, the last one 1; k and v likewise with `keys`; out is contiguous. key_mask [batch, keys] may be
// null.
struct Attention {
    const void* q;
    const void* k;
    const void* v;
    const bool* key_mask;
    void* out;
    int64_t q_strides[3], k_strides[3], v_strides[3];
    uint32_t batch, queries, keys, heads, head_dim;
    bool causal;
};

void attention(const Attention& call, cudaStream_t stream);

// A folded linear layer: y = act((n(x) W^T) gate + bias) + residual, bfloat16 in and out, everything else float32;
// meaning: dllm_kernels/ops/stream_linear.py, packing: ops/packing.py. Null where absent: column_sums
// and statistics [rows, chunks, 2] (of x, in chunks of `chunk` columns; the last may be shorter), gate, residual
// [residual_rows, outputs] (row r of the output reads row r modulo residual_rows), next_scale [outputs] and
// scaled_output = y (1 + next_scale), output_statistics [rows, blocks of outputs, 2].
// The cut (skinny_gemm.cuh): blocks of 16 sixteens warps_n outputs and 8 tiles warps_m rows, stages of 32 deep
// columns. workspace holds, where slices > 1, slices times the values of all blocks, all of them kLamportEmpty
// (grid.cuh) before and after each call.
struct Linear {
    const void* weight;
    const void* input;
    const float* bias;
    const float* column_sums;
    const float* statistics;
    const float* gate;
    const void* residual;
    const float* next_scale;
    void* output;
    void* scaled_output;
    float* output_statistics;
    float* workspace;
    uint32_t rows, outputs, width, chunks, chunk, residual_rows;
    uint32_t warps_n, warps_m, sixteens, tiles, deep, slices, ring_stages, input_stages;
    bool gelu;
};

void linear(const Linear& call, cudaStream_t stream);

// The same with one warp along the outputs and four along every 64 of 64 or 128 rows, on Hopper; width fills stages,
// outputs are octets, and of a block's 16 outputs the packing has the order of ops/packing.py. `linear` calls it.
void linear_warpgroup(const Linear& call, cudaStream_t stream);

// A linear layer for many rows: y = act((x W^T) gate + bias) + residual, on Hopper; meaning: ops/tiled_linear.py. All
// is bfloat16 but gate; weight is [outputs, width] as it is. gate and residual [residual_rows, outputs] (as above) may
// be null. `blocks` is the most that the card runs at once, one an SM.
struct TiledLinear {
    const void* weight;
    const void* input;
    const void* bias;
    const float* gate;
    const void* residual;
    void* output;
    uint32_t rows, outputs, width, residual_rows, blocks;
    bool gelu;
};

void linear_tiled(const TiledLinear& call, cudaStream_t stream);

// The lm_head; meaning: dllm_kernels/ops/lm_head.py. weight is packed for a block's outputs (ops/packing.py),
// hidden [rows, width] is bfloat16, row r is token r % length of sample r / length; the vocabulary is cut into `parts`,
// at most as many as there are blocks of outputs. workspace holds 5 values for each row and part, where parts are
// counted up to a multiple of 4; logprobs may be null.
struct LmHead {
    const void* weight;
    const void* hidden;
    const float* bias;
    const float* temperature;
    const int64_t* seed;
    const int64_t* first_sample;
    float* workspace;
    int64_t* tokens;
    float* logprobs;
    uint32_t rows, length, vocab_size, width, parts;
    uint32_t warps_n, warps_m, sixteens, tiles, deep, ring_stages;
};

void lm_head(const LmHead& call, cudaStream_t stream);

// The same for many rows, on Hopper; weight [vocab_size, width] is as it is. The workspace is as above; `blocks` is the
// most that the card runs at once, one an SM.
struct TiledLmHead {
    const void* weight;
    const void* hidden;
    const float* bias;
    const float* temperature;
    const int64_t* seed;
    const int64_t* first_sample;
    float* workspace;
    int64_t* tokens;
    float* logprobs;
    uint32_t rows, length, vocab_size, width, parts, blocks;
};

void lm_head_tiled(const TiledLmHead& call, cudaStream_t stream);

// The lm_head where a library multiplies: logits [rows, pitch] hold x . w of the entries begin to end of the
// vocabulary. Calls from begin = 0 on, in order, carry `state` on (5 values a row); the one that reaches vocab_size
// writes tokens and, if not null, logprobs. begin and pitch are multiples of 4.
struct LmHeadChunk {
    const float* logits;
    const float* bias;
    const float* temperature;
    const int64_t* seed;
    const int64_t* first_sample;
    float* state;
    int64_t* tokens;
    float* logprobs;
    uint32_t rows, length, vocab_size, pitch, begin, end;
};

void lm_head_chunk(const LmHeadChunk& call, cudaStream_t stream);

}  // namespace dllm
