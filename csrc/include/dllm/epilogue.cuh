// What a block of linear_skinny_wgmma.cu does beside and after the products: constants, row statistics and residual
// while weights stream, then the sums of all slices, the epilogue, and the statistics of what is written.
#pragma once

#include <cstdint>

#include "dllm/async.cuh"
#include "dllm/bf16.cuh"
#include "dllm/grid.cuh"
#include "dllm/kernels.h"
#include "dllm/mma.cuh"
#include "dllm/rows.cuh"

namespace dllm {

// Columns of K in a stage.
constexpr uint32_t kDepth = 64;
constexpr uint32_t kMaxStages = 16, kMaxInputStages = 8;
// Warps that do the end, and threads that fetch what it needs.
constexpr uint32_t kEndingWarps = 8, kEndThreads = 64;

struct Rings {
    Barrier weights_full[kMaxStages], weights_empty[kMaxStages];
    Barrier input_full[kMaxInputStages], input_empty[kMaxInputStages];
    Barrier multiplied;

    __device__ __forceinline__ void make(uint32_t weights, uint32_t input, uint32_t multiplying_warps) {
        for (uint32_t slot = 0; slot < weights; ++slot) {
            mbarrier_init(weights_full + slot, 1);
            mbarrier_init(weights_empty + slot, multiplying_warps);
        }
        for (uint32_t slot = 0; slot < input; ++slot) {
            mbarrier_init(input_full + slot, 1);
            mbarrier_init(input_empty + slot, multiplying_warps);
        }
        mbarrier_init(&multiplied, multiplying_warps);
        fence_mbarrier_init();
    }
};

// kOutputs outputs and kGroups times 64 rows a block, K in kSlices slices. Four warps for each 64 rows multiply; the
// last two, from kEndWarp on, fetch what the end needs. Shared memory: barriers, the block's part of four vectors,
// (mean, factor) of the own rows, statistics on their way, the own rows of the residual, both rings; later in the
// rings' place the sums.
template <int kOutputs_, int kSlices_, int kGroups_>
struct LinearCut {
    static constexpr int kOutputs = kOutputs_, kSlices = kSlices_, kGroups = kGroups_;
    static constexpr int kTiles = kOutputs / 8, kSixteens = kOutputs / 16;
    static constexpr uint32_t kRows = 64 * kGroups;
    static constexpr uint32_t kWeightBytes = kOutputs * kDepth * 2, kInputBytes = kRows * kDepth * 2;
    static constexpr uint32_t kMultiplyingWarps = 4 * kGroups, kWeightsWarp = kMultiplyingWarps;
    static constexpr uint32_t kInputWarp = kWeightsWarp + 1, kEndWarp = kInputWarp + 1;
    static constexpr uint32_t kThreads = kEndWarp * 32 + kEndThreads;
    // Each slice owns as many rows, in octets, each of which kSlices warps share.
    static constexpr uint32_t kOwnRows = kRows / kSlices, kOwnOctets = kOwnRows / 8;
    static constexpr int kOwn = (kSixteens - 1) / kSlices + 1;  // sixteens of a warp in an octet, at most
    static_assert(kSixteens >= kSlices);
    static constexpr uint32_t kPitch = kOutputs + 8;  // of the residual: rows in different banks

    static constexpr uint32_t kVectors = (sizeof(Rings) + 15) / 16 * 16;
    static constexpr uint32_t kStatistics = kVectors + 4 * kOutputs * 4;
    static constexpr uint32_t kParts = kStatistics + kOwnRows * 8;
    static constexpr uint32_t kResidual = kParts + kRows * 8;
    static constexpr uint32_t kRing = (kResidual + kOwnRows * kPitch * 2 + 1023) / 1024 * 1024;

    // Two stages of both, the least there are, hold the sums.
    static uint32_t bytes(uint32_t stages, uint32_t input_stages) {
        return kRing + stages * kWeightBytes + input_stages * kInputBytes;
    }
    static_assert(2 * (kWeightBytes + kInputBytes) >= kRows * kOutputs * 4);

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
class Epilogue {
  public:
    __device__ __forceinline__ Epilogue(const Linear& call, const Place& place, char* memory)
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
            cp_async_16(vectors_ + piece * 4, there ? from + first_output_ + output : call_.bias, there);
        }
        cp_async_commit();
    }

    __device__ __forceinline__ void fetch_rows() const {
        if (call_.residual) {
            for (uint32_t piece = end_thread(); piece < place_.own_rows * (Cut::kOutputs / 8); piece += kEndThreads) {
                const uint32_t row = piece / (Cut::kOutputs / 8), output = piece % (Cut::kOutputs / 8) * 8;
                const uint32_t token = place_.first_row + row;
                const size_t from = token < call_.residual_rows ? token : token % call_.residual_rows;
                const bool there = output < outputs_;
                cp_async_16(residual_ + row * Cut::kPitch + output,
                            static_cast<const bf16*>(call_.residual) +
                                (there ? from * call_.outputs + first_output_ + output : 0),
                            there);
            }
            cp_async_commit();
        }
        if (call_.column_sums) {
#pragma unroll 1
            for (uint32_t row = end_thread(); row < place_.own_rows; row += kEndThreads) {
                const size_t token = place_.first_row + row;
                statistics_[row] =
                    merge_chunks(reinterpret_cast<const float2*>(call_.statistics) + token * call_.chunks, call_.chunks,
                                 call_.chunk, call_.width);
            }
        }
        cp_async_wait<0>();
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
        float4 parts[Cut::kGroups * Cut::kOwn][Cut::kSlices];
        each_group([&](int group) {
            const float4* const from =
                sums_ + (place_.slice * Cut::kOwnOctets + octet(group)) * Cut::kSixteens * 32 + threadIdx.x % 32;
            each(group, [&](int i, uint32_t sixteen) {
#pragma unroll
                for (int s = 0; s < Cut::kSlices; ++s) {
                    parts[i][s] = Cut::kSlices > 1 ? dsmem_load(from + sixteen * 32, s) : from[sixteen * 32];
                }
            });
        });
        each_group([&](int group) {
            each(group, [&](int i, uint32_t) {
                float4 sum = parts[i][0];
#pragma unroll
                for (int s = 1; s < Cut::kSlices; ++s) {
                    const float4 part = parts[i][s];
                    sum = {sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w};
                }
                values_[i][0] = sum.x, values_[i][1] = sum.y, values_[i][2] = sum.z, values_[i][3] = sum.w;
            });
        });
    }

    // One step for all values of a group after the other, so that none waits for the one before.
    __device__ __forceinline__ void finish() {
        each_group([&](int group) {
            if (call_.column_sums) {
                const float2 mean_and_factor = statistics_[row(group)];
                with(group, kColumnSums,
                     [&](float& value, float sum) { value = mean_and_factor.y * (value - mean_and_factor.x * sum); });
            }
            if (call_.gate) with(group, kGate, [](float& value, float gate) { value *= gate; });
            with(group, kBias, [](float& value, float bias) { value += bias; });
            if (call_.gelu) with(group, kBias, [](float& value, float) { value = gelu(value); });
            if (call_.residual) {
                each(group, [&](int i, uint32_t sixteen) {
                    const uint2 left =
                        *reinterpret_cast<const uint2*>(residual_ + row(group) * Cut::kPitch + output_of(sixteen));
                    values_[i][0] += low_bf16(left.x), values_[i][1] += high_bf16(left.x);
                    values_[i][2] += low_bf16(left.y), values_[i][3] += high_bf16(left.y);
                });
            }
            write(group, call_.output);
        });
        if (call_.output_statistics) write_statistics();
        if (call_.next_scale) {
            each_group([&](int group) {
                with(group, kNextScale, [](float& value, float scale) { value *= 1 + scale; });
                write(group, call_.scaled_output);
            });
        }
    }

  private:
    enum Vector { kBias, kColumnSums, kGate, kNextScale };

    static __device__ __forceinline__ uint32_t end_thread() { return threadIdx.x - Cut::kEndWarp * 32; }
    // The first eight warps have kGroups octets of the own rows each, of which kSlices warps share the sixteens; a lane
    // has a row of an octet and four outputs.
    static __device__ __forceinline__ bool ends() { return Cut::kGroups == 1 || threadIdx.x < kEndingWarps * 32; }
    static __device__ __forceinline__ uint32_t octet(int group) {
        return group * (kEndingWarps / Cut::kSlices) + threadIdx.x / 32 / Cut::kSlices;
    }
    static __device__ __forceinline__ uint32_t share() { return threadIdx.x / 32 % Cut::kSlices; }
    static __device__ __forceinline__ uint32_t row(int group) { return octet(group) * 8 + threadIdx.x % 32 / 4; }
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

    // action(group) for each of the warp's octets.
    template <typename Action>
    static __device__ __forceinline__ void each_group(Action action) {
        if (!ends()) return;
#pragma unroll
        for (int group = 0; group < Cut::kGroups; ++group) {
            action(group);
        }
    }

    // action(i, sixteen) for each of the warp's in the octet of a group.
    template <typename Action>
    static __device__ __forceinline__ void each(int group, Action action) {
#pragma unroll
        for (int i = 0; i < Cut::kOwn; ++i) {
            const uint32_t sixteen = share() + i * Cut::kSlices;
            if (Cut::kSixteens % Cut::kSlices == 0 || sixteen < Cut::kSixteens) action(group * Cut::kOwn + i, sixteen);
        }
    }

    // action(value, the vector's for its output).
    template <typename Action>
    __device__ __forceinline__ void with(int group, Vector vector, Action action) {
        each(group, [&](int i, uint32_t sixteen) {
            const float4 at = *reinterpret_cast<const float4*>(vectors_ + vector * Cut::kOutputs + output_of(sixteen));
            action(values_[i][0], at.x), action(values_[i][1], at.y);
            action(values_[i][2], at.z), action(values_[i][3], at.w);
        });
    }

    // The values as they are rounded.
    __device__ __forceinline__ void write(int group, void* matrix) {
        const size_t here = (place_.first_row + row(group)) * static_cast<size_t>(call_.outputs) + first_output_;
        each(group, [&](int i, uint32_t sixteen) {
            float (&v)[4] = values_[i];
            const uint2 pairs{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])};
            v[0] = low_bf16(pairs.x), v[1] = high_bf16(pairs.x);
            v[2] = low_bf16(pairs.y), v[3] = high_bf16(pairs.y);
            if (row(group) < place_.own_rows && output_of(sixteen) < outputs_) {
                *reinterpret_cast<uint2*>(static_cast<bf16*>(matrix) + here + output_of(sixteen)) = pairs;
            }
        });
    }

    // Of the warp's share of an octet.
    __device__ __forceinline__ float2 statistics_of(int group) const {
        float total = 0, squares = 0;
        // Padding is 0.
        each(group,
             [&](int i, uint32_t) { total += (values_[i][0] + values_[i][1]) + (values_[i][2] + values_[i][3]); });
        const float mean = sum_over<4>(total) / static_cast<float>(max(columns_of(share()), 1u));
        each(group, [&](int i, uint32_t sixteen) {
            float sum = 0;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                sum += (values_[i][j] - mean) * (values_[i][j] - mean);
            }
            squares += output_of(sixteen) < outputs_ ? sum : 0;
        });
        return {mean, sum_over<4>(squares)};
    }

    // Of every warp's share, then merged over the warps that share the rows.
    __device__ __forceinline__ void write_statistics() {
        float2* const to = reinterpret_cast<float2*>(call_.output_statistics) +
                           static_cast<size_t>(place_.first_row) * place_.column_blocks + place_.column_block;
        each_group([&](int group) {
            const float2 part = statistics_of(group);
            if (threadIdx.x % 4 != 0) return;
            if constexpr (Cut::kSlices == 1) {
                if (row(group) < place_.own_rows) to[row(group) * place_.column_blocks] = part;
            } else {
                parts_[row(group) * Cut::kSlices + share()] = part;
            }
        });
        if constexpr (Cut::kSlices == 1) return;
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
    float values_[Cut::kGroups * Cut::kOwn][4] = {};
};

}  // namespace dllm
