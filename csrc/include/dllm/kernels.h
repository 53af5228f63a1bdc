// The kernels of csrc/kernels: what each is called with, and its launcher. Pointers are device memory, null where
// something is absent. A launcher returns as soon as its kernel is queued on `stream`; it throws std::invalid_argument
// where the kernel has no code for the call. The dataclass of the same name in dllm_kernels/ops fills a call.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dllm/call.h"

namespace dllm {

enum class Dtype { float32, bfloat16 };

// How a GEMM is divided: tiles of tile_m rows by tile_n outputs a block, tile_k columns of K a stage, num_warps_m x
// num_warps_n warps, K among split_k blocks, and the depths of the rings of weights and of input.
#define DLLM_GEMM_CONFIG(X)  \
    X(uint32_t, tile_m)      \
    X(uint32_t, tile_n)      \
    X(uint32_t, tile_k)      \
    X(uint32_t, num_warps_m) \
    X(uint32_t, num_warps_n) \
    X(uint32_t, split_k)     \
    X(uint32_t, num_stages)  \
    X(uint32_t, input_stages)
DLLM_CALL(GemmConfig, DLLM_GEMM_CONFIG)

// Distances between neighbours, in elements.
#define DLLM_STRIDES(X) \
    X(int64_t, sample)  \
    X(int64_t, row)     \
    X(int64_t, head)
DLLM_CALL(Strides, DLLM_STRIDES)

// z <- a z + b z0 + c z0_previous + s eps, with the output norm before and the next input after it
// (ops/denoise_update/op.py has shapes and meaning). norm_scale and norm_shift go together.
#define DLLM_DENOISE_UPDATE(X)      \
    X(float*, latents)              \
    X(const void*, prediction)      \
    X(float*, previous)             \
    X(void*, next_input)            \
    X(const float*, coefficients)   \
    X(const int64_t*, seed)         \
    X(const int64_t*, first_sample) \
    X(const float*, shift)          \
    X(const float*, guidance_scale) \
    X(const float*, norm_scale)     \
    X(const float*, norm_shift)     \
    X(float*, statistics)           \
    X(uint32_t, step)               \
    X(uint32_t, batch)              \
    X(uint32_t, length)             \
    X(uint32_t, width)              \
    X(Dtype, prediction_dtype)      \
    X(Dtype, next_input_dtype)      \
    X(bool, noise)                  \
    X(bool, self_condition)
DLLM_CALL(DenoiseUpdate, DLLM_DENOISE_UPDATE)
void denoise_update(const DenoiseUpdate& call, cudaStream_t stream);

// softmax(q k^T / sqrt(head_dim)) v in bfloat16 (ops/attention/op.py). q is [batch, queries, heads, head_dim], its last
// stride 1; k and v likewise with `keys`; out is contiguous.
#define DLLM_ATTENTION(X)                        \
    X(const void*, q)                            \
    X(const void*, k)                            \
    X(const void*, v)                            \
    X(const bool*, key_mask) /* [batch, keys] */ \
    X(void*, out)                                \
    X(Strides, q_strides)                        \
    X(Strides, k_strides)                        \
    X(Strides, v_strides)                        \
    X(uint32_t, batch)                           \
    X(uint32_t, queries)                         \
    X(uint32_t, keys)                            \
    X(uint32_t, heads)                           \
    X(uint32_t, head_dim)                        \
    X(bool, causal)
DLLM_CALL(Attention, DLLM_ATTENTION)
void attention(const Attention& call, cudaStream_t stream);

// y = act((norm(x) W^T) gate + bias) + residual for few rows (ops/linear/skinny.py): bfloat16 in and out, all else
// float32. Row r of the output reads row r modulo residual_rows of the residual. The blocks that share a K are a
// cluster, or hand each other sums through the workspace: split_k times the values of all tiles, each kLamportEmpty
// (grid.cuh) before and after.
#define DLLM_LINEAR_SKINNY(X)                                                    \
    X(const void*, input)        /* [m, k] */                                    \
    X(const void*, weight)       /* packed, ops/linear/packing.py */             \
    X(const float*, bias)        /* [n] */                                       \
    X(const float*, column_sums) /* [n]: the input is normalised */              \
    X(const float*, stats)       /* [m, stats_chunks, 2], of the input's rows */ \
    X(const float*, gate)        /* [n] */                                       \
    X(const void*, residual)     /* [residual_rows, n] */                        \
    X(const float*, next_scale)  /* [n]: scaled_out = y (1 + next_scale) */      \
    X(float*, workspace)                                                         \
    X(void*, output)     /* [m, n] */                                            \
    X(void*, scaled_out) /* [m, n] */                                            \
    X(float*, stats_out) /* [m, tiles of n, 2] */                                \
    X(uint32_t, m)                                                               \
    X(uint32_t, n)                                                               \
    X(uint32_t, k)                                                               \
    X(uint32_t, residual_rows)                                                   \
    X(uint32_t, stats_chunks)                                                    \
    X(uint32_t, stats_chunk) /* columns of a chunk; the last may have fewer */   \
    X(bool, gelu)                                                                \
    X(bool, clusters)                                                            \
    X(GemmConfig, config)
DLLM_CALL(LinearSkinny, DLLM_LINEAR_SKINNY)
void linear_skinny(const LinearSkinny& call, cudaStream_t stream);
// The most blocks of a cluster that run on the current device, up to 8; 1 where clusters do not run.
uint32_t max_cluster();

// y = act((x W^T) gate + bias) + residual for many rows, on Hopper (ops/linear/persistent.py). All is bfloat16 but
// gate.
#define DLLM_LINEAR_PERSISTENT(X)                        \
    X(const void*, input)    /* [m, k] */                \
    X(const void*, weight)   /* [n, k] */                \
    X(const void*, bias)     /* [n] */                   \
    X(const float*, gate)    /* [n] */                   \
    X(const void*, residual) /* [residual_rows, n] */    \
    X(void*, output)         /* [m, n] */                \
    X(uint32_t, m)                                       \
    X(uint32_t, n)                                       \
    X(uint32_t, k)                                       \
    X(uint32_t, residual_rows)                           \
    X(uint32_t, blocks) /* that the card runs at once */ \
    X(bool, gelu)
DLLM_CALL(LinearPersistent, DLLM_LINEAR_PERSISTENT)
void linear_persistent(const LinearPersistent& call, cudaStream_t stream);

// A token for each row (ops/lm_head/op.py): row r is token r % length of sample r / length. The vocabulary is divided
// into `parts`, at most one a tile. The workspace holds 5 values for each row and part, parts counted up to a multiple
// of 4.
#define DLLM_LM_HEAD_FIELDS(X)                   \
    X(const void*, hidden) /* [m, k] bfloat16 */ \
    X(const void*, weight)                       \
    X(const float*, bias) /* [vocab_size] */     \
    X(const float*, temperature)                 \
    X(const int64_t*, seed)                      \
    X(const int64_t*, first_sample)              \
    X(float*, workspace)                         \
    X(int64_t*, tokens) /* [m] */                \
    X(float*, logprobs) /* [m] */                \
    X(uint32_t, m)                               \
    X(uint32_t, length)                          \
    X(uint32_t, vocab_size)                      \
    X(uint32_t, k)                               \
    X(uint32_t, parts)

// For few rows; weight is packed (ops/linear/packing.py).
#define DLLM_LM_HEAD_SKINNY(X) \
    DLLM_LM_HEAD_FIELDS(X)     \
    X(GemmConfig, config)
DLLM_CALL(LmHeadSkinny, DLLM_LM_HEAD_SKINNY)
void lm_head_skinny(const LmHeadSkinny& call, cudaStream_t stream);

// For many rows, on Hopper; weight is [vocab_size, k] as it is.
#define DLLM_LM_HEAD_PERSISTENT(X) \
    DLLM_LM_HEAD_FIELDS(X)         \
    X(uint32_t, blocks) /* that the card runs at once */
DLLM_CALL(LmHeadPersistent, DLLM_LM_HEAD_PERSISTENT)
void lm_head_persistent(const LmHeadPersistent& call, cudaStream_t stream);

// Where a library multiplies: logits hold x . w of the entries begin to end of the vocabulary. Calls from begin = 0 on,
// in order, carry `state` on; the one that reaches vocab_size writes tokens and logprobs. begin and pitch are multiples
// of 4.
#define DLLM_LM_HEAD_CHUNKED(X)                \
    X(const float*, logits) /* [m, pitch] */   \
    X(const float*, bias)   /* [vocab_size] */ \
    X(const float*, temperature)               \
    X(const int64_t*, seed)                    \
    X(const int64_t*, first_sample)            \
    X(float*, state)    /* [m, 5] */           \
    X(int64_t*, tokens) /* [m] */              \
    X(float*, logprobs) /* [m] */              \
    X(uint32_t, m)                             \
    X(uint32_t, length)                        \
    X(uint32_t, vocab_size)                    \
    X(uint32_t, pitch)                         \
    X(uint32_t, begin)                         \
    X(uint32_t, end)
DLLM_CALL(LmHeadChunked, DLLM_LM_HEAD_CHUNKED)
void lm_head_chunked(const LmHeadChunked& call, cudaStream_t stream);

}  // namespace dllm
