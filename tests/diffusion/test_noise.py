"""Counter-based noise: the generator's published answers, the counter's layout, the distributions, and the op on a CPU."""

import math

import pytest
import torch

from dllm_kernels.diffusion.noise import (
    GUMBEL_NOISE,
    INITIAL_NOISE,
    STEP_NOISE,
    gumbels,
    normals,
    philox,
    uniforms,
    words,
)
from dllm_kernels.ops.noise.op import initial_noise

STREAMS = (INITIAL_NOISE, STEP_NOISE, GUMBEL_NOISE)

# The known answers that Random123 ships for philox4x32-10: counter, key, answer.
KNOWN_ANSWERS = (
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, 0xFFFFFFFF_FFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0_A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def scalar(value: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int64)


def words_of(seed: int, counter: tuple[int, int, int, int]) -> list[int]:
    return [int(word) for word in philox(seed, tuple(scalar(c) for c in counter))]


def distance(values: torch.Tensor, cdf) -> float:
    """The Kolmogorov-Smirnov distance between `values` and a closed-form distribution, in units of 1 / sqrt(len(values))."""
    expected = cdf(values.double().flatten().sort().values)
    n = len(expected)
    above = (torch.arange(1, n + 1) / n - expected).max()
    below = (expected - torch.arange(n) / n).max()
    return torch.maximum(above, below).item() * math.sqrt(n)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, answer):
    assert words_of(key, counter) == list(answer)
    assert words_of(scalar(signed(key)), counter) == list(answer)


def test_counter_layout():
    seed, first, step = -987_654_321, 2**32 - 1, 7
    drawn = words(seed, first, step, GUMBEL_NOISE, 2, torch.arange(4, 12))
    for j, (low, high) in enumerate(((2**32 - 1, 0), (0, 1))):
        for k, block in enumerate((1, 2)):
            expected = words_of(seed, (block, step, low, GUMBEL_NOISE | high << 8))
            assert drawn[j, 4 * k : 4 * k + 4].tolist() == expected


def test_sample_numbers_wrap_at_2_to_the_56():
    elements = torch.arange(8)
    assert torch.equal(words(5, -1, 0, STEP_NOISE, 1, elements), words(5, 2**56 - 1, 0, STEP_NOISE, 1, elements))
    assert torch.equal(words(5, 2**56 + 3, 0, STEP_NOISE, 1, elements), words(5, 3, 0, STEP_NOISE, 1, elements))


def test_seed_as_int_and_as_tensor():
    elements = torch.arange(8)
    for seed in (0, -1, -(2**63), 2**63 - 1):
        expected = words(seed, 3, 0, 0, 2, elements)
        assert torch.equal(words(scalar(seed), scalar(3), 0, 0, 2, elements), expected)
    assert torch.equal(words(-1, 0, 0, 0, 1, elements), words(2**64 - 1, 0, 0, 0, 1, elements))


def test_every_coordinate_matters():
    drawn = [words(seed, 0, step, stream, 2, torch.arange(64)) for seed in (1, 2**32) for step in (0, 1) for stream in STREAMS]
    drawn = torch.stack([*drawn, words(1, 2**32, 0, 0, 2, torch.arange(64))])
    # 1,664 words out of 2^32 repeat with probability 3e-4, and do not for these seeds.
    assert drawn.unique().numel() == drawn.numel()


def test_uniforms_are_exact_and_keep_off_the_ends():
    ends = uniforms(torch.tensor([0, 511, 512, 2**31, 2**32 - 512, 2**32 - 1]))
    expected = [2.0**-24, 2.0**-24, 3 * 2.0**-24, 0.5 + 2.0**-24, 1 - 2.0**-24, 1 - 2.0**-24]
    assert ends.dtype == torch.float32
    assert ends.tolist() == expected


def test_normals_are_box_muller_of_neighbouring_uniforms():
    u = uniforms(words(11, 5, 2, STEP_NOISE, 3, torch.arange(12))).double()
    drawn = normals(11, 5, 2, STEP_NOISE, 3, 11)
    assert drawn.dtype == torch.float64
    assert drawn.shape == (3, 11)
    for j in range(3):
        for i in range(11):
            turn = math.cos if i % 2 == 0 else math.sin
            a, b = u[j, i // 2 * 2].item(), u[j, i // 2 * 2 + 1].item()
            assert drawn[j, i].item() == pytest.approx(math.sqrt(-2 * math.log(a)) * turn(2 * math.pi * b), abs=1e-14)


def test_distributions():
    count, samples = 10_000, 4
    u = uniforms(words(2024, 0, 0, INITIAL_NOISE, samples, torch.arange(count)))
    z = normals(2024, 0, 0, INITIAL_NOISE, samples, count)
    g = gumbels(uniforms(words(2024, 0, 0, GUMBEL_NOISE, samples, torch.arange(count))))
    # The distance of a true sample exceeds 1.63 once in a hundred.
    assert distance(u, lambda x: x) < 1.63
    assert distance(z, lambda x: torch.special.ndtr(x)) < 1.63
    assert distance(g, lambda x: torch.exp(-torch.exp(-x))) < 1.63
    # Four standard errors of the mean, variance, skewness and kurtosis of n normals.
    n = z.numel()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(z.pow(power).mean().item() - expected) < 4 * math.sqrt(variance / n)
    for lag in (1, 2, 4):
        assert abs((z[:, lag:] * z[:, :-lag]).mean().item()) < 4 / math.sqrt(n)
    assert abs((z[0] * z[1]).mean().item()) < 4 / math.sqrt(count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_initial_noise_is_its_stream(dtype):
    noise = initial_noise(scalar(-3), scalar(2**32 - 1), 3, 5, 13, dtype)
    assert noise.dtype == dtype
    assert torch.equal(noise, normals(-3, 2**32 - 1, 0, INITIAL_NOISE, 3, 65).view(3, 5, 13).to(dtype))


def test_initial_noise_of_a_sample_is_the_same_in_every_batch():
    whole = initial_noise(scalar(8), scalar(40), 3, 7, 9, torch.float32)
    for j in range(3):
        assert torch.equal(initial_noise(scalar(8), scalar(40 + j), 1, 7, 9, torch.float32)[0], whole[j])


def test_initial_noise_is_a_sound_custom_op():
    torch.library.opcheck(initial_noise, (scalar(1), scalar(0), 2, 3, 5, torch.float32))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(seed, first_sample):
        return initial_noise(seed, first_sample, 2, 3, 5, torch.float32) + 1

    expected = initial_noise(scalar(1), scalar(9), 2, 3, 5, torch.float32) + 1
    assert torch.equal(compiled(scalar(1), scalar(9)), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": torch.tensor(1.0)}, r"seed is torch.float32 \[\]; it must be an int64 scalar tensor"),
        ({"first_sample": torch.tensor([1])}, r"first_sample is torch.int64 \[1\]; it must be an int64 scalar tensor"),
        ({"first_sample": torch.empty((), dtype=torch.int64, device="meta")}, "seed is on cpu and first_sample on meta"),
        ({"batch": 0}, r"shape \[0, 3, 5\] must have no dimension below 1"),
        ({"seq_len": 2**20, "dim": 2**11}, "1048576 x 2048 values is too large"),
        ({"dtype": torch.bfloat16}, "dtype is torch.bfloat16; it must be torch.float32 or torch.float64"),
        ({"backend": "mps"}, "unknown backend 'mps'"),
    ],
)
def test_initial_noise_names_what_is_wrong(changes, message):
    arguments = dict(seed=scalar(1), first_sample=scalar(0), batch=2, seq_len=3, dim=5, dtype=torch.float32) | changes
    with pytest.raises(ValueError, match=message):
        initial_noise(**arguments)
