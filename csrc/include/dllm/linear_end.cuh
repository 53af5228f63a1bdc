// What a block of linear_warpgroup.cu does beside and after the products: constants, row statistics and residual while
// weights stream, then the sums of all slices, the epilogue, and the statistics of what is written.
#pragma once

#include <cstdint>

#include "dllm/async.cuh"
#include "dllm/bf16.cuh"
#include "dllm/grid.cuh"
#include "dllm/kernels.h"
#include "dllm/mma.cuh"
#include "dllm/rows.cuh"

namespace dllm {

// Rows of a block; columns of K in a stage.
constexpr uint32_t kRows = 64, kDepth = 64, kInputBytes = kRows * kDepth * 2;
constexpr uint32_t kMostStages = 16, kMostInputStages = 8;
// The first four warps multiply; the last two, from kEndWarp on, fetch what the end needs; all eight do the end.
constexpr uint32_t kMultiplyingWarps = 4, kWeightsWarp = 4, kInputWarp = 5, kEndWarp = 6, kThreads = 256;
constexpr uint32_t kEndThreads = kThreads - kEndWarp * 32;

struct Rings {
    Barrier weights_full[kMostStages], weights_empty[kMostStages];
    Barrier input_full[kMostInputStages], input_empty[kMostInputStages];
    Barrier multiplied;

    __device__ __forceinline__ void make(uint32_t weights, uint32_t input) {
        for (uint32_t slot = 0; slot < weights; ++slot) {
            barrier_init(weights_full + slot, 1);
            barrier_init(weights_empty + slot, kMultiplyingWarps);
        }
        for (uint32_t slot = 0; slot < input; ++slot) {
            barrier_init(input_full + slot, 1);
            barrier_init(input_empty + slot, kMultiplyingWarps);
        }
        barrier_init(&multiplied, kMultiplyingWarps);
        barriers_ready();
    }
};

// kOutputs outputs a block, K in kSlices slices. Shared memory: barriers, the block's part of four vectors, (mean,
// factor) of the own rows, statistics on their way, the own rows of the residual, both rings; later in the rings' place
// the sums.
template <int kOutputs_, int kSlices_>
struct LinearCut {
    static constexpr int kOutputs = kOutputs_, kSlices = kSlices_;
    static constexpr int kTiles = kOutputs / 8, kSixteens = kOutputs / 16;
    static constexpr uint32_t kWeightBytes = kOutputs * kDepth * 2;
    // Each slice owns as many rows, in octets, each of which kSlices warps share.
    static constexpr uint32_t kOwnRows = kRows / kSlices, kOwnOctets = kOwnRows / 8;
    static constexpr int kOwn = (kSixteens - 1) / kSlices + 1;  // sixteens of a warp, at most
    static_assert(kSixteens >= kSlices);
    static constexpr uint32_t kPitch = kOutputs + 8;  // of the residual: rows in different banks

    static constexpr uint32_t kVectors = (sizeof(Rings) + 15) / 16 * 16;
    static constexpr uint32_t kStatistics = kVectors + 4 * kOutputs * 4;
    static constexpr uint32_t kParts = kStatistics + kOwnRows * 8;
    static constexpr uint32_t kResidual = kParts + kRows * 8;
    static constexpr uint32_t kRing = (kResidual + kOwnRows * kPitch * 2 + 1023) / 1024 * 1024;

    // Two stages of weights, the least there are, hold the sums.
    static uint32_t bytes(uint32_t stages, uint32_t input_stages) {
        return kRing + stages * kWeightBytes + input_stages * kInputBytes;
    }
    static_assert(2 * kWeightBytes >= kRows * kOutputs * 4);

    static __device__ __forceinline__ uint32_t own_rows(uint32_t rows, uint32_t row_block, uint32_t slice) {
        const uint32_t first = row_block * kRows + slice * kOwnRows;
        return rows > first ? min(kOwnRows, rows - first) : 0;
    }
};

// Where a block stands, and its own rows.
struct Place {
    uint32_t slice, column_block, column_blocks, first_row, own_rows;
};

template <typename Cut>
class LinearEnd {
  public:
    __device__ __forceinline__ LinearEnd(const Linear& call, const Place& place, char* memory)
        : call_(call),
          place_(place),
          first_output_(place.column_block * Cut::kOutputs),
          outputs_(min(uint32_t{Cut::kOutputs}, call.outputs - first_output_)),
          vectors_(reinterpret_cast<float*>(memory + Cut::kVectors)),
          statistics_(reinterpret_cast<float2*>(memory + Cut::kStatistics)),
          parts_(reinterpret_cast<float2*>(memory + Cut::kParts)),
          residual_(reinterpret_cast<bf16*>(memory + Cut::kResidual)),
          sums_(reinterpret_cast<float4*>(memory + Cut::kRing)) {}

    // By the warps from kEndWarp on, who also fetch the rows.
    __device__ __forceinline__ void fetch_constants() const {
        for (uint32_t piece = end_thread(); piece < Cut::kOutputs; piece += kEndThreads) {
            const uint32_t vector = piece / (Cut::kOutputs / 4), output = piece % (Cut::kOutputs / 4) * 4;
            const float* const from = vector == kBias         ? call_.bias
                                      : vector == kColumnSums ? call_.column_sums
                                      : vector == kGate       ? call_.gate
                                                              : call_.next_scale;
            const bool there = from && output < outputs_;
            copy_16(vectors_ + piece * 4, there ? from + first_output_ + output : call_.bias, there);
        }
        copies_commit();
    }

    __device__ __forceinline__ void fetch_rows() const {
        if (call_.residual) {
            for (uint32_t piece = end_thread(); piece < place_.own_rows * (Cut::kOutputs / 8); piece += kEndThreads) {
                const uint32_t row = piece / (Cut::kOutputs / 8), output = piece % (Cut::kOutputs / 8) * 8;
                const uint32_t token = place_.first_row + row;
                const size_t from = token < call_.residual_rows ? token : token % call_.residual_rows;
                const bool there = output < outputs_;
                copy_16(residual_ + row * Cut::kPitch + output,
                        static_cast<const bf16*>(call_.residual) +
                            (there ? from * call_.outputs + first_output_ + output : 0),
                        there);
            }
            copies_commit();
        }
        if (call_.column_sums && end_thread() < place_.own_rows) {
            const size_t token = place_.first_row + end_thread();
            statistics_[end_thread()] =
                merge_chunks(reinterpret_cast<const float2*>(call_.statistics) + token * call_.chunks, call_.chunks,
                             call_.chunk, call_.width);
        }
        copies_wait<0>();
    }

    // A multiplying warp's sums: [octet][sixteen][lane], four neighbouring outputs of a row, in the packing's order.
    __device__ __forceinline__ void leave(const float (&sums)[Cut::kTiles][4]) const {
        float4* const mine = sums_ + (threadIdx.x / 32 * 2 * Cut::kSixteens) * 32 + threadIdx.x % 32;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int i = 0; i < Cut::kSixteens; ++i) {
                mine[(half * Cut::kSixteens + i) * 32] = {sums[2 * i][2 * half], sums[2 * i][2 * half + 1],
                                                          sums[2 * i + 1][2 * half], sums[2 * i + 1][2 * half + 1]};
            }
        }
    }

    // The sums of all slices, in their order; all are on their way at once, since the other blocks are far.
    __device__ __forceinline__ void add_up() {
        const float4* const from =
            sums_ + (place_.slice * Cut::kOwnOctets + octet()) * Cut::kSixteens * 32 + threadIdx.x % 32;
        float4 parts[Cut::kOwn][Cut::kSlices];
        each([&](int i, uint32_t sixteen) {
#pragma unroll
            for (int s = 0; s < Cut::kSlices; ++s) {
                parts[i][s] = Cut::kSlices > 1 ? read_peer(from + sixteen * 32, s) : from[sixteen * 32];
            }
        });
        each([&](int i, uint32_t) {
            float4 sum = parts[i][0];
#pragma unroll
            for (int s = 1; s < Cut::kSlices; ++s) {
                const float4 part = parts[i][s];
                sum = {sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w};
            }
            values_[i][0] = sum.x, values_[i][1] = sum.y, values_[i][2] = sum.z, values_[i][3] = sum.w;
        });
    }

    // One step for all values after the other, so that none waits for the one before.
    __device__ __forceinline__ void finish() {
        if (call_.column_sums) {
            const float2 mean_and_factor = statistics_[row()];
            with(kColumnSums,
                 [&](float& value, float sum) { value = mean_and_factor.y * (value - mean_and_factor.x * sum); });
        }
        if (call_.gate) with(kGate, [](float& value, float gate) { value *= gate; });
        with(kBias, [](float& value, float bias) { value += bias; });
        if (call_.gelu) with(kBias, [](float& value, float) { value = gelu(value); });
        if (call_.residual) {
            each([&](int i, uint32_t sixteen) {
                const uint2 left =
                    *reinterpret_cast<const uint2*>(residual_ + row() * Cut::kPitch + output_of(sixteen));
                values_[i][0] += low_bf16(left.x), values_[i][1] += high_bf16(left.x);
                values_[i][2] += low_bf16(left.y), values_[i][3] += high_bf16(left.y);
            });
        }
        const auto write = [&](void* matrix) {
            const size_t here = (place_.first_row + row()) * static_cast<size_t>(call_.outputs) + first_output_;
            each([&](int i, uint32_t sixteen) {
                float (&v)[4] = values_[i];
                const uint2 pairs{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])};
                v[0] = low_bf16(pairs.x), v[1] = high_bf16(pairs.x);
                v[2] = low_bf16(pairs.y), v[3] = high_bf16(pairs.y);
                if (row() < place_.own_rows && output_of(sixteen) < outputs_) {
                    *reinterpret_cast<uint2*>(static_cast<bf16*>(matrix) + here + output_of(sixteen)) = pairs;
                }
            });
        };
        write(call_.output);
        if (call_.output_statistics) write_statistics();
        if (call_.next_scale) {
            with(kNextScale, [](float& value, float scale) { value *= 1 + scale; });
            write(call_.scaled_output);
        }
    }

  private:
    enum Vector { kBias, kColumnSums, kGate, kNextScale };

    static __device__ __forceinline__ uint32_t end_thread() { return threadIdx.x - kEndWarp * 32; }
    // A warp has an octet of the own rows, of which kSlices warps share the sixteens; a lane has a row and four
    // outputs.
    static __device__ __forceinline__ uint32_t octet() { return threadIdx.x / 32 / Cut::kSlices; }
    static __device__ __forceinline__ uint32_t share() { return threadIdx.x / 32 % Cut::kSlices; }
    static __device__ __forceinline__ uint32_t row() { return octet() * 8 + threadIdx.x % 32 / 4; }
    static __device__ __forceinline__ uint32_t output_of(uint32_t sixteen) {
        return sixteen * 16 + threadIdx.x % 4 * 4;
    }
    // Outputs of a share that are not padding.
    __device__ __forceinline__ uint32_t columns_of(uint32_t share) const {
        uint32_t columns = 0;
#pragma unroll
        for (uint32_t i = 0; i < Cut::kOwn; ++i) {
            const uint32_t first = 16 * (share + i * Cut::kSlices);
            columns += first < outputs_ ? min(16u, outputs_ - first) : 0;
        }
        return columns;
    }

    // action(i, sixteen) for each of the warp's.
    template <typename Action>
    static __device__ __forceinline__ void each(Action action) {
#pragma unroll
        for (int i = 0; i < Cut::kOwn; ++i) {
            const uint32_t sixteen = share() + i * Cut::kSlices;
            if (Cut::kSixteens % Cut::kSlices == 0 || sixteen < Cut::kSixteens) action(i, sixteen);
        }
    }

    // action(value, the vector's for its output).
    template <typename Action>
    __device__ __forceinline__ void with(Vector vector, Action action) {
        each([&](int i, uint32_t sixteen) {
            const float4 at = *reinterpret_cast<const float4*>(vectors_ + vector * Cut::kOutputs + output_of(sixteen));
            action(values_[i][0], at.x), action(values_[i][1], at.y);
            action(values_[i][2], at.z), action(values_[i][3], at.w);
        });
    }

    // Of the warp's share, then merged over the warps that share the rows.
    __device__ __forceinline__ void write_statistics() {
        float total = 0, squares = 0;
        // Padding is 0.
        each([&](int i, uint32_t) { total += (values_[i][0] + values_[i][1]) + (values_[i][2] + values_[i][3]); });
        const float mean = sum_over<4>(total) / static_cast<float>(max(columns_of(share()), 1u));
        each([&](int i, uint32_t sixteen) {
            float sum = 0;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                sum += (values_[i][j] - mean) * (values_[i][j] - mean);
            }
            squares += output_of(sixteen) < outputs_ ? sum : 0;
        });
        const float2 part{mean, sum_over<4>(squares)};
        float2* const to = reinterpret_cast<float2*>(call_.output_statistics) +
                           static_cast<size_t>(place_.first_row) * place_.column_blocks + place_.column_block;
        if constexpr (Cut::kSlices == 1) {
            if (threadIdx.x % 4 == 0 && row() < place_.own_rows) to[row() * place_.column_blocks] = part;
            return;
        }
        if (threadIdx.x % 4 == 0) parts_[row() * Cut::kSlices + share()] = part;
        __syncthreads();
        if (threadIdx.x < place_.own_rows) {
            const float2* const parts = parts_ + threadIdx.x * Cut::kSlices;
            float whole = 0, deviations = 0;
#pragma unroll
            for (int s = 0; s < Cut::kSlices; ++s) {
                whole += parts[s].x * static_cast<float>(columns_of(s));
            }
            whole /= static_cast<float>(outputs_);
#pragma unroll
            for (int s = 0; s < Cut::kSlices; ++s) {
                const float apart = parts[s].x - whole;
                deviations += parts[s].y + apart * apart * static_cast<float>(columns_of(s));
            }
            to[threadIdx.x * place_.column_blocks] = {whole, deviations};
        }
        __syncwarp();
    }

    const Linear& call_;
    const Place place_;
    const uint32_t first_output_, outputs_;  // without padding
    float* const vectors_;
    float2 *const statistics_, *const parts_;
    bf16* const residual_;
    float4* const sums_;
    float values_[Cut::kOwn][4] = {};
};

}  // namespace dllm
