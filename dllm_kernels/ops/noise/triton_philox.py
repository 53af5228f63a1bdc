"""Counter-based noise in Triton: the device functions behind every kernel that draws noise (truth: diffusion/noise.py)."""

import triton
import triton.language as tl


@triton.jit
def philox_words(seed, block, step, sample, stream: tl.constexpr):
    """Four uint32 words of the counter (block, step, sample, stream); block and step int32, sample and seed int64."""
    low = sample.to(tl.uint32)
    high = (((sample >> 32) << 8) | stream).to(tl.uint32)
    zero = (block * 0).to(tl.uint32)
    return tl.philox(seed, block.to(tl.uint32), zero + step.to(tl.uint32), zero + low, zero + high)


@triton.jit
def uniform(word):
    """A uint32 word to float32 in (0, 1), exact: the odd multiples of 2^-24."""
    return ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def normal_pair(word_a, word_b):
    """Two standard normals by Box-Muller. Turns are reduced exactly to an eighth, where short series reach 1e-7."""
    radius = tl.sqrt_rn(-2.0 * tl.log(uniform(word_a)))
    turns = uniform(word_b) * 8.0
    octant = turns.to(tl.int32)
    odd = (octant & 1) == 1
    # Within an octant the angle is measured from its even end, so x stays within [0, pi/4].
    x = tl.where(odd, (octant + 1).to(tl.float32) - turns, turns - octant.to(tl.float32)) * 0.7853981633974483
    y = x * x
    sine = x * (1.0 + y * (-0.16666667 + y * (8.3333333e-3 + y * (-1.9841270e-4 + y * 2.7557319e-6))))
    cosine = 1.0 + y * (-0.5 + y * (4.1666667e-2 + y * (-1.3888889e-3 + y * (2.4801587e-5 - y * 2.7557319e-7))))
    # Quarter turns q = ceil(octant / 2) rotate (cos x, sin x); odd octants count x backwards, so their sine flips.
    sine = tl.where(odd, -sine, sine)
    quarter = ((octant + 1) // 2) % 4
    swap = (quarter & 1) == 1
    c = tl.where(swap, -sine, cosine)
    s = tl.where(swap, cosine, sine)
    flip = tl.where(quarter >= 2, -1.0, 1.0)
    return radius * c * flip, radius * s * flip


@triton.jit
def gumbel(word):
    """A standard Gumbel value of a word."""
    return -tl.log(-tl.log(uniform(word)))


@triton.jit
def normals(seed, first, step, sample, stream: tl.constexpr, SIZE: tl.constexpr):
    """Values `first` to `first` + SIZE of a sample's standard normals; first, SIZE multiples of 4, first and step int32."""
    block = first // 4 + tl.arange(0, SIZE // 4)
    word0, word1, word2, word3 = philox_words(seed, block, block * 0 + step, sample, stream)
    value0, value1 = normal_pair(word0, word1)
    value2, value3 = normal_pair(word2, word3)
    # join makes a new last dimension, so the even and the odd values meet first.
    return tl.reshape(tl.join(tl.join(value0, value2), tl.join(value1, value3)), (SIZE,))
