// The Python module dllm_kernels._C. It knows raw pointers, sizes and a stream; ops/ knows what they mean.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>
#include <vector>

#include "dllm/kernels.h"

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
                    uintptr_t guidance_scale, uint32_t step, uint32_t batch, uint32_t length, uint32_t width,
                    const std::string& prediction_dtype, const std::string& next_input_dtype, bool noise,
                    bool self_condition, uintptr_t stream) {
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

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "CUDA kernels. Addresses are device memory, 0 for an absent one; the stream is a cudaStream_t.";
    m.def("architectures", &architectures,
          "The architectures that this build has code for, e.g. ('sm_90a', 'sm_120a').");
    m.def("denoise_update", &denoise_update, "The op of dllm_kernels/ops/denoise_update.py.", py::kw_only(),
          "latents"_a, "prediction"_a, "previous"_a, "next_input"_a, "coefficients"_a, "seed"_a, "first_sample"_a,
          "shift"_a, "guidance_scale"_a, "step"_a, "batch"_a, "length"_a, "width"_a, "prediction_dtype"_a,
          "next_input_dtype"_a, "noise"_a, "self_condition"_a, "stream"_a);
}
