// The Python module dllm_kernels._C. It knows addresses, sizes and a stream; dllm_kernels/ops knows what they mean.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <type_traits>

#include "dllm/kernels.h"
#include "dllm/launch.cuh"

namespace py = pybind11;
using namespace py::literals;

namespace {

py::tuple architectures() {
    std::istringstream names(DLLM_ARCHITECTURES);
    py::list list;
    for (std::string name; std::getline(names, name, ',');) list.append("sm_" + name);
    return py::tuple(list);
}

dllm::Dtype dtype(const std::string& name) {
    if (name == "torch.float32") return dllm::Dtype::float32;
    if (name == "torch.bfloat16") return dllm::Dtype::bfloat16;
    throw py::value_error("the CUDA kernels take float32 and bfloat16, not " + name);
}

// A call from an object that has its fields as attributes: tensors or None for pointers, dtypes, numbers, and for a
// struct an object in turn.
template <typename Call>
Call call_from(const py::object& values) {
    Call call{};
    call.each_field([&](const char* name, auto& field) {
        using Field = std::remove_reference_t<decltype(field)>;
        const py::object value = values.attr(name);
        if constexpr (std::is_pointer_v<Field>) {
            if (!value.is_none()) field = reinterpret_cast<Field>(value.attr("data_ptr")().template cast<uintptr_t>());
        } else if constexpr (std::is_same_v<Field, dllm::Dtype>) {
            field = dtype(py::str(value));
        } else if constexpr (std::is_class_v<Field>) {
            field = call_from<Field>(value);
        } else {
            field = value.cast<Field>();
        }
    });
    return call;
}

template <typename Call>
void define(py::module_& m, const char* name, void (*launcher)(const Call&, cudaStream_t)) {
    m.def(
        name,
        [launcher](const py::object& call, uintptr_t stream) {
            launcher(call_from<Call>(call), reinterpret_cast<cudaStream_t>(stream));
        },
        "call"_a, "stream"_a);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() =
        "CUDA kernels. A call is an object with the fields of csrc/include/dllm/kernels.h; the stream is a "
        "cudaStream_t.";
    m.def("architectures", &architectures,
          "The architectures that this build has code for, e.g. ('sm_90a', 'sm_120a').");
    define(m, "attention", &dllm::attention);
    define(m, "denoise_update", &dllm::denoise_update);
    define(m, "linear_persistent", &dllm::linear_persistent);
    define(m, "linear_skinny", &dllm::linear_skinny);
    define(m, "lm_head_chunked", &dllm::lm_head_chunked);
    define(m, "lm_head_persistent", &dllm::lm_head_persistent);
    define(m, "lm_head_skinny", &dllm::lm_head_skinny);
    m.def("max_cluster", &dllm::max_cluster, "The most blocks of a cluster that run on the current device, up to 8.");
    m.def(
        "set_carveout", [](int percent) { dllm::carveout = percent; },
        "The share of an SM's L1 cache and shared memory that kernels prefer as shared memory, in percent; -1 leaves "
        "it "
        "to the driver.",
        "percent"_a);
    m.def(
        "set_overlapping", [](bool on) { dllm::overlapping = on; },
        "Whether kernels start before the one ahead of them is complete (programmatic dependent launch).", "on"_a);
}
