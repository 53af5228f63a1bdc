// Counter-based noise for device code; truth and source: dllm_kernels/diffusion/noise.py. Compiles as plain C++ too.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define DLLM_INLINE __host__ __device__ __forceinline__
#else
#define DLLM_INLINE inline
#endif

namespace dllm {

constexpr uint32_t kStepNoise = 1, kGumbelNoise = 2;

struct Words {
    uint32_t word[4];
};

// Philox 4x32-10 of a 64-bit key and a 128-bit counter.
DLLM_INLINE Words philox(uint64_t key, Words counter) {
    uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
    auto [c0, c1, c2, c3] = counter.word;
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t{0xD2511F53} * c0, product1 = uint64_t{0xCD9E8D57} * c2;
        c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
        c1 = static_cast<uint32_t>(product1);
        c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
        c3 = static_cast<uint32_t>(product0);
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
    return {{c0, c1, c2, c3}};
}

// The words of values 4 quad to 4 quad + 3 of a sample. Sample numbers past 2^32 go on in the stream word.
DLLM_INLINE Words random_words(int64_t seed, uint32_t quad, uint32_t step, int64_t sample, uint32_t stream) {
    const uint32_t low = static_cast<uint32_t>(sample), high = static_cast<uint32_t>(sample >> 32);
    return philox(static_cast<uint64_t>(seed), {{quad, step, low, stream | high << 8}});
}

// In (0, 1), exact: the odd multiples of 2^-24.
DLLM_INLINE float uniform(uint32_t word) { return (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f; }

// Two standard normals by Box-Muller, within 1e-6. Turns are reduced exactly to an eighth, where short series reach
// 1e-7.
DLLM_INLINE void normal_pair(uint32_t word0, uint32_t word1, float& normal0, float& normal1) {
    const float turns = uniform(word1) * 8.0f;
    const int octant = static_cast<int>(turns);
    const bool odd = octant & 1;
    // Within an octant the angle is measured from its even end, so x stays within [0, pi/4].
    const float x =
        (odd ? static_cast<float>(octant + 1) - turns : turns - static_cast<float>(octant)) * 0.7853981633974483f;
    const float y = x * x;
    float sine = x * (1.0f + y * (-0.16666667f + y * (8.3333333e-3f + y * (-1.9841270e-4f + y * 2.7557319e-6f))));
    const float cosine =
        1.0f + y * (-0.5f + y * (4.1666667e-2f + y * (-1.3888889e-3f + y * (2.4801587e-5f - y * 2.7557319e-7f))));
    sine = odd ? -sine : sine;
    // Quarter turns, to the nearest even end, rotate (cosine, sine).
    const int quarter = (octant + 1) / 2;
    const bool swap = quarter & 1;
    const float radius = sqrtf(-2.0f * logf(uniform(word0)));
    const float signed_radius = quarter == 2 || quarter == 3 ? -radius : radius;
    normal0 = signed_radius * (swap ? -sine : cosine);
    normal1 = signed_radius * (swap ? cosine : sine);
}

// The standard normals of the four values that `words` stands for.
DLLM_INLINE void normals(Words words, float (&values)[4]) {
    normal_pair(words.word[0], words.word[1], values[0], values[1]);
    normal_pair(words.word[2], words.word[3], values[2], values[3]);
}

// A standard Gumbel value. Not the fast logarithm: near 1 it is wrong by more than the logarithm itself.
DLLM_INLINE float gumbel(uint32_t word) { return -logf(-logf(uniform(word))); }

}  // namespace dllm
