// What follows a product, for every main loop: y = act(norm(product) gate + bias) + residual, rounding, the statistics
// of the rows that are written, and y (1 + next_scale) for the next layer.
//
// A lane has quads: four neighbouring outputs of one row. each(action) calls action(quad, output) for all of a lane's
// quads of a row, `output` being the quad's first output in the block. A step is done for all quads before the next
// step, so that none waits for the one before.
#pragma once

#include <cstdint>

#include "dllm/async.cuh"
#include "dllm/bf16.cuh"
#include "dllm/kernels.h"
#include "dllm/row_statistics.cuh"

namespace dllm {

// x Phi(x), with erfc by Abramowitz and Stegun 7.1.26, whose error of 1.5e-7 is far below bfloat16's rounding.
__device__ __forceinline__ float gelu(float x) {
    const float t = __fdividef(1.0f, 1.0f + 0.23164189f * fabsf(x));
    const float polynomial =
        t * (0.127414796f + t * (-0.142248368f + t * (0.71070687f + t * (-0.726576013f + t * 0.53070271f))));
    return fmaxf(x, 0.0f) - fabsf(x) * (polynomial * __expf(-0.5f * x * x));
}

enum EpilogueVector { kBias, kColumnSums, kGate, kNextScale, kEpilogueVectors };

struct EpilogueSteps {
    bool normalize, gate, gelu, residual;
};

// The quads of a row, in place: vector_at(which, output) gives a vector's four values, residual_at(output) the
// residual's, as two words of bfloat16.
template <typename Each, typename VectorAt, typename ResidualAt>
__device__ __forceinline__ void apply_epilogue(EpilogueSteps steps, float2 mean_and_rstd, Each each, VectorAt vector_at,
                                               ResidualAt residual_at) {
    const auto with = [&](EpilogueVector which, auto action) {
        each([&](float (&quad)[4], uint32_t output) {
            const float4 at = vector_at(which, output);
            action(quad[0], at.x), action(quad[1], at.y), action(quad[2], at.z), action(quad[3], at.w);
        });
    };
    if (steps.normalize) {
        with(kColumnSums, [&](float& value, float sum) { value = mean_and_rstd.y * (value - mean_and_rstd.x * sum); });
    }
    if (steps.gate) with(kGate, [](float& value, float gate) { value *= gate; });
    with(kBias, [](float& value, float bias) { value += bias; });
    if (steps.gelu) {
        each([](float (&quad)[4], uint32_t) {
#pragma unroll
            for (float& value : quad) {
                value = gelu(value);
            }
        });
    }
    if (steps.residual) {
        each([&](float (&quad)[4], uint32_t output) {
            const uint2 pairs = residual_at(output);
            quad[0] += low_bf16(pairs.x), quad[1] += high_bf16(pairs.x);
            quad[2] += low_bf16(pairs.y), quad[3] += high_bf16(pairs.y);
        });
    }
}

// (mean, sum of squared deviations) of the part of a row that kLanes neighbouring lanes have: `columns` outputs. Quads
// from `outputs` on are padding, and 0.
template <int kLanes, typename Each>
__device__ __forceinline__ float2 row_statistics(Each each, uint32_t columns, uint32_t outputs) {
    float total = 0, squares = 0;
    each([&](const float (&quad)[4], uint32_t) { total += (quad[0] + quad[1]) + (quad[2] + quad[3]); });
    const float mean = sum_over<kLanes>(total) / static_cast<float>(max(columns, 1u));
    each([&](const float (&quad)[4], uint32_t output) {
        float sum = 0;
#pragma unroll
        for (const float value : quad) {
            sum += (value - mean) * (value - mean);
        }
        squares += output < outputs ? sum : 0;
    });
    return {mean, sum_over<kLanes>(squares)};
}

// The epilogue of a skinny tile of kN outputs, whose part of the vectors and whose own rows of the residual, kPitch
// values apart, lie in shared memory.
template <int kN, int kPitch>
struct SkinnyEpilogue {
    static constexpr uint32_t kVectorBytes = kEpilogueVectors * kN * sizeof(float);

    const LinearSkinny& call;
    const uint32_t first_output, outputs;  // the block's, without padding
    float* const vectors;
    bf16* const residual;

    __device__ __forceinline__ SkinnyEpilogue(const LinearSkinny& call, uint32_t column_block, char* vectors,
                                              char* residual)
        : call(call),
          first_output(column_block * kN),
          outputs(min(uint32_t{kN}, call.n - first_output)),
          vectors(reinterpret_cast<float*>(vectors)),
          residual(reinterpret_cast<bf16*>(residual)) {}

    // By kThreads threads, of which this is `thread`; zeros stand for what is absent.
    template <uint32_t kThreads>
    __device__ __forceinline__ void load_vectors(uint32_t thread) const {
        for (uint32_t piece = thread; piece < kN; piece += kThreads) {
            const uint32_t vector = piece / (kN / 4), output = piece % (kN / 4) * 4;
            const float* const from = vector == kBias         ? call.bias
                                      : vector == kColumnSums ? call.column_sums
                                      : vector == kGate       ? call.gate
                                                              : call.next_scale;
            const bool there = from && output < outputs;
            cp_async_16(vectors + piece * 4, there ? from + first_output + output : call.bias, there);
        }
    }

    // The residual of `rows` rows from first_row on; nothing where there is none.
    template <uint32_t kThreads>
    __device__ __forceinline__ void load_residual(uint32_t thread, uint32_t first_row, uint32_t rows) const {
        if (!call.residual) return;
        for (uint32_t piece = thread; piece < rows * (kN / 8); piece += kThreads) {
            const uint32_t row = piece / (kN / 8), output = piece % (kN / 8) * 8, token = first_row + row;
            const size_t from = token < call.residual_rows ? token : token % call.residual_rows;
            const bool there = output < outputs;
            cp_async_16(residual + row * kPitch + output,
                        static_cast<const bf16*>(call.residual) + (there ? from * call.n + first_output + output : 0),
                        there);
        }
    }

    // `row` is counted from the first row of the residual.
    template <typename Each>
    __device__ __forceinline__ void apply(float2 mean_and_rstd, uint32_t row, Each each) const {
        const EpilogueSteps steps{.normalize = call.column_sums != nullptr,
                                  .gate = call.gate != nullptr,
                                  .gelu = call.gelu,
                                  .residual = call.residual != nullptr};
        apply_epilogue(
            steps, mean_and_rstd, each, [&](EpilogueVector which, uint32_t output) { return at(which, output); },
            [&](uint32_t output) { return *reinterpret_cast<const uint2*>(residual + row * kPitch + output); });
    }

    // Writes a row of a matrix [m, n]; the quads then are as they were rounded.
    template <typename Each>
    __device__ __forceinline__ void write(void* matrix, size_t row, bool real, Each each) const {
        bf16* const to = static_cast<bf16*>(matrix) + row * call.n + first_output;
        each([&](float (&quad)[4], uint32_t output) {
            const uint2 pairs{pack_bf16(quad[0], quad[1]), pack_bf16(quad[2], quad[3])};
            quad[0] = low_bf16(pairs.x), quad[1] = high_bf16(pairs.x);
            quad[2] = low_bf16(pairs.y), quad[3] = high_bf16(pairs.y);
            if (real && output < outputs) *reinterpret_cast<uint2*>(to + output) = pairs;
        });
    }

    template <typename Each>
    __device__ __forceinline__ void scale_for_next(Each each) const {
        each([&](float (&quad)[4], uint32_t output) {
            const float4 scale = at(kNextScale, output);
            quad[0] *= 1 + scale.x, quad[1] *= 1 + scale.y, quad[2] *= 1 + scale.z, quad[3] *= 1 + scale.w;
        });
    }

  private:
    __device__ __forceinline__ float4 at(EpilogueVector which, uint32_t output) const {
        return *reinterpret_cast<const float4*>(vectors + which * kN + output);
    }
};

}  // namespace dllm
