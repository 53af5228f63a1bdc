// The solver's update z <- a z + b z0 + c z0_previous + s eps (definition: dllm_kernels/ops/denoise_update.py).
// A thread takes four neighbouring values: one Philox call, and 16 bytes of float32.

#include <cuda_bf16.h>

#include <cstdint>

#include "dllm/kernels.h"
#include "dllm/launch.cuh"
#include "dllm/pack.cuh"
#include "dllm/philox.cuh"

namespace dllm {
namespace {

// A sample of 64 x 2048 values makes 256 blocks: more than one for each of 132 to 170 SMs.
constexpr int kThreads = 128;
constexpr int kQuad = 4;

// kRun values are moved at once: 4, or 1 where a row or a pointer is not a multiple of four values.
template <typename Prediction, typename Next, int kRun>
__global__ void __launch_bounds__(kThreads)
    denoise_update_kernel(float* __restrict__ latents, const Prediction* __restrict__ prediction,
                          float* __restrict__ previous, Next* __restrict__ next_input,
                          const float* __restrict__ coefficients, const int64_t* __restrict__ seed,
                          const int64_t* __restrict__ first_sample, const float* __restrict__ shift,
                          const float* __restrict__ guidance_scale, uint32_t step, uint32_t batch, uint32_t size,
                          uint32_t width, uint32_t blocks_per_sample, bool noise, bool self_condition) {
    const uint32_t sample = blockIdx.x / blocks_per_sample;
    const uint32_t quad = blockIdx.x % blocks_per_sample * kThreads + threadIdx.x;
    const size_t here = static_cast<size_t>(sample) * size + quad * kQuad;
    // Guided batches hold a second half, `half` values on.
    const size_t half = static_cast<size_t>(batch) * size;
    const float a = coefficients[4 * step], b = coefficients[4 * step + 1];
    const float c = coefficients[4 * step + 2], s = coefficients[4 * step + 3];

    constexpr int kRuns = kQuad / kRun;
    Pack<float, kRun> latent[kRuns], z0_previous[kRuns];
    Pack<Prediction, kRun> conditional[kRuns], unconditional[kRuns];
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
        if (quad * kQuad + run * kRun < size) {
            latent[run] = Pack<float, kRun>::load(latents + here + run * kRun);
            z0_previous[run] = Pack<float, kRun>::load(previous + here + run * kRun);
            conditional[run] = Pack<Prediction, kRun>::load(prediction + here + run * kRun);
            if (guidance_scale) {
                unconditional[run] = Pack<Prediction, kRun>::load(prediction + half + here + run * kRun);
            }
        }
    }

    // Drawn while the loads are under way.
    float eps[kQuad] = {};
    if (noise) {
        normals(random_words(*seed, quad, step, *first_sample + sample, kStepNoise), eps);
    }

#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
        const uint32_t element = quad * kQuad + run * kRun;
        if (element >= size) {
            return;
        }
        const uint32_t row = element / width, column = element % width;
        Pack<float, kRun> z, z0, moved;
        if (shift) {
            moved = Pack<float, kRun>::load(shift + column);
        }
        Pack<Next, kRun> next, next_z0;
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
            z0.value[i] = static_cast<float>(conditional[run].value[i]);
            if (guidance_scale) {
                const float u = static_cast<float>(unconditional[run].value[i]);
                z0.value[i] = u + *guidance_scale * (z0.value[i] - u);
            }
            z.value[i] =
                a * latent[run].value[i] + b * z0.value[i] + c * z0_previous[run].value[i] + s * eps[run * kRun + i];
            next.value[i] = static_cast<Next>(shift ? z.value[i] + moved.value[i] : z.value[i]);
            next_z0.value[i] = static_cast<Next>(z0.value[i]);
        }
        z.store(latents + here + run * kRun);
        z0.store(previous + here + run * kRun);
        if (self_condition) {
            Next* const target = next_input + (static_cast<size_t>(sample) * size + row * width) * 2 + column;
            next.store(target);
            next_z0.store(target + width);
            if (guidance_scale) {
                next.store(target + 2 * half);
                next_z0.store(target + 2 * half + width);
            }
        } else {
            next.store(next_input + here + run * kRun);
            if (guidance_scale) {
                next.store(next_input + half + here + run * kRun);
            }
        }
    }
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <typename Prediction, typename Next>
void launch(const DenoiseUpdate& call, cudaStream_t stream) {
    const uint32_t size = call.length * call.width;
    const uint32_t blocks_per_sample = (size - 1) / (kThreads * kQuad) + 1;
    const bool wide = call.width % kQuad == 0 && aligned(call.latents) && aligned(call.prediction) &&
                      aligned(call.previous) && aligned(call.next_input) && aligned(call.shift);
    const auto kernel =
        wide ? denoise_update_kernel<Prediction, Next, kQuad> : denoise_update_kernel<Prediction, Next, 1>;
    kernel<<<call.batch * blocks_per_sample, kThreads, 0, stream>>>(
        call.latents, static_cast<const Prediction*>(call.prediction), call.previous,
        static_cast<Next*>(call.next_input), call.coefficients, call.seed, call.first_sample, call.shift,
        call.guidance_scale, call.step, call.batch, size, call.width, blocks_per_sample, call.noise,
        call.self_condition);
    check_launch("denoise_update");
}

}  // namespace

void denoise_update(const DenoiseUpdate& call, cudaStream_t stream) {
    const bool narrow_prediction = call.prediction_dtype == Dtype::bfloat16;
    const bool narrow_next = call.next_input_dtype == Dtype::bfloat16;
    const auto launcher = narrow_prediction
                              ? (narrow_next ? launch<__nv_bfloat16, __nv_bfloat16> : launch<__nv_bfloat16, float>)
                              : (narrow_next ? launch<float, __nv_bfloat16> : launch<float, float>);
    launcher(call, stream);
}

}  // namespace dllm
