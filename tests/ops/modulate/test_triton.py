"""Triton's LayerNorm and adaptive LayerNorm against float64."""

import pytest
import torch
import torch.nn.functional as F

from dllm_kernels.ops.modulate.op import modulate, reference
from tests.numerics import assert_contract, poisoned


@pytest.fixture(autouse=True)
def poisoned_memory():
    """In deterministic mode torch.empty fills what it allocates with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def surrounded(values: torch.Tensor, device) -> torch.Tensor:
    """`values` with NaN before, between and after its rows."""
    batch, tokens, width = values.shape
    memory = poisoned(batch + 1, tokens + 1, width + 3, dtype=values.dtype, device=device)
    memory[1:, 1:, 1 : width + 1] = values.to(device)
    return memory[1:, 1:, 1 : width + 1]


def baseline(x, scale, shift):
    y = F.layer_norm(x, x.shape[-1:])
    y = y if scale is None else y * (1 + scale.to(x.dtype))
    return y if shift is None else y + shift.to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 63, 65, 127, 1009, 5120])
@pytest.mark.parametrize("mean", [1, 100])
def test_values(device, dtype, width, mean):
    torch.manual_seed(width)
    x = surrounded((torch.randn(2, 3, width) + mean).to(dtype), device)
    scale, shift = (torch.randn(2, width, device=device) + 1 for _ in range(2))
    for vectors in ((None, None), (scale, shift)):
        y = modulate(x, *vectors, backend="triton")
        wide = [v if v is None else v.unsqueeze(1) for v in vectors]
        assert y.dtype == dtype
        assert y.is_contiguous()
        assert_contract(y, reference(x.double(), *vectors), baseline(x, *wide))


def test_a_large_mean_costs_nothing(device):
    torch.manual_seed(0)
    x = (torch.randn(4, 3, 2049) + 1000).to(device)
    error = (modulate(x, backend="triton").double() - reference(x.double())).abs().max()
    assert error < 8 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scale_and_shift_take_both_shapes_and_any_stride(device, dtype):
    torch.manual_seed(0)
    x = (torch.randn(3, 5, 65) + 1).to(device)
    row = (torch.randn(65) + 1).to(device, dtype)
    rows = surrounded((torch.randn(1, 3, 65) - 1).to(dtype), device)[0]
    for scale in (None, row, rows):
        for shift in (None, row, rows):
            y = modulate(x, scale, shift, 1e-2, backend="triton")
            torch.testing.assert_close(y.double(), reference(x.double(), scale, shift, 1e-2), rtol=1e-5, atol=1e-5)
            flat = modulate(x[:, 2], scale, shift, 1e-2, backend="triton")
            assert torch.equal(flat, y[:, 2])


def test_float64_is_served_by_torch_alone(device):
    x = torch.randn(2, 3, 5, dtype=torch.float64, device=device)
    with pytest.raises(ValueError, match="computes in float32, and x is float64"):
        modulate(x, backend="triton")
    assert torch.equal(modulate(x), reference(x))
