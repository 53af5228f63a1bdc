"""The folded linear layer against the unfolded modules, in float64 and under the numerics contract."""

import pytest
import torch
import torch.nn.functional as F

from dllm_kernels.inference.fold import Numerics, fold_linear
from dllm_kernels.ops.linear import library
from dllm_kernels.ops.linear import op as linear_file
from dllm_kernels.ops.linear.params import Activations
from dllm_kernels.ops.linear.reference import reference as formula
from tests.numerics import assert_contract

CPU = torch.device("cpu")
EXACT = Numerics.of(torch.float64, CPU)


@pytest.fixture(params=[False, True], ids=["widened", "native"])
def native(request, monkeypatch):
    """A processor that multiplies bfloat16, or not."""
    monkeypatch.setattr(library, "multiplies_bfloat16", lambda: request.param)
    return request.param


def linear(x, params, **around):
    return linear_file.linear(Activations(x), params, **around).x


def reference(x, params, **around):
    folded = {"column_sums": params.column_sums, "scale": params.scale, "gate": params.gate}
    return formula(x, params.weight, params.bias, **folded, **around)


def random(*shape, mean=0.3):
    return torch.randn(*shape, dtype=torch.float64) + mean


def layer_norm(features):
    norm = torch.nn.LayerNorm(features, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight, 1, 0.3)
    torch.nn.init.normal_(norm.bias, 0.2, 0.3)
    return norm


@pytest.mark.parametrize("n, k", [(1, 1), (63, 65), (128, 64), (521, 257)])
@pytest.mark.parametrize("gelu", [False, True])
@torch.no_grad()
def test_layer_norm_folds_exactly(n, k, gelu):
    torch.manual_seed(n)
    norm, weight, bias = layer_norm(k), random(n, k), random(n)
    x, residual = random(2, 5, k), random(2, 5, n)
    expected = F.linear(norm(x), weight, bias)
    expected = (F.gelu(expected) if gelu else expected) + residual
    params = fold_linear(weight, bias, EXACT, norm=norm).at(3)
    assert torch.allclose(linear(x, params, gelu=gelu, residual=residual), expected, rtol=0, atol=1e-9)
    assert torch.allclose(reference(x, params, gelu=gelu, residual=residual), expected, rtol=0, atol=1e-9)
    assert k == 1 or params.weight.mean(dim=1).abs().max() < 1e-15 * k


@torch.no_grad()
def test_column_sums_are_of_the_rounded_weights(native):
    """In bf16 the centred rows no longer sum to zero, and rows whose mean is 100 times their deviation show it."""
    torch.manual_seed(0)
    norm, weight, bias = layer_norm(512), random(96, 512) / 20, random(96)
    x = random(1, 9, 512, mean=0) + 100
    exact = F.linear(norm(x), weight, bias)
    params = fold_linear(weight, bias, Numerics.of(torch.bfloat16, CPU), norm=norm).at(0)
    assert torch.equal(params.column_sums, params.weight.double().sum(1).float())
    baseline = F.linear(norm.to(torch.bfloat16)(x.bfloat16()), weight.bfloat16(), bias.bfloat16())
    assert_contract(linear(x.float(), params), exact, baseline)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_contract(dtype, native):
    torch.manual_seed(1)
    norm, weight, bias, x, residual = (
        layer_norm(384),
        random(1153, 384, mean=0.01) / 20,
        random(1153),
        random(3, 7, 384),
        random(3, 7, 1153),
    )
    exact = F.gelu(F.linear(norm(x), weight, bias)) + residual
    cast = [t.to(dtype) for t in (x, norm.weight, norm.bias, weight, bias, residual)]
    baseline = F.gelu(F.linear(F.layer_norm(cast[0], (384,), cast[1], cast[2]), cast[3], cast[4])) + cast[5]
    params = fold_linear(weight, bias, Numerics.of(dtype, CPU), norm=norm).at(0)
    assert_contract(linear(x.float(), params, gelu=True, residual=residual.float()), exact, baseline)


@torch.no_grad()
def test_adaln_folds_by_step():
    torch.manual_seed(2)
    norm = torch.nn.LayerNorm(48, elementwise_affine=False, dtype=torch.float64)
    weight, bias, x = random(31, 48), random(31), random(2, 5, 48)
    scale, shift, gate, added = random(4, 48), random(4, 48), random(4, 31), random(31)
    folded = fold_linear(weight, bias, EXACT, norm=norm, scale=scale, shift=shift, gate=gate, added=added)
    for step in range(4):
        expected = gate[step] * F.linear(norm(x) * (1 + scale[step]) + shift[step], weight, bias) + added
        for actual in (linear(x, folded.at(step)), reference(x, folded.at(step))):
            assert torch.allclose(actual, expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_an_affine_input_folds():
    torch.manual_seed(3)
    weight, mean, std, x = random(31, 48), random(48), random(48).abs() + 0.5, random(2, 5, 48)
    folded = fold_linear(weight, None, EXACT, input_scale=1 / std, input_shift=-mean / std)
    assert torch.allclose(linear(x, folded.at(0)), F.linear((x - mean) / std, weight), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_batch_invariance(dtype, native):
    torch.manual_seed(4)
    folded = fold_linear(random(130, 65), random(130), Numerics.of(dtype, CPU), norm=layer_norm(65))
    x = random(8, 13, 65).float()
    whole = linear(x, folded.at(0), gelu=True, batch_invariant=True)
    assert torch.equal(whole[5:6], linear(x[5:6].clone(), folded.at(0), gelu=True))


@torch.no_grad()
def test_a_gate_multiplies_before_the_bias_is_added(native):
    torch.manual_seed(5)
    norm = torch.nn.LayerNorm(256, elementwise_affine=False, dtype=torch.float64)
    weight, bias, x = random(96, 256, mean=0) / 16, random(96), random(1, 9, 256)
    scale, shift, gate = random(1, 256), random(1, 256), random(1, 96)
    folded = fold_linear(weight, bias, Numerics.of(torch.bfloat16, CPU), norm=norm, scale=scale, shift=shift, gate=gate)
    exact = gate * F.linear(norm(x) * (1 + scale) + shift, weight, bias)
    u = F.layer_norm(x.bfloat16(), (256,)) * (1 + scale.bfloat16()) + shift.bfloat16()
    baseline = gate.bfloat16() * F.linear(u, weight.bfloat16(), bias.bfloat16())
    assert_contract(linear(x.float(), folded.at(0)), exact, baseline)
    assert library.multiplies_bfloat16() == native
