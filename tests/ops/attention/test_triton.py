"""The Triton forward of attention against the float64 reference."""

import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor

from dllm_kernels.ops.attention import triton as attention_file
from dllm_kernels.ops.attention.op import attention, attention_forward, reference
from dllm_kernels.ops.attention.triton import CROWD, MAX_HEAD_DIM, forward_config, pieces
from tests.numerics import assert_contract, poisoned

HALF, BFLOAT = torch.float16, torch.bfloat16

# Triton's interpreter computes with NumPy, which warns of every logarithm of zero and every NaN.
pytestmark = [pytest.mark.filterwarnings("ignore::RuntimeWarning"), pytest.mark.usefixtures("poisoned_memory")]


def random(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    """Normal values with a mean of 0.5."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.5).to(device, dtype)


def surrounded(x: Tensor) -> Tensor:
    """x as a view with NaN around every row, head and sample, so that what is read beyond it shows."""
    padded = poisoned(*(n + 1 for n in x.shape), dtype=x.dtype, device=x.device)
    view = padded[tuple(slice(n) for n in x.shape)]
    view.copy_(x)
    return view


def check(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Holds the output and the log-sum-exp to the contract; returns the output."""
    out, lse = attention_forward(q, k, v, key_mask, causal, "triton")
    expected = reference(q.double(), k.double(), v.double(), key_mask, causal)
    assert out.is_contiguous() and out.dtype == q.dtype
    assert_contract(out, expected, attention(q, k, v, key_mask, causal, "torch"))
    scores = torch.einsum("bthd,bshd->bhts", q.double(), k.double()) * q.shape[-1] ** -0.5
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None, :], float("-inf"))
    if causal:
        ones = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device)
        scores = scores.masked_fill(~ones.tril(), float("-inf"))
    # A score is a float32 sum of products as large as the largest score, or larger.
    largest = scores[scores.isfinite()].abs().max().item() if scores.isfinite().any() else 0
    torch.testing.assert_close(lse.double() * math.log(2), scores.logsumexp(-1), rtol=0, atol=2e-6 * max(1, largest))
    return out


@pytest.mark.parametrize(
    ("head_dim", "queries", "keys", "dtype", "masked", "causal"),
    [
        (32, 1, 1, HALF, False, False),
        (32, 65, 63, BFLOAT, True, False),
        (64, 17, 67, BFLOAT, True, False),
        (64, 64, 64, HALF, False, True),
        (64, 131, 131, BFLOAT, True, True),
        (96, 37, 37, HALF, True, True),
        (96, 5, 65, BFLOAT, False, False),
        (128, 131, 131, BFLOAT, False, True),
        (128, 131, 33, HALF, True, False),
        (256, 17, 65, BFLOAT, True, False),
        (256, 19, 19, HALF, False, True),
        (320, 37, 37, BFLOAT, True, True),
        (320, 3, 17, HALF, False, False),
        (640, 17, 33, BFLOAT, True, False),
        (640, 17, 17, BFLOAT, False, True),
        (640, 5, 17, HALF, True, False),
        # Head dimensions that are padded: below 16, in one piece, in the second piece.
        (5, 17, 33, HALF, True, False),
        (30, 5, 17, BFLOAT, False, False),
        (600, 17, 17, BFLOAT, True, True),
    ],
)
def test_values(device, head_dim, queries, keys, dtype, masked, causal):
    q = random(2, queries, 2, head_dim, dtype=dtype, device=device, seed=1)
    k = random(2, keys, 2, head_dim, dtype=dtype, device=device, seed=2)
    v = random(2, keys, 2, head_dim, dtype=dtype, device=device, seed=3)
    mask = (torch.rand(2, keys, generator=torch.Generator().manual_seed(4)) < 0.6).to(device) if masked else None
    contiguous = check(q, k, v, mask, causal)
    within_nan = attention(surrounded(q), surrounded(k), surrounded(v), mask, causal, "triton")
    torch.testing.assert_close(within_nan, contiguous, rtol=0, atol=0)


@hypothesis.settings(max_examples=8, deadline=None, derandomize=True)
@hypothesis.given(
    st.integers(1, 3), st.integers(1, 40), st.integers(1, 70), st.integers(1, 3), st.integers(1, 50), st.booleans()
)
def test_any_shape(batch, queries, keys, heads, head_dim, causal):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keys = queries if causal else keys
    q = random(batch, queries, heads, head_dim, dtype=HALF, device=device, seed=1)
    k = random(batch, keys, heads, head_dim, dtype=HALF, device=device, seed=2)
    v = random(batch, keys, heads, head_dim, dtype=HALF, device=device, seed=3)
    check(surrounded(q), surrounded(k), surrounded(v), None, causal)


@pytest.mark.parametrize("dtype", [BFLOAT, HALF])
def test_packed_views(device, dtype):
    qkv = random(2, 37, 3, 2, 32, dtype=dtype, device=device)
    q, k, v = qkv.unbind(2)
    assert not q.is_contiguous()
    packed = check(q, k, v)
    torch.testing.assert_close(packed, check(q.contiguous(), k.contiguous(), v.contiguous()), rtol=0, atol=0)
    torch.testing.assert_close(attention(q.contiguous(), k, v.contiguous(), backend="triton"), packed, rtol=0, atol=0)
    transposed = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in (q, k, v)]
    torch.testing.assert_close(attention(*transposed, backend="triton"), packed, rtol=0, atol=0)
    # A context that the batch shares, and a mask that it shares.
    k, v = (x[:1].expand(2, -1, -1, -1) for x in (k, v))
    mask = (torch.arange(37, device=device) % 3 > 0).expand(2, -1)
    check(q, k, v, mask)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [BFLOAT, HALF])
def test_masks(device, dtype, causal):
    """Samples with no key, with none in the first tile, with none in the last, and with one key only."""
    keys = 71
    q, k, v = (random(4, keys, 1, 32, dtype=dtype, device=device, seed=seed) for seed in (1, 2, 3))
    mask = torch.zeros(4, keys, dtype=torch.bool, device=device)
    mask[1, 40:] = True
    mask[2, :30] = True
    mask[3, 35] = True
    out = check(q, k, v, mask, causal)
    assert out[0].eq(0).all()
    torch.testing.assert_close(out[3, 35:], v[3, 35].expand(keys - 35, -1, -1), rtol=0, atol=0)
    assert out[3, :35].eq(0).all() == causal
    garbage = ~mask[:, :, None, None]
    dirty = (k.masked_fill(garbage, float("nan")), v.masked_fill(garbage, float("nan")))
    torch.testing.assert_close(attention(q, *dirty, mask, causal, "triton"), out, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [BFLOAT, HALF])
def test_large_logits(device, dtype):
    """Scores in the thousands of either sign: exponentials of them would overflow."""
    q, k, v = (random(1, 33, 2, 64, dtype=dtype, device=device, seed=seed) for seed in (1, 2, 3))
    assert (q.double() * 40 @ (k.double() * 40).transpose(-1, -2)).abs().max() / 8 > 1000
    check(q * 40, k * 40, v)
    check(q * 40, -k.abs() * 40, v)


def test_many_keys(device):
    q = random(1, 1, 1, 32, dtype=HALF, device=device, seed=1)
    k, v = (random(1, 4096, 1, 32, dtype=HALF, device=device, seed=seed) for seed in (2, 3))
    check(q, k, v)


@pytest.mark.parametrize(("head_dim", "queries", "dtype"), [(64, 17, BFLOAT), (96, 5, HALF), (640, 5, BFLOAT)])
def test_batch_invariance(device, head_dim, queries, dtype):
    q, k, v = (random(8, n, 2, head_dim, dtype=dtype, device=device, seed=n) for n in (queries, 33, 34))
    v = v[:, :33]
    mask = torch.rand(8, 33, generator=torch.Generator().manual_seed(1)).to(device) < 0.7
    together = attention(q, k, v, mask, backend="triton")
    alone = attention(q[5:6], k[5:6], v[5:6], mask[5:6], backend="triton")
    torch.testing.assert_close(together[5:6], alone, rtol=0, atol=0)
    assert not torch.equal(together[4:5], alone)


def test_pieces_cover_every_head_dim():
    for head_dim in range(1, MAX_HEAD_DIM + 1):
        first, second = pieces(head_dim)
        assert head_dim <= first + second and forward_config(head_dim, 64, 8) and forward_config(head_dim, 1024, 8)
    assert [pieces(n) for n in (16, 96, 320, 640)] == [(16, 0), (64, 32), (256, 64), (512, 128)]
    # Eight heads of 64 queries fill 32 programs.
    assert forward_config(256, 64, 8).rows == forward_config(640, 64, 8).rows == 16
    # A crowd of heads fills a card with larger tiles.
    assert [forward_config(64, 64, heads).rows for heads in (CROWD - 1, CROWD)] == [16, 64]
    assert [forward_config(64, queries, CROWD).rows for queries in (32, 33)] == [16, 64]
    assert forward_config(320, 64, CROWD) == forward_config(320, 64, 8)
    assert forward_config(192, 64, CROWD).rows == forward_config(256, 64, CROWD).rows == 64


@pytest.mark.parametrize(
    ("head_dim", "causal", "masked"),
    [(64, False, True), (128, True, False), (96, True, True), (192, True, False), (256, False, True)],
)
def test_a_crowd_of_heads(device, head_dim, causal, masked, monkeypatch):
    """Tiles of 64 queries, the last one not full."""
    monkeypatch.setattr(attention_file, "CROWD", 4)
    q, k, v = (random(2, 67, 2, head_dim, dtype=BFLOAT, device=device, seed=seed) for seed in (1, 2, 3))
    mask = torch.rand(2, 67, generator=torch.Generator().manual_seed(2)).to(device) < 0.7 if masked else None
    assert forward_config(head_dim, 67, 4).rows == 64
    check(q, k, v, mask, causal)


@pytest.mark.parametrize(
    ("head_dim", "dtype", "message"),
    [
        (641, HALF, "head dimensions 1 to 640, and q has 641"),
        (16, torch.float32, "bfloat16 and float16, and q is torch.float32"),
    ],
)
def test_gaps_of_triton(device, head_dim, dtype, message):
    q = random(1, 3, 1, head_dim, dtype=dtype, device=device)
    with pytest.raises(ValueError, match=message):
        attention(q, q, q, backend="triton")
    torch.testing.assert_close(attention(q, q, q), attention(q, q, q, backend="torch"), rtol=0, atol=0)


def test_op_keeps_torchs_rules(device):
    q, k, v = (random(2, 5, 2, 16, dtype=HALF, device=device, seed=seed) for seed in (1, 2, 3))
    mask = torch.ones(2, 5, dtype=torch.bool, device=device)
    torch.library.opcheck(attention_forward, (q.requires_grad_(), k, v, mask, True, "triton"))
