// What is kept of a row of logits while the vocabulary goes by: the best entry and, for log-probabilities, the
// log-sum-exp. Meaning: dllm_kernels/ops/lm_head/op.py.
#pragma once

#include <cmath>
#include <cstdint>

namespace dllm {

// An entry of the vocabulary. `value` is its logit with the noise, never NaN.
struct Entry {
    float value;
    uint32_t index;
    float logit;
};

// total = sum of exp(logit - largest), where largest ignores NaN and total does not.
struct ExpSum {
    float largest, total;
};

struct RowResult {
    Entry best;
    ExpSum sum;
};

__device__ __forceinline__ RowResult no_result() { return {{-INFINITY, 0xFFFFFFFFu, -INFINITY}, {-INFINITY, 0.0f}}; }

// NaN counts as +inf: of two operands fminf takes the one that is a number.
__device__ __forceinline__ float comparable(float value) { return fminf(value, INFINITY); }

// Field by field, which keeps entries in registers.
__device__ __forceinline__ Entry either(bool first, const Entry& a, const Entry& b) {
    return {first ? a.value : b.value, first ? a.index : b.index, first ? a.logit : b.logit};
}

// The larger value, of equals the lower index; without a branch.
__device__ __forceinline__ Entry better(const Entry& a, const Entry& b) {
    return either((a.value > b.value) | ((a.value == b.value) & (a.index < b.index)), a, b);
}

// What exponents are relative to: where all logits are -inf, exp(-inf - -inf) would be NaN.
__device__ __forceinline__ float exponent_shift(float largest) { return largest == -INFINITY ? 0.0f : largest; }

__device__ __forceinline__ ExpSum merged(const ExpSum& a, const ExpSum& b) {
    const float largest = fmaxf(a.largest, b.largest), shift = exponent_shift(largest);
    return {largest, a.total * __expf(a.largest - shift) + b.total * __expf(b.largest - shift)};
}

__device__ __forceinline__ RowResult merged(const RowResult& a, const RowResult& b, bool with_sum) {
    return {better(a.best, b.best), with_sum ? merged(a.sum, b.sum) : a.sum};
}

// Of the whole warp, for every lane.
__device__ __forceinline__ RowResult merged_over_warp(RowResult result, bool with_sum) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        const auto other = [&](auto value) { return __shfl_xor_sync(0xFFFFFFFFu, value, distance); };
        const Entry best{other(result.best.value), other(result.best.index), other(result.best.logit)};
        const ExpSum sum{other(result.sum.largest), other(result.sum.total)};
        result = merged(result, {best, sum}, with_sum);
    }
    return result;
}

// The row's token and, unless `logprobs` is null, its log-probability.
__device__ __forceinline__ void write_token(const RowResult& result, uint32_t row, int64_t* tokens, float* logprobs) {
    tokens[row] = result.best.index;
    if (logprobs) logprobs[row] = result.best.logit - result.sum.largest - logf(result.sum.total);
}

}  // namespace dllm
