// The tail of a denoising step: the output norm of the prediction, guidance, the solver's update
// z <- a z + b z0 + c z0_previous + s eps, the next input and the statistics of its rows (definition:
// dllm_kernels/ops/denoise_update/op.py).
//
// A block takes a row and holds it in registers. A thread holds quads of four neighbouring values, kMaxThreads
// quads apart: a quad is one Philox call, and 16 bytes of float32.

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "dllm/bf16.cuh"
#include "dllm/describe.h"
#include "dllm/grid.cuh"
#include "dllm/kernels.h"
#include "dllm/launch.cuh"
#include "dllm/pack.cuh"
#include "dllm/philox.cuh"

namespace dllm {
namespace {

constexpr uint32_t kQuad = 4;
constexpr uint32_t kWarp = 32;
// A row of 2048 values is a quad a thread: the loads of a row are then all under way at once.
constexpr uint32_t kMaxThreads = 512;
constexpr uint32_t kMaxQuads = 4;
// Blocks of an SM: three hide each other's waiting, where 40 registers a thread suffice for them.
template <typename Prediction, int kQuads>
constexpr int kBlocks = kHopper && kQuads == 1 && std::is_same_v<Prediction, bf16> ? 3 : 1;
constexpr uint32_t kMaxWidth = kQuad * kMaxQuads * kMaxThreads;
constexpr float kEpsilon = 1e-5f;

using Quad = Pack<float, kQuad>;

// A quad as it lies in memory: bfloat16 in two words.
template <typename T>
using Stored = std::conditional_t<std::is_same_v<T, bf16>, Pack<uint32_t, kQuad / 2>, Quad>;

__device__ __forceinline__ Quad widened(const Quad& quad) { return quad; }
__device__ __forceinline__ Quad widened(const Stored<bf16>& quad) {
    const auto [first, second] = quad.value;
    return {{low_bf16(first), high_bf16(first), low_bf16(second), high_bf16(second)}};
}

template <typename T>
__device__ __forceinline__ Stored<T> rounded(const Quad& quad) {
    if constexpr (std::is_same_v<T, bf16>) {
        const auto [v0, v1, v2, v3] = quad.value;
        return {{pack_bf16(v0, v1), pack_bf16(v2, v3)}};
    } else {
        return quad;
    }
}

// The quad that starts at a value of an array of T.
template <typename T>
__device__ __forceinline__ const Stored<T>& quad_at(const void* array, size_t value) {
    return static_cast<const Stored<T>*>(array)[value / kQuad];
}
template <typename T>
__device__ __forceinline__ Stored<T>& quad_at(void* array, size_t value) {
    return static_cast<Stored<T>*>(array)[value / kQuad];
}

// Calls body(q, column) for each quad of this thread that lies in the row.
template <int kQuads, typename Body>
__device__ __forceinline__ void for_each_quad(uint32_t width, Body body) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
        const uint32_t column = (q * kMaxThreads + threadIdx.x) * kQuad;
        if (column < width) body(q, column);
    }
}

// The same bits in every lane: what is added is the same pair on both sides of each exchange.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (uint32_t distance = kWarp / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xFFFFFFFFu, value, distance);
    }
    return value;
}

// Sums of the block, in a fixed order. Two calls in a row need scratch of their own, then one barrier each is enough.
template <int kCount>
__device__ __forceinline__ void block_sum(float (&value)[kCount], float* scratch) {
    const uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        value[i] = warp_sum(value[i]);
        if (lane == 0) scratch[i * kWarp + warp] = value[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCount; ++i) value[i] = warp_sum(lane < warps ? scratch[i * kWarp + lane] : 0.0f);
}

// A row's mean is mean + rest, more exactly than one float says it; squares is the sum of squared deviations from the
// mean, which the rest is too small to change.
struct Moments {
    float mean, rest, squares;
};

constexpr uint32_t kSharedBytes = 3 * kWarp * sizeof(float);

template <int kQuads>
__device__ __forceinline__ Moments moments(const Quad (&row)[kQuads], uint32_t width) {
    float* const scratch = reinterpret_cast<float*>(shared_memory());
    const float share = 1.0f / static_cast<float>(width);
    float sum[1] = {};
    for_each_quad<kQuads>(width, [&](int q, uint32_t) {
        const auto& v = row[q].value;
        sum[0] += (v[0] + v[1]) + (v[2] + v[3]);
    });
    block_sum(sum, scratch);
    const float mean = sum[0] * share;
    float around[2] = {};
    for_each_quad<kQuads>(width, [&](int q, uint32_t) {
#pragma unroll
        for (uint32_t i = 0; i < kQuad; ++i) {
            const float deviation = row[q].value[i] - mean;
            around[0] += deviation;
            around[1] += deviation * deviation;
        }
    });
    block_sum(around, scratch + kWarp);
    // What the mean's rounding left; without it a mean of 100 deviations costs 7 bits.
    const float rest = around[0] * share;
    return {mean, rest, around[1]};
}

template <int kQuads>
__device__ __forceinline__ void normalize(Quad (&row)[kQuads], const Quad (&scale)[kQuads], const Quad (&shift)[kQuads],
                                          uint32_t width) {
    const Moments of = moments(row, width);
    const float inverse = 1.0f / sqrtf(of.squares / static_cast<float>(width) + kEpsilon);
    for_each_quad<kQuads>(width, [&](int q, uint32_t) {
#pragma unroll
        for (uint32_t i = 0; i < kQuad; ++i) {
            const float y = ((row[q].value[i] - of.mean) - of.rest) * inverse;
            row[q].value[i] = y * (1.0f + scale[q].value[i]) + shift[q].value[i];
        }
    });
}

// The pointers come in a struct, not as __restrict__ parameters: those the compiler may read ahead of the wait.
template <typename Prediction, typename Next, int kQuads>
__global__ void __launch_bounds__(kMaxThreads, kBlocks<Prediction, kQuads>)
    denoise_update_kernel(const DenoiseUpdate call) {
    pdl_trigger();
    pdl_wait();
    const uint32_t rows = call.batch * call.length, row = blockIdx.x;
    const uint32_t sample = row / call.length, token = row % call.length, width = call.width;
    const size_t here = static_cast<size_t>(row) * width;
    // Guided batches hold a second half, `half` values on.
    const size_t half = static_cast<size_t>(rows) * width;
    const bool guided = call.guidance_scale != nullptr, normed = call.norm_scale != nullptr;

    Stored<Prediction> prediction[kQuads], without[kQuads];
    Quad latent[kQuads], previous[kQuads] = {};
    for_each_quad<kQuads>(width, [&](int q, uint32_t column) {
        prediction[q] = quad_at<Prediction>(call.prediction, here + column);
        if (guided) without[q] = quad_at<Prediction>(call.prediction, half + here + column);
        latent[q] = quad_at<float>(call.latents, here + column);
        if (call.previous) previous[q] = quad_at<float>(call.previous, here + column);
    });
    const auto [a, b, of_previous, of_noise] = quad_at<float>(call.coefficients, kQuad * call.step).value;
    const float c = call.previous ? of_previous : 0, s = call.noise ? of_noise : 0;

    // All but the prediction's share. The noise is drawn while the loads are under way.
    Quad base[kQuads];
    const int64_t seed = call.noise ? *call.seed : 0, number = call.noise ? *call.first_sample + sample : 0;
    for_each_quad<kQuads>(width, [&](int q, uint32_t column) {
        float eps[kQuad] = {};
        if (call.noise) {
            normals(random_words(seed, (token * width + column) / kQuad, call.step, number, kStepNoise), eps);
        }
#pragma unroll
        for (uint32_t i = 0; i < kQuad; ++i) {
            base[q].value[i] = a * latent[q].value[i] + c * previous[q].value[i] + s * eps[i];
        }
    });

    // Asked for when the registers of latent and previous are free, and under way during the norm's sums.
    Quad scale[kQuads], offset[kQuads], shift[kQuads];
    for_each_quad<kQuads>(width, [&](int q, uint32_t column) {
        if (normed) {
            scale[q] = quad_at<float>(call.norm_scale, column);
            offset[q] = quad_at<float>(call.norm_shift, column);
        }
        if (call.shift) shift[q] = quad_at<float>(call.shift, column);
    });

    Quad z0[kQuads];
    for_each_quad<kQuads>(width, [&](int q, uint32_t) { z0[q] = widened(prediction[q]); });
    if (normed) normalize(z0, scale, offset, width);
    if (guided) {
        Quad unconditional[kQuads];
        for_each_quad<kQuads>(width, [&](int q, uint32_t) { unconditional[q] = widened(without[q]); });
        if (normed) normalize(unconditional, scale, offset, width);
        const float weight = *call.guidance_scale;
        for_each_quad<kQuads>(width, [&](int q, uint32_t) {
#pragma unroll
            for (uint32_t i = 0; i < kQuad; ++i) {
                const float u = unconditional[q].value[i];
                z0[q].value[i] = u + weight * (z0[q].value[i] - u);
            }
        });
    }

    // The next input as it is rounded.
    Quad written[kQuads];
    for_each_quad<kQuads>(width, [&](int q, uint32_t column) {
        Quad z, moved;
#pragma unroll
        for (uint32_t i = 0; i < kQuad; ++i) {
            z.value[i] = b * z0[q].value[i] + base[q].value[i];
            moved.value[i] = call.shift ? z.value[i] + shift[q].value[i] : z.value[i];
        }
        quad_at<float>(call.latents, here + column) = z;
        if (call.previous) quad_at<float>(call.previous, here + column) = z0[q];
        const Stored<Next> next = rounded<Next>(moved), next_z0 = rounded<Next>(z0[q]);
        written[q] = widened(next);
        const auto write = [&](size_t first) {
            quad_at<Next>(call.next_input, (call.self_condition ? 2 * first : first) + column) = next;
            if (call.self_condition) quad_at<Next>(call.next_input, 2 * first + width + column) = next_z0;
        };
        write(here);
        if (guided) write(half + here);
    });

    if (call.statistics) {
        const Moments of = moments(written, width);
        if (threadIdx.x == 0) {
            const Pack<float, 2> pair{{of.mean + of.rest, of.squares}};
            pair.store(call.statistics + 2 * static_cast<size_t>(row));
            if (guided) pair.store(call.statistics + 2 * (static_cast<size_t>(rows) + row));
        }
    }
}

template <typename Prediction, typename Next>
void launch_for(const DenoiseUpdate& call, cudaStream_t stream) {
    const uint32_t quads = call.width / kQuad;
    const uint32_t held = quads <= kMaxThreads ? 1 : quads <= 2 * kMaxThreads ? 2 : kMaxQuads;
    const auto kernel = held == 1   ? denoise_update_kernel<Prediction, Next, 1>
                        : held == 2 ? denoise_update_kernel<Prediction, Next, 2>
                                    : denoise_update_kernel<Prediction, Next, kMaxQuads>;
    const uint32_t threads = std::min((quads + kWarp - 1) / kWarp * kWarp, kMaxThreads);
    launch("denoise_update", kernel, dim3(call.batch * call.length), threads, kSharedBytes, stream, call);
}

void require(bool met, const std::string& what) {
    if (!met) throw std::invalid_argument("denoise_update's CUDA kernel needs " + what);
}

template <typename T>
bool aligned(const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % sizeof(T) == 0;
}

bool aligned(const void* pointer, Dtype dtype) {
    return dtype == Dtype::bfloat16 ? aligned<Stored<bf16>>(pointer) : aligned<Quad>(pointer);
}

void validate(const DenoiseUpdate& call) {
    require(
        call.width > 0 && call.width % kQuad == 0 && call.width <= kMaxWidth,
        "a width that is a multiple of 4 up to " + std::to_string(kMaxWidth) + ", not " + std::to_string(call.width));
    require((call.norm_scale == nullptr) == (call.norm_shift == nullptr), "norm_scale and norm_shift, or neither");
    require(!call.self_condition || (!call.statistics && !call.shift),
            "neither shift nor statistics with self-conditioning");
    const void* const quads[] = {call.latents, call.previous,   call.coefficients,
                                 call.shift,   call.norm_scale, call.norm_shift};
    require(std::all_of(std::begin(quads), std::end(quads), aligned<Quad>) &&
                aligned(call.prediction, call.prediction_dtype) && aligned(call.next_input, call.next_input_dtype) &&
                aligned<Pack<float, 2>>(call.statistics),
            "addresses that are multiples of four values");
}

}  // namespace

void denoise_update(const DenoiseUpdate& call, cudaStream_t stream) {
    validate(call);
    const bool narrow_next = call.next_input_dtype == Dtype::bfloat16;
    if (call.prediction_dtype == Dtype::bfloat16) {
        (narrow_next ? launch_for<bf16, bf16> : launch_for<bf16, float>)(call, stream);
    } else {
        (narrow_next ? launch_for<float, bf16> : launch_for<float, float>)(call, stream);
    }
}

void describe_denoise_update(Description& description) {
    description.limits.push_back({"denoise_update", "max_width", kMaxWidth});
    description.limits.push_back({"denoise_update", "width_multiple", kQuad});
}

}  // namespace dllm
