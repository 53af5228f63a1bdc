"""Triton's noise against the truth in diffusion/noise.py."""

import pytest
import torch
import triton
import triton.language as tl

from dllm_kernels.diffusion.noise import GUMBEL_NOISE, INITIAL_NOISE, STEP_NOISE, gumbels, normals, uniforms, words
from dllm_kernels.ops.noise import triton_philox as philox
from dllm_kernels.ops.noise.op import initial_noise
from tests.numerics import poisoned

STREAMS = (INITIAL_NOISE, STEP_NOISE, GUMBEL_NOISE)


@triton.jit(do_not_specialize=["step"])
def draw_kernel(words, uniforms, gumbels, seed, sample, step, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    block = tl.arange(0, BLOCK)
    four = philox.philox_words(tl.load(seed), block, block * 0 + step, tl.load(sample), STREAM)
    for i in tl.static_range(4):
        tl.store(words + 4 * block + i, four[i].to(tl.int64))
        tl.store(uniforms + 4 * block + i, philox.uniform(four[i]))
        tl.store(gumbels + 4 * block + i, philox.gumbel(four[i]))


@triton.jit
def normal_pair_kernel(radius_words, angle_words, normals, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b = tl.load(radius_words + i).to(tl.uint32), tl.load(angle_words + i).to(tl.uint32)
    cosine, sine = philox.normal_pair(a, b)
    tl.store(normals + 2 * i, cosine)
    tl.store(normals + 2 * i + 1, sine)


def scalar(value: int, device) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int64, device=device)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("seed", [0, 12345, -1, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("sample", [0, 2**32 - 1, 2**32, 2**40 + 7, -2])
def test_words_and_uniforms_are_bit_equal(device, stream, seed, sample):
    for step in (0, 1, 999):
        drawn = poisoned(256, dtype=torch.int64, device=device)
        uniform, gumbel = (poisoned(256, dtype=torch.float32, device=device) for _ in range(2))
        draw_kernel[(1,)](drawn, uniform, gumbel, scalar(seed, device), scalar(sample, device), step, STREAM=stream, BLOCK=64)
        truth = words(seed, sample, step, stream, 1, torch.arange(256))[0]
        assert torch.equal(drawn.cpu(), truth)
        assert torch.equal(uniform.cpu(), uniforms(truth))
        assert (gumbel.cpu().double() - gumbels(uniforms(truth).double())).abs().max() < 1e-5


def test_normals_at_the_ends_of_every_octant(device):
    near = torch.tensor([-(2**28), -1025, -513, -1, 0, 512, 1024, 2**28])
    angles = (torch.arange(8).unsqueeze(1) * 2**29 + near).flatten() % 2**32
    for radius_word in (0, 2**20, 2**31, 2**32 - 1):  # From the largest radius, 5.8, to the least, 3.5e-4.
        radii = torch.full_like(angles, radius_word)
        drawn = poisoned(64, 2, dtype=torch.float32, device=device)
        normal_pair_kernel[(1,)](radii.to(device), angles.to(device), drawn, BLOCK=64, enable_fp_fusion=True)
        radius, turns = torch.sqrt(-2 * uniforms(radii).double().log()), 2 * torch.pi * uniforms(angles).double()
        truth = torch.stack((radius * turns.cos(), radius * turns.sin()), dim=-1)
        assert ((drawn.cpu().double() - truth).abs() < 1e-6).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 9), (3, 13, 127), (1, 16, 513)])
@pytest.mark.parametrize(("seed", "first"), [(7, 0), (-(2**50), 2**32 - 2)])
def test_initial_noise_is_within_a_millionth(device, shape, seed, first):
    batch, length, width = shape
    noise = initial_noise(scalar(seed, device), scalar(first, device), *shape, torch.float32, backend="triton")
    truth = normals(seed, first, 0, INITIAL_NOISE, batch, length * width).view(shape)
    assert noise.dtype == torch.float32
    assert (noise.cpu().double() - truth).abs().max() < 1e-6


def test_a_sample_is_the_same_in_every_batch(device):
    seed, first = scalar(3, device), 2**32 - 2
    whole = initial_noise(seed, scalar(first, device), 4, 13, 51, torch.float32, backend="triton")
    for j in range(4):
        alone = initial_noise(seed, scalar(first + j, device), 1, 13, 51, torch.float32, backend="triton")
        assert torch.equal(alone[0], whole[j])


def test_float64_is_served_by_torch_alone(device):
    seed, first = scalar(3, device), scalar(0, device)
    with pytest.raises(ValueError, match="computes in float32, and dtype is float64"):
        initial_noise(seed, first, 1, 2, 3, torch.float64, backend="triton")
    noise = initial_noise(seed, first, 1, 2, 3, torch.float64)
    torch.testing.assert_close(noise.cpu().flatten(1), normals(3, 0, 0, INITIAL_NOISE, 1, 6), rtol=1e-14, atol=1e-14)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA graph")
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_captured_graph_reads_new_seeds(device, backend):
    seed, first = scalar(1, device), scalar(0, device)

    def draw():
        return initial_noise(seed, first, 2, 8, 65, torch.float32, backend=backend)

    draw()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        noise = draw()
    for new_seed, new_first in ((5, 9), (-5, 2**32)):
        seed.fill_(new_seed)
        first.fill_(new_first)
        graph.replay()
        assert torch.equal(noise, draw())
