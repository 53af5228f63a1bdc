"""The solver's update: the formula in every combination, the custom op that mutates, what it refuses."""

import itertools

import pytest
import torch

from dllm_kernels.diffusion.noise import STEP_NOISE, normals
from dllm_kernels.ops.denoise_update import op
from dllm_kernels.ops.denoise_update.op import DenoiseUpdate, reference
from tests.numerics import assert_contract, poisoned

COMBINATIONS = list(itertools.product((False, True), repeat=5))
SEED, FIRST, STEP = -(2**40) - 5, 2**32 - 1, 2


def denoise_update(**arguments):
    op.denoise_update(DenoiseUpdate(**arguments))


def scalar(value: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int64)


def assert_statistics(statistics, next_input):
    """`statistics` [B T, 1, 2] are those of next_input [B, T, d_z] as it was rounded.

    The mean errs by two units in the last place of the row's largest value, whose square is also what little the squares may.
    """
    rows = next_input.double().cpu().flatten(0, 1)
    assert statistics.shape == (len(rows), 1, 2)
    mean, squares = statistics[:, 0].double().cpu().unbind(-1)
    exact = rows.mean(-1)
    exact_squares = (rows - exact[:, None]).square().sum(-1)
    unit = torch.finfo(torch.float32).eps * rows.abs().amax(-1)
    assert ((mean - exact).abs() <= 2 * unit).all()
    assert ((squares - exact_squares).abs() <= 2e-6 * exact_squares + rows.shape[-1] * unit.square()).all()


def problem(
    guided, self_condition, shifted, normed=False, batch=2, length=5, width=13, dtype=torch.float64, compute=torch.float64
):
    """Arguments of `denoise_update` by name, with next_input and statistics poisoned."""
    torch.manual_seed(batch + length + width)
    rows = 2 * batch if guided else batch
    return dict(
        latents=torch.randn(batch, length, width, dtype=dtype) + 1,
        prediction=(torch.randn(rows, length, width, dtype=dtype) - 2).to(compute),
        previous=torch.randn(batch, length, width, dtype=dtype) + 3,
        next_input=poisoned(rows, length, width * (2 if self_condition else 1), dtype=compute),
        coefficients=torch.randn(4, 4, dtype=dtype) + 0.5,
        step=STEP,
        seed=scalar(SEED),
        first_sample=scalar(FIRST),
        shift=torch.randn(width) + 1 if shifted and not self_condition else None,
        guidance_scale=torch.tensor(2.5) if guided else None,
        norm_scale=torch.randn(width) + 0.5 if normed else None,
        norm_shift=torch.randn(width) - 1 if normed else None,
        statistics=None if self_condition else poisoned(rows * length, 1, 2, dtype=torch.float32),
    )


@pytest.mark.parametrize(("guided", "self_condition", "shifted", "normed", "noise"), COMBINATIONS)
def test_values(guided, self_condition, shifted, normed, noise):
    p = problem(guided, self_condition, shifted, normed)
    batch, length, width = p["latents"].shape
    a, b, c, s = p["coefficients"][STEP].tolist()
    z0 = p["prediction"]
    if normed:
        centred = z0 - z0.mean(-1, keepdim=True)
        z0 = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        z0 = z0 * (1 + p["norm_scale"].double()) + p["norm_shift"]
    if guided:
        z0 = z0[batch:] + 2.5 * (z0[:batch] - z0[batch:])
    expected = a * p["latents"] + b * z0 + c * p["previous"]
    if noise:
        expected += s * normals(SEED, FIRST, STEP, STEP_NOISE, batch, length * width).view(batch, length, width)

    denoise_update(**p, noise=noise)

    torch.testing.assert_close(p["latents"], expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(p["previous"], z0, rtol=1e-13, atol=1e-13)
    halves = p["next_input"].chunk(2) if guided else [p["next_input"]]
    for half in halves:
        moved = expected if p["shift"] is None else expected + p["shift"].double()
        torch.testing.assert_close(half[..., :width], moved, rtol=1e-13, atol=1e-13)
        if self_condition:
            torch.testing.assert_close(half[..., width:], z0, rtol=1e-13, atol=1e-13)
    if not self_condition:
        assert_statistics(p["statistics"], p["next_input"])


@pytest.mark.parametrize("self_condition", [False, True])
def test_without_the_prediction_before(self_condition):
    """c is then ignored, whatever it is."""
    p, other = (problem(True, self_condition, True, True) for _ in range(2))
    p["coefficients"][STEP, 2] = torch.inf
    other["coefficients"][STEP, 2] = 0
    denoise_update(**p | {"previous": None}, noise=True)
    denoise_update(**other, noise=True)
    for name in ("latents", "next_input") + (() if self_condition else ("statistics",)):
        torch.testing.assert_close(p[name], other[name], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mean", [1.0, 100.0])
def test_the_norm_and_the_statistics_keep_the_contract(compute, mean):
    """Also in rows whose mean is 100 times their standard deviation; the normalised prediction is not rounded."""
    p = problem(True, False, True, True, width=1000, dtype=torch.float32, compute=compute)
    p["prediction"] += mean
    p["shift"] += 30 * mean
    inputs = {name: value for name, value in p.items() if name not in ("next_input", "statistics")}
    states = ("latents", "previous", "coefficients")
    exact = reference(**(inputs | {name: p[name].double() for name in states}), noise=True)
    baseline = reference(**inputs, noise=True)
    denoise_update(**p, noise=True)
    for name, truth, float32 in zip(("latents", "previous", "next_input"), exact, baseline, strict=True):
        assert_contract(p[name], truth, float32.to(p[name].dtype))
    assert_statistics(p["statistics"], p["next_input"])


@pytest.mark.parametrize("guided", [False, True])
def test_the_last_row_leaves_exactly_the_prediction(guided):
    p = problem(guided, True, False, dtype=torch.float32, compute=torch.bfloat16)
    p["coefficients"][STEP] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    denoise_update(**p, noise=True)
    assert torch.equal(p["latents"], p["previous"])
    if not guided:
        assert torch.equal(p["latents"], p["prediction"].float())
    assert torch.equal(p["next_input"][:2], torch.cat((p["latents"], p["latents"]), dim=-1).bfloat16())


def test_is_a_sound_custom_op():
    for guided, self_condition, normed in ((False, False, True), (True, True, False)):
        p = problem(guided, self_condition, True, normed, dtype=torch.float32, compute=torch.bfloat16)
        p["previous"] = p["previous"] if guided else None
        for name in ("next_input", "statistics"):
            if p[name] is not None:
                p[name].zero_()  # opcheck compares with NaN unequal to itself.
        torch.library.opcheck(torch.ops.dllm_kernels.denoise_update.default, (), p | dict(noise=True, backend="auto"))


@pytest.mark.parametrize("self_condition", [False, True])
def test_compiles_with_its_mutations(self_condition):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def loop(p):
        for step in range(3):
            denoise_update(**(p | dict(step=step)), noise=True)
        return p["latents"] * 2

    compiled, eager = (problem(True, self_condition, True, True, dtype=torch.float32, compute=torch.bfloat16) for _ in range(2))
    doubled = loop(compiled)
    for step in range(3):
        denoise_update(**(eager | dict(step=step)), noise=True)
    assert torch.equal(doubled, eager["latents"] * 2)
    for name in ("latents", "previous", "next_input") + (() if self_condition else ("statistics",)):
        assert torch.equal(compiled[name], eager[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": torch.zeros(2, 3)}, r"latents are torch.float32 \[2, 3\]; they must be float32 or float64 \[B, T, d_z\]"),
        ({"latents": torch.zeros(0, 3, 8)}, "not empty"),
        ({"latents": torch.zeros(2, 3, 8).bfloat16()}, r"latents are torch.bfloat16 \[2, 3, 8\]"),
        ({"previous": torch.zeros(2, 3, 7)}, r"previous has shape \[2, 3, 7\]; it must be \[2, 3, 8\]"),
        ({"previous": torch.zeros(2, 3, 8).double()}, "previous is torch.float64; it must be torch.float32"),
        ({"prediction": torch.zeros(4, 3, 8)}, r"prediction has shape \[4, 3, 8\]; it must be \[2, 3, 8\]"),
        ({"prediction": torch.zeros(2, 3, 8).int()}, "prediction is torch.int32; it must be a floating-point dtype"),
        ({"guidance_scale": torch.tensor(1.0)}, r"prediction has shape \[2, 3, 8\]; it must be \[4, 3, 8\]"),
        ({"next_input": torch.zeros(2, 3, 9)}, r"next_input has shape \[2, 3, 9\]; it must be \[2, 3, 8\] or \[2, 3, 16\]"),
        ({"coefficients": torch.zeros(5, 3)}, r"coefficients has shape \[5, 3\]; it must be \[N, 4\]"),
        ({"coefficients": torch.zeros(4)}, r"coefficients has shape \[4\]; it must be \[N, 4\]"),
        ({"coefficients": torch.zeros(5, 4).double()}, "coefficients is torch.float64; it must be torch.float32"),
        ({"step": 5}, "step 5 is out of range for coefficients of 5 rows"),
        ({"step": -1}, "step -1 is out of range"),
        ({"seed": torch.tensor(1.0)}, "seed is torch.float32"),
        ({"shift": torch.zeros(1, 8)}, r"shift has shape \[1, 8\]; it must be \[8\]"),
        ({"next_input": torch.zeros(2, 3, 16), "shift": torch.zeros(8)}, "shift does not go with self-conditioning"),
        ({"norm_scale": torch.zeros(9), "norm_shift": torch.zeros(8)}, r"norm_scale has shape \[9\]; it must be \[8\]"),
        ({"norm_scale": torch.zeros(8), "norm_shift": torch.zeros(8).int()}, "norm_shift is torch.int32"),
        ({"norm_scale": torch.zeros(8)}, "norm_scale and norm_shift go together"),
        ({"statistics": torch.zeros(6, 2)}, r"statistics has shape \[6, 2\]; it must be \[6, 1, 2\]"),
        ({"statistics": torch.zeros(6, 1, 2).double()}, "statistics is torch.float64; it must be torch.float32"),
        ({"statistics": torch.zeros(6, 1, 2), "next_input": torch.zeros(2, 3, 16)}, "statistics does not go with self-cond"),
        ({"previous": torch.zeros(2, 8, 3).transpose(1, 2)}, r"previous has strides \(24, 1, 3\); it must be contiguous"),
        ({"prediction": torch.zeros(2, 3, 8, device="meta")}, "prediction is on meta and latents on cpu"),
    ],
)
def test_names_what_is_wrong_and_touches_nothing(changes, message):
    arguments = dict(
        latents=torch.ones(2, 3, 8),
        prediction=torch.zeros(2, 3, 8),
        previous=torch.ones(2, 3, 8),
        next_input=torch.ones(2, 3, 8),
        coefficients=torch.zeros(5, 4),
        step=0,
        seed=scalar(0),
        first_sample=scalar(0),
    )
    with pytest.raises(ValueError, match=message):
        denoise_update(**(arguments | changes))
    for name in ("latents", "previous", "next_input"):
        assert name in changes or torch.equal(arguments[name], torch.ones(2, 3, 8))


def test_guidance_scale_is_float32():
    p = problem(True, False, False) | dict(guidance_scale=torch.tensor(2.0, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"guidance_scale is torch.float64; it must be torch.float32"):
        denoise_update(**p)
