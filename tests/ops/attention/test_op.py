"""The definition of attention against a loop over queries, the PyTorch implementation, the custom ops and their messages."""

import math

import pytest
import torch
from torch import Tensor

from dllm_kernels.ops.attention.op import _sixteen_byte_rows, attention, attention_backward, attention_forward, reference
from tests.numerics import assert_contract


def inputs(batch, queries, keys, heads, head_dim, dtype=torch.float64, masked=False, seed=0):
    """q, k, v with a mean of 0.5, and a mask whose first sample has no key."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, n, heads, head_dim) for n in (queries, keys, keys)]
    q, k, v = ((torch.randn(shape, generator=generator, dtype=torch.float64) + 0.5).to(dtype) for shape in shapes)
    mask = torch.rand(batch, keys, generator=generator) < 0.6
    mask[0] = False
    return q, k, v, mask if masked else None


def loop(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, causal: bool) -> Tensor:
    """Attention one query at a time, in float64."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            keys = [s for s in range(k.shape[1]) if (key_mask is None or bool(key_mask[b, s])) and (not causal or s <= t)]
            for h in range(q.shape[2]):
                weights = [math.exp(float(q[b, t, h] @ k[b, s, h]) / math.sqrt(q.shape[3])) for s in keys]
                for weight, s in zip(weights, keys, strict=True):
                    out[b, t, h] += weight / sum(weights) * v[b, s, h]
    return out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("queries", "keys", "causal"), [(1, 1, False), (5, 7, False), (7, 7, True), (7, 1, False)])
@pytest.mark.parametrize("compute", [reference, lambda *args: attention(*args, backend="torch")], ids=["reference", "torch"])
def test_definition(compute, queries, keys, causal, masked):
    q, k, v, mask = inputs(3, queries, keys, 2, 6, masked=masked)
    torch.testing.assert_close(compute(q, k, v, mask, causal), loop(q, k, v, mask, causal), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("keys", "causal"), [(63, False), (65, True)])
@pytest.mark.parametrize("masked", [False, True])
def test_torch_in_low_precision(dtype, keys, causal, masked):
    q, k, v, mask = inputs(2, 65, keys, 2, 16, dtype, masked)
    expected = reference(q.double(), k.double(), v.double(), mask, causal)
    actual = attention(q, k, v, mask, causal, backend="torch")
    assert actual.is_contiguous() and actual.dtype == dtype
    assert_contract(actual, expected, reference(q, k, v, mask, causal))


def gradients(compute, q, k, v, grad):
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    return torch.autograd.grad(compute(*leaves), leaves, grad)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients(masked, causal):
    q, k, v, mask = inputs(3, 7, 7, 2, 6, masked=masked)
    grad = torch.randn(q.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
    actual = gradients(lambda q, k, v: attention(q, k, v, mask, causal), q, k, v, grad)
    expected = gradients(lambda q, k, v: reference(q, k, v, mask, causal), q, k, v, grad)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-12)
    # The reference's own gradient, against differences of the loop.
    direction = torch.randn(q.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    step = 1e-6
    change = (loop(q + step * direction, k, v, mask, causal) - loop(q - step * direction, k, v, mask, causal)) / (2 * step)
    torch.testing.assert_close((expected[0] * direction).sum(), (change * grad).sum(), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("compute", [reference, lambda *args: attention(*args, backend="torch")], ids=["reference", "torch"])
@pytest.mark.parametrize("causal", [False, True])
def test_masked_keys_may_hold_anything(compute, causal):
    q, k, v, mask = inputs(3, 7, 7, 2, 6, torch.float32, masked=True)
    assert not mask[1:].all() and mask[1:].any()
    dirty_k, dirty_v = (x.masked_fill(~mask[:, :, None, None], float("nan")) for x in (k, v))
    grad = torch.ones_like(q)
    out = compute(q, dirty_k, dirty_v, mask, causal)
    torch.testing.assert_close(out, compute(q, k, v, mask, causal), rtol=0, atol=0)
    assert out[0].eq(0).all() and out[1:].ne(0).any()
    dirty = gradients(lambda q, k, v: compute(q, k, v, mask, causal), q, dirty_k, dirty_v, grad)
    for actual, expected in zip(dirty, gradients(lambda *x: compute(*x, mask, causal), q, k, v, grad), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
        assert actual[0].eq(0).all()
    assert dirty[1][~mask].eq(0).all() and dirty[2][~mask].eq(0).all()


def test_ops_keep_torchs_rules():
    q, k, v, mask = inputs(2, 5, 5, 2, 8, torch.float32, masked=True)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    for arguments in ((q, k, v, None, False, "torch"), (q, k, v, mask, True, "auto")):
        torch.library.opcheck(attention_forward, arguments)
        out, lse = (x.detach() for x in attention_forward(*arguments))
        assert lse.numel() == 0
        plain = [x.detach() for x in (q, k, v)]
        torch.library.opcheck(attention_backward, (torch.ones_like(out), *plain, arguments[3], out, lse, arguments[4]))


@pytest.mark.parametrize("causal", [False, True])
def test_compiles_as_one_graph(causal):
    q, k, v, mask = inputs(2, 5, 5, 2, 8, torch.float32, masked=True)
    compiled = torch.compile(lambda q, k, v: attention(q, k, v, mask, causal) * 2, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), 2 * attention(q, k, v, mask, causal), rtol=0, atol=0)
    grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    expected = gradients(lambda *x: attention(*x, mask, causal) * 2, q, k, v, grad)
    for a, e in zip(gradients(compiled, q, k, v, grad), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_log_sum_exp_has_no_gradient():
    q, k, v, _ = inputs(1, 3, 3, 1, 4)
    out, lse = attention_forward(q.requires_grad_(), k, v, None, False, "torch")
    assert out.requires_grad and not lse.requires_grad


Q = torch.zeros(2, 5, 3, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Q[0], Q, Q), r"q is torch.float32 \[5, 3, 8\]; it must be floating-point"),
        ((Q, Q.int(), Q), "k is torch.int32"),
        ((Q[:, :0], Q, Q), "not empty"),
        ((Q, Q[:, :0], Q[:, :0]), "k is .* not empty"),
        ((Q, Q.double(), Q), "k is torch.float64 on cpu and q torch.float32"),
        ((Q, Q, Q.to("meta")), "v is torch.float32 on meta and q torch.float32 on cpu"),
        ((Q, Q[:, :4], Q), r"k is \[2, 4, 3, 8\] and v \[2, 5, 3, 8\]; for q .* both must be \[2, S, 3, 8\]"),
        ((Q, Q[..., :4], Q[..., :4]), r"both must be \[2, S, 3, 8\]"),
        ((Q, Q[:1], Q[:1]), r"both must be \[2, S, 3, 8\]"),
        ((Q, Q[:, :4], Q[:, :4], None, True), "as many queries as keys, and there are 5 and 4"),
        ((Q, Q, Q, torch.ones(2, 4, dtype=torch.bool)), r"key_mask is torch.bool \[2, 4\]; it must be bool \[2, 5\]"),
        ((Q, Q, Q, torch.ones(2, 5)), "key_mask is torch.float32"),
        ((Q, Q, Q, torch.ones(2, 5, dtype=torch.bool, device="meta")), "key_mask is on meta and q on cpu"),
        ((Q, Q, Q, None, False, "fast"), "unknown backend 'fast'"),
        ((Q.to(torch.float8_e4m3fn),) * 3, "q is torch.float8_e4m3fn"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        attention(*arguments)


def test_rows_that_do_not_begin_at_16_bytes_are_copied():
    whole = torch.arange(2 * 6 * 4 * 48, dtype=torch.float16).view(2, 6, 4, 48)
    odd, wide = whole[..., :20].contiguous(), whole.float()[..., :36].contiguous()
    for x in (whole, whole[:, ::2], whole[..., 8:24], odd, wide, wide[..., 4:]):
        y = _sixteen_byte_rows(x)
        assert y.data_ptr() == x.data_ptr() and y.stride() == x.stride()
    one = torch.empty(1, 1, 1, 68, dtype=torch.bfloat16)[..., :64]
    y = _sixteen_byte_rows(one)
    assert one.stride() == (68, 68, 68, 1) and y.stride() == (64, 64, 64, 1) and y.data_ptr() == one.data_ptr()
    shifted = torch.empty(whole.numel() + 1, dtype=whole.dtype)[1:].view_as(whole).copy_(whole)
    for x in (
        whole[..., :40][..., 4:],
        whole.transpose(2, 3),
        whole.view(2, 6, 2, 96)[..., 1:47],
        odd[..., :8],
        shifted,
        wide[..., 1:],
    ):
        y = _sixteen_byte_rows(x)
        assert y is not x and y.is_contiguous() and torch.equal(y, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_around_it_changes_nothing(dtype):
    """The result has q's dtype, and gradients the dtype of what they are of."""
    generator = torch.Generator().manual_seed(2)
    q, k, v = ((torch.randn(2, 5, 2, 16, generator=generator) + 0.3).requires_grad_() for _ in range(3))
    mask = torch.arange(5) < torch.tensor([[3], [5]])
    expected = attention(q, k, v, mask)
    gradients = torch.autograd.grad(expected.sum(), (q, k, v))
    with torch.autocast("cpu", dtype):
        found = attention(q, k, v, mask)
        assert torch.equal(found, expected)
        assert all(map(torch.equal, torch.autograd.grad(found.sum(), (q, k, v)), gradients))
