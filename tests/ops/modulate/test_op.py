"""LayerNorm and adaptive LayerNorm: the formula, the custom op, what it refuses."""

import pytest
import torch
import torch.nn.functional as F

from dllm_kernels.ops.modulate.op import modulate, reference
from tests.numerics import assert_contract


def formula(x, scale, shift, eps):
    """The definition, in float64 and one statement a step; scale and shift broadcast against x."""
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    y = centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + eps)
    return y * (1 + scale.double()) + shift.double()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 65, 768])
@pytest.mark.parametrize("mean", [1, 100])
def test_values(dtype, width, mean):
    torch.manual_seed(width)
    x = (torch.randn(3, 5, width) + mean).to(dtype)
    scale, shift = torch.randn(3, width) + 0.5, torch.randn(width) + 1
    y = modulate(x, scale, shift, 1e-3)
    assert y.dtype == dtype
    expected = formula(x, scale.unsqueeze(1), shift, 1e-3)
    if dtype == torch.float64:
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-11)
    else:
        scale, shift = scale.unsqueeze(1).to(dtype), shift.to(dtype)
        assert_contract(y, expected, F.layer_norm(x, (width,), eps=1e-3) * (1 + scale) + shift)
    if dtype in (torch.bfloat16, torch.float16):
        # Rounded once: a value differs only where float32's error crosses the middle between two neighbours.
        assert (y != expected.to(dtype)).float().mean() < 0.02


def test_each_part_is_optional_and_takes_both_shapes():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 31, dtype=torch.float64) + 2
    row, rows, zero = torch.randn(31).double(), torch.randn(4, 31).double(), torch.zeros(()).double()
    for scale, wide_scale in ((None, zero), (row, row), (rows, rows.unsqueeze(1))):
        for shift, wide_shift in ((None, zero), (row, row), (rows, rows.unsqueeze(1))):
            expected = formula(x, wide_scale, wide_shift, 1e-5)
            torch.testing.assert_close(modulate(x, scale, shift), expected, rtol=1e-12, atol=1e-12)
    expected = formula(x[:, 0], rows, row, 1e-5)
    torch.testing.assert_close(modulate(x[:, 0], rows, row), expected, rtol=1e-12, atol=1e-12)


def test_reference_has_a_gradient():
    torch.manual_seed(0)
    tensors = [torch.randn(2, 3, 5).double() + 1, torch.randn(2, 5).double(), torch.randn(5).double()]
    assert torch.autograd.gradcheck(reference, [t.requires_grad_() for t in tensors])


def test_is_a_sound_custom_op():
    torch.manual_seed(0)
    # Dense but not in order, where "like x" would carry over strides that the op does not keep.
    x, scale, shift = torch.randn(6, 2, 7).bfloat16().transpose(0, 1), torch.randn(2, 14)[:, 7:], torch.randn(7)
    for arguments in ((x,), (x, scale), (x, scale, shift)):
        torch.library.opcheck(modulate, arguments)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(x, scale, shift):
        return modulate(x, scale, shift) * 2

    y = compiled(x, scale, shift)
    assert y.is_contiguous()
    assert torch.equal(y, modulate(x, scale, shift) * 2)


X = torch.zeros(2, 3, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0, 0],), r"x is torch.float32 \[8\]; it must be a floating-point \[B, T, K\] or \[B, K\] that is not empty"),
        ((X[:0],), r"x is torch.float32 \[0, 3, 8\]"),
        ((X.int(),), r"x is torch.int32 \[2, 3, 8\]"),
        ((X.transpose(1, 2),), r"x has strides \(24, 1, 8\); its last dimension must be contiguous"),
        ((X, torch.zeros(3, 8)), r"scale is torch.float32 \[3, 8\]; it must be a floating-point \[8\] or \[2, 8\]"),
        ((X, None, torch.zeros(7)), r"shift is torch.float32 \[7\]; it must be a floating-point \[8\] or \[2, 8\]"),
        ((X, torch.zeros(8, dtype=torch.int64)), r"scale is torch.int64 \[8\]"),
        ((X, None, torch.zeros(8, 2).T), r"shift has strides \(1, 2\); its last dimension must be contiguous"),
        ((X, torch.zeros(8, device="meta")), "scale is on meta and x on cpu; they must share a device"),
        ((X, None, None, 1e-5, "gpu"), "unknown backend 'gpu'"),
    ],
)
def test_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        modulate(*arguments)
