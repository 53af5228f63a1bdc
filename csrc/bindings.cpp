// The Python module dllm_kernels._C. It knows raw pointers, sizes and a stream; ops/ knows what they mean.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <sstream>
#include <string>
#include <vector>

#include "dllm/kernels.h"
#include "dllm/launch.cuh"

namespace py = pybind11;
using namespace py::literals;

namespace {

template <typename T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

dllm::Dtype dtype(const std::string& name) {
    if (name == "float32") return dllm::Dtype::float32;
    if (name == "bfloat16") return dllm::Dtype::bfloat16;
    throw py::value_error("the CUDA kernels take float32 and bfloat16, not " + name);
}

py::tuple architectures() {
    std::istringstream names(DLLM_ARCHITECTURES);
    py::list list;
    for (std::string name; std::getline(names, name, ',');) list.append("sm_" + name);
    return py::tuple(list);
}

void denoise_update(uintptr_t latents, uintptr_t prediction, uintptr_t previous, uintptr_t next_input,
                    uintptr_t coefficients, uintptr_t seed, uintptr_t first_sample, uintptr_t shift,
                    uintptr_t guidance_scale, uintptr_t norm_scale, uintptr_t norm_shift, uintptr_t statistics,
                    uint32_t step, uint32_t batch, uint32_t length, uint32_t width, const std::string& prediction_dtype,
                    const std::string& next_input_dtype, bool noise, bool self_condition, uintptr_t stream) {
    const dllm::DenoiseUpdate call{
        .latents = pointer<float>(latents),
        .prediction = pointer<const void>(prediction),
        .previous = pointer<float>(previous),
        .next_input = pointer<void>(next_input),
        .coefficients = pointer<const float>(coefficients),
        .seed = pointer<const int64_t>(seed),
        .first_sample = pointer<const int64_t>(first_sample),
        .shift = pointer<const float>(shift),
        .guidance_scale = pointer<const float>(guidance_scale),
        .norm_scale = pointer<const float>(norm_scale),
        .norm_shift = pointer<const float>(norm_shift),
        .statistics = pointer<float>(statistics),
        .step = step,
        .batch = batch,
        .length = length,
        .width = width,
        .prediction_dtype = dtype(prediction_dtype),
        .next_input_dtype = dtype(next_input_dtype),
        .noise = noise,
        .self_condition = self_condition,
    };
    dllm::denoise_update(call, pointer<CUstream_st>(stream));
}

void linear(uintptr_t weight, uintptr_t input, uintptr_t bias, uintptr_t column_sums, uintptr_t statistics,
            uintptr_t gate, uintptr_t residual, uintptr_t next_scale, uintptr_t output, uintptr_t scaled_output,
            uintptr_t output_statistics, uintptr_t workspace, uint32_t rows, uint32_t outputs, uint32_t width,
            uint32_t chunks, uint32_t chunk, uint32_t residual_rows, uint32_t warps_n, uint32_t warps_m,
            uint32_t sixteens, uint32_t tiles, uint32_t deep, uint32_t slices, uint32_t ring_stages,
            uint32_t input_stages, bool gelu, uintptr_t stream) {
    const dllm::Linear call{
        .weight = pointer<const void>(weight),
        .input = pointer<const void>(input),
        .bias = pointer<const float>(bias),
        .column_sums = pointer<const float>(column_sums),
        .statistics = pointer<const float>(statistics),
        .gate = pointer<const float>(gate),
        .residual = pointer<const void>(residual),
        .next_scale = pointer<const float>(next_scale),
        .output = pointer<void>(output),
        .scaled_output = pointer<void>(scaled_output),
        .output_statistics = pointer<float>(output_statistics),
        .workspace = pointer<float>(workspace),
        .rows = rows,
        .outputs = outputs,
        .width = width,
        .chunks = chunks,
        .chunk = chunk,
        .residual_rows = residual_rows,
        .warps_n = warps_n,
        .warps_m = warps_m,
        .sixteens = sixteens,
        .tiles = tiles,
        .deep = deep,
        .slices = slices,
        .ring_stages = ring_stages,
        .input_stages = input_stages,
        .gelu = gelu,
    };
    dllm::linear(call, pointer<CUstream_st>(stream));
}

void linear_tiled(uintptr_t weight, uintptr_t input, uintptr_t bias, uintptr_t gate, uintptr_t residual,
                  uintptr_t output, uint32_t rows, uint32_t outputs, uint32_t width, uint32_t residual_rows,
                  uint32_t blocks, bool gelu, uintptr_t stream) {
    const dllm::TiledLinear call{
        .weight = pointer<const void>(weight),
        .input = pointer<const void>(input),
        .bias = pointer<const void>(bias),
        .gate = pointer<const float>(gate),
        .residual = pointer<const void>(residual),
        .output = pointer<void>(output),
        .rows = rows,
        .outputs = outputs,
        .width = width,
        .residual_rows = residual_rows,
        .blocks = blocks,
        .gelu = gelu,
    };
    dllm::linear_tiled(call, pointer<CUstream_st>(stream));
}

void attention(uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t key_mask, uintptr_t out,
               const std::array<int64_t, 3>& q_strides, const std::array<int64_t, 3>& k_strides,
               const std::array<int64_t, 3>& v_strides, uint32_t batch, uint32_t queries, uint32_t keys, uint32_t heads,
               uint32_t head_dim, bool causal, uintptr_t stream) {
    const dllm::Attention call{
        .q = pointer<const void>(q),
        .k = pointer<const void>(k),
        .v = pointer<const void>(v),
        .key_mask = pointer<const bool>(key_mask),
        .out = pointer<void>(out),
        .q_strides = {q_strides[0], q_strides[1], q_strides[2]},
        .k_strides = {k_strides[0], k_strides[1], k_strides[2]},
        .v_strides = {v_strides[0], v_strides[1], v_strides[2]},
        .batch = batch,
        .queries = queries,
        .keys = keys,
        .heads = heads,
        .head_dim = head_dim,
        .causal = causal,
    };
    dllm::attention(call, pointer<CUstream_st>(stream));
}

void lm_head(uintptr_t weight, uintptr_t hidden, uintptr_t bias, uintptr_t temperature, uintptr_t seed,
             uintptr_t first_sample, uintptr_t workspace, uintptr_t tokens, uintptr_t logprobs, uint32_t rows,
             uint32_t length, uint32_t vocab_size, uint32_t width, uint32_t parts, uint32_t warps_n, uint32_t warps_m,
             uint32_t sixteens, uint32_t tiles, uint32_t deep, uint32_t ring_stages, uintptr_t stream) {
    const dllm::LmHead call{
        .weight = pointer<const void>(weight),
        .hidden = pointer<const void>(hidden),
        .bias = pointer<const float>(bias),
        .temperature = pointer<const float>(temperature),
        .seed = pointer<const int64_t>(seed),
        .first_sample = pointer<const int64_t>(first_sample),
        .workspace = pointer<float>(workspace),
        .tokens = pointer<int64_t>(tokens),
        .logprobs = pointer<float>(logprobs),
        .rows = rows,
        .length = length,
        .vocab_size = vocab_size,
        .width = width,
        .parts = parts,
        .warps_n = warps_n,
        .warps_m = warps_m,
        .sixteens = sixteens,
        .tiles = tiles,
        .deep = deep,
        .ring_stages = ring_stages,
    };
    dllm::lm_head(call, pointer<CUstream_st>(stream));
}

void lm_head_tiled(uintptr_t weight, uintptr_t hidden, uintptr_t bias, uintptr_t temperature, uintptr_t seed,
                   uintptr_t first_sample, uintptr_t workspace, uintptr_t tokens, uintptr_t logprobs, uint32_t rows,
                   uint32_t length, uint32_t vocab_size, uint32_t width, uint32_t parts, uint32_t blocks,
                   uintptr_t stream) {
    const dllm::TiledLmHead call{
        .weight = pointer<const void>(weight),
        .hidden = pointer<const void>(hidden),
        .bias = pointer<const float>(bias),
        .temperature = pointer<const float>(temperature),
        .seed = pointer<const int64_t>(seed),
        .first_sample = pointer<const int64_t>(first_sample),
        .workspace = pointer<float>(workspace),
        .tokens = pointer<int64_t>(tokens),
        .logprobs = pointer<float>(logprobs),
        .rows = rows,
        .length = length,
        .vocab_size = vocab_size,
        .width = width,
        .parts = parts,
        .blocks = blocks,
    };
    dllm::lm_head_tiled(call, pointer<CUstream_st>(stream));
}

void lm_head_chunk(uintptr_t logits, uintptr_t bias, uintptr_t temperature, uintptr_t seed, uintptr_t first_sample,
                   uintptr_t state, uintptr_t tokens, uintptr_t logprobs, uint32_t rows, uint32_t length,
                   uint32_t vocab_size, uint32_t pitch, uint32_t begin, uint32_t end, uintptr_t stream) {
    const dllm::LmHeadChunk call{
        .logits = pointer<const float>(logits),
        .bias = pointer<const float>(bias),
        .temperature = pointer<const float>(temperature),
        .seed = pointer<const int64_t>(seed),
        .first_sample = pointer<const int64_t>(first_sample),
        .state = pointer<float>(state),
        .tokens = pointer<int64_t>(tokens),
        .logprobs = pointer<float>(logprobs),
        .rows = rows,
        .length = length,
        .vocab_size = vocab_size,
        .pitch = pitch,
        .begin = begin,
        .end = end,
    };
    dllm::lm_head_chunk(call, pointer<CUstream_st>(stream));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "CUDA kernels. Addresses are device memory, 0 for an absent one; the stream is a cudaStream_t.";
    m.def("architectures", &architectures,
          "The architectures that this build has code for, e.g. ('sm_90a', 'sm_120a').");
    m.def("denoise_update", &denoise_update, "The op of dllm_kernels/ops/denoise_update.py.", py::kw_only(),
          "latents"_a, "prediction"_a, "previous"_a, "next_input"_a, "coefficients"_a, "seed"_a, "first_sample"_a,
          "shift"_a, "guidance_scale"_a, "norm_scale"_a, "norm_shift"_a, "statistics"_a, "step"_a, "batch"_a,
          "length"_a, "width"_a, "prediction_dtype"_a, "next_input_dtype"_a, "noise"_a, "self_condition"_a, "stream"_a);
    m.def("linear", &linear, "The op of dllm_kernels/ops/stream_linear.py.", py::kw_only(), "weight"_a, "input"_a,
          "bias"_a, "column_sums"_a, "statistics"_a, "gate"_a, "residual"_a, "next_scale"_a, "output"_a,
          "scaled_output"_a, "output_statistics"_a, "workspace"_a, "rows"_a, "outputs"_a, "width"_a, "chunks"_a,
          "chunk"_a, "residual_rows"_a, "warps_n"_a, "warps_m"_a, "sixteens"_a, "tiles"_a, "deep"_a, "slices"_a,
          "ring_stages"_a, "input_stages"_a, "gelu"_a, "stream"_a);
    m.def("linear_tiled", &linear_tiled, "The op of dllm_kernels/ops/tiled_linear.py.", py::kw_only(), "weight"_a,
          "input"_a, "bias"_a, "gate"_a, "residual"_a, "output"_a, "rows"_a, "outputs"_a, "width"_a, "residual_rows"_a,
          "blocks"_a, "gelu"_a, "stream"_a);
    m.def("attention", &attention, "The op of dllm_kernels/ops/attention.py.", py::kw_only(), "q"_a, "k"_a, "v"_a,
          "key_mask"_a, "out"_a, "q_strides"_a, "k_strides"_a, "v_strides"_a, "batch"_a, "queries"_a, "keys"_a,
          "heads"_a, "head_dim"_a, "causal"_a, "stream"_a);
    m.def("lm_head", &lm_head, "The op of dllm_kernels/ops/stream_lm_head.py.", py::kw_only(), "weight"_a, "hidden"_a,
          "bias"_a, "temperature"_a, "seed"_a, "first_sample"_a, "workspace"_a, "tokens"_a, "logprobs"_a, "rows"_a,
          "length"_a, "vocab_size"_a, "width"_a, "parts"_a, "warps_n"_a, "warps_m"_a, "sixteens"_a, "tiles"_a, "deep"_a,
          "ring_stages"_a, "stream"_a);
    m.def("lm_head_tiled", &lm_head_tiled, "The op of dllm_kernels/ops/tiled_lm_head.py.", py::kw_only(), "weight"_a,
          "hidden"_a, "bias"_a, "temperature"_a, "seed"_a, "first_sample"_a, "workspace"_a, "tokens"_a, "logprobs"_a,
          "rows"_a, "length"_a, "vocab_size"_a, "width"_a, "parts"_a, "blocks"_a, "stream"_a);
    m.def("lm_head_chunk", &lm_head_chunk, "A chunk of the vocabulary in dllm_kernels/ops/lm_head.py.", py::kw_only(),
          "logits"_a, "bias"_a, "temperature"_a, "seed"_a, "first_sample"_a, "state"_a, "tokens"_a, "logprobs"_a,
          "rows"_a, "length"_a, "vocab_size"_a, "pitch"_a, "begin"_a, "end"_a, "stream"_a);
    m.def(
        "set_overlapping", [](bool on) { dllm::overlapping = on; },
        "Whether kernels start before the one ahead of them is complete (programmatic dependent launch).", "on"_a);
}
