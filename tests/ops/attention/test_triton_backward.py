"""The Triton backward of attention against float64 autograd of the reference."""

import pytest
import torch
from torch import Tensor

from dllm_kernels.model.layers import sdpa
from dllm_kernels.ops.attention import op as ops
from dllm_kernels.ops.attention.op import attention, attention_backward, attention_forward, reference
from tests.numerics import assert_contract
from tests.ops.attention.test_triton import BFLOAT, HALF, random, surrounded

pytestmark = [pytest.mark.filterwarnings("ignore::RuntimeWarning"), pytest.mark.usefixtures("poisoned_memory")]


def gradients(compute, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    return torch.autograd.grad(compute(*leaves), leaves, grad)


def check(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, key_mask: Tensor | None = None, causal: bool = False):
    """Holds dq, dk and dv to the contract; returns them."""
    actual = gradients(lambda *x: attention(*x, key_mask, causal, "triton"), q, k, v, grad)
    wide = [x.double() for x in (q, k, v, grad)]
    expected = gradients(lambda *x: reference(*x, key_mask, causal), *wide)
    baseline = torch.func.vjp(lambda *x: sdpa(*x, key_mask, causal), q, k, v)[1](grad)
    for a, e, b in zip(actual, expected, baseline, strict=True):
        assert a.dtype == q.dtype and a.is_contiguous()
        assert_contract(a, e, b)
    return actual


@pytest.mark.parametrize(
    ("head_dim", "queries", "keys", "dtype", "masked", "causal"),
    [
        (32, 1, 2, HALF, False, False),
        (32, 65, 63, BFLOAT, True, False),
        (64, 17, 67, HALF, True, False),
        (64, 65, 65, HALF, False, True),
        (64, 67, 67, BFLOAT, True, True),
        (96, 37, 37, HALF, True, True),
        (96, 37, 5, BFLOAT, False, False),
        (128, 65, 65, BFLOAT, False, True),
        (128, 5, 17, HALF, True, False),
        (30, 17, 17, HALF, False, True),
        (100, 5, 17, BFLOAT, True, False),
        # Above 128 through PyTorch.
        (256, 17, 17, HALF, True, True),
    ],
)
def test_gradients(device, head_dim, queries, keys, dtype, masked, causal):
    q = random(2, queries, 2, head_dim, dtype=dtype, device=device, seed=1)
    k = random(2, keys, 2, head_dim, dtype=dtype, device=device, seed=2)
    v = random(2, keys, 2, head_dim, dtype=dtype, device=device, seed=3)
    grad = random(2, queries, 2, head_dim, dtype=dtype, device=device, seed=4)
    mask = (torch.rand(2, keys, generator=torch.Generator().manual_seed(5)) < 0.6).to(device) if masked else None
    contiguous = check(q, k, v, grad, mask, causal)
    views = [surrounded(x) for x in (q, k, v, grad)]
    within_nan = gradients(lambda *x: attention(*x, mask, causal, "triton"), *views)
    for actual, expected in zip(within_nan, contiguous, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_masks(device, causal):
    """Samples with no key, with none in the first tile, and with none in the last; masked keys hold NaN."""
    keys = 131
    q, k, v, grad = (random(3, keys, 1, 32, dtype=BFLOAT, device=device, seed=seed) for seed in (1, 2, 3, 4))
    mask = torch.zeros(3, keys, dtype=torch.bool, device=device)
    mask[1, 70:] = True
    mask[2, :60] = True
    clean = check(q, k, v, grad, mask, causal)
    for gradient in clean:
        assert gradient[0].eq(0).all()
    assert clean[1][~mask].eq(0).all() and clean[2][~mask].eq(0).all()
    garbage = ~mask[:, :, None, None]
    dirty_k, dirty_v = (x.masked_fill(garbage, float("nan")) for x in (k, v))
    dirty = gradients(lambda *x: attention(*x, mask, causal, "triton"), q, dirty_k, dirty_v, grad)
    for actual, expected in zip(dirty, clean, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_large_logits(device):
    q, k, v, grad = (random(1, 33, 2, 64, dtype=BFLOAT, device=device, seed=seed) for seed in (1, 2, 3, 4))
    check(q * 10, k * 10, v, grad)


def test_packed_views(device):
    """Views of one GEMM's output, and a gradient that is broadcast."""
    qkv = random(2, 67, 3, 2, 32, dtype=HALF, device=device)
    grad = random(1, 1, 1, 32, dtype=HALF, device=device, seed=4).expand(2, 67, 2, 32)
    q, k, v = qkv.unbind(2)
    packed = check(q, k, v, grad)
    mixed = gradients(lambda *x: attention(*x, backend="triton"), q.contiguous(), k, v.contiguous(), grad)
    for actual, expected in zip(mixed, packed, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_batch_invariance(device):
    q, k, v, grad = (random(8, 37, 2, 64, dtype=BFLOAT, device=device, seed=seed) for seed in (1, 2, 3, 4))
    together = gradients(lambda *x: attention(*x, backend="triton"), q, k, v, grad)
    alone = gradients(lambda *x: attention(*x, backend="triton"), q[5:6], k[5:6], v[5:6], grad[5:6])
    for t, a in zip(together, alone, strict=True):
        torch.testing.assert_close(t[5:6], a, rtol=0, atol=0)
        assert not torch.equal(t[4:5], a)


def test_serves_to_head_dim_128(device, monkeypatch):
    """Up to 128 the kernels run; above, PyTorch's gradients come back, bit for bit."""
    monkeypatch.setattr(ops, "_weights", None)
    q = random(1, 5, 1, 128, dtype=HALF, device=device)
    assert all(g.isfinite().all() for g in gradients(lambda *x: attention(*x, backend="triton"), q, q, q, q))
    monkeypatch.undo()
    q, k, v, grad = (random(1, 5, 1, 160, dtype=HALF, device=device, seed=seed) for seed in (1, 2, 3, 4))
    actual = gradients(lambda *x: attention(*x, backend="triton"), q, k, v, grad)
    for a, e in zip(actual, gradients(lambda *x: attention(*x, backend="torch"), q, k, v, grad), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_op_keeps_torchs_rules(device):
    q, k, v, grad = (random(2, 5, 2, 16, dtype=HALF, device=device, seed=seed) for seed in (1, 2, 3, 4))
    mask = torch.ones(2, 5, dtype=torch.bool, device=device)
    out, lse = attention_forward(q, k, v, mask, True, "triton")
    torch.library.opcheck(attention_backward, (grad, q, k, v, mask, out, lse, True))


def test_compiles_as_one_graph(device):
    q, k, v, grad = (random(2, 17, 2, 16, dtype=HALF, device=device, seed=seed) for seed in (1, 2, 3, 4))
    compiled = torch.compile(lambda *x: attention(*x, causal=True, backend="triton"), backend="aot_eager", fullgraph=True)
    expected = gradients(lambda *x: attention(*x, causal=True, backend="triton"), q, k, v, grad)
    for a, e in zip(gradients(compiled, q, k, v, grad), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)
