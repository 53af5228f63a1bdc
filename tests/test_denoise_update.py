"""The solver's update: the formula in every combination, the custom op that mutates, what it refuses."""

import itertools

import pytest
import torch

from dllm_kernels.diffusion.noise import STEP_NOISE, normals
from dllm_kernels.ops.denoise_update import denoise_update
from tests.numerics import poisoned

COMBINATIONS = list(itertools.product((False, True), repeat=4))
SEED, FIRST, STEP = -(2**40) - 5, 2**32 - 1, 2


def scalar(value: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int64)


def problem(guided, self_condition, shifted, batch=2, length=5, width=13, dtype=torch.float64, compute=torch.float64):
    """Arguments of `denoise_update` by name, with next_input poisoned."""
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
    )


@pytest.mark.parametrize(("guided", "self_condition", "shifted", "noise"), COMBINATIONS)
def test_values(guided, self_condition, shifted, noise):
    p = problem(guided, self_condition, shifted)
    batch, length, width = p["latents"].shape
    a, b, c, s = p["coefficients"][STEP].tolist()
    z0 = p["prediction"]
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
    for guided, self_condition, shifted in ((False, False, True), (True, True, False)):
        p = problem(guided, self_condition, shifted, dtype=torch.float32, compute=torch.bfloat16)
        p["next_input"].zero_()  # opcheck compares with NaN unequal to itself.
        torch.library.opcheck(denoise_update, (), p | dict(noise=True))


def test_compiles_with_its_mutations():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def loop(p):
        for step in range(3):
            denoise_update(**(p | dict(step=step)), noise=True)
        return p["latents"] * 2

    compiled, eager = (problem(True, True, False, dtype=torch.float32, compute=torch.bfloat16) for _ in range(2))
    doubled = loop(compiled)
    for step in range(3):
        denoise_update(**(eager | dict(step=step)), noise=True)
    assert torch.equal(doubled, eager["latents"] * 2)
    for name in ("latents", "previous", "next_input"):
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
