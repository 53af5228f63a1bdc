"""The CUDA kernel of denoise_update on a CPU (tests/emulator), against float64, in every combination."""

import itertools

import pytest
import torch

from dllm_kernels.ops.denoise_update.op import DenoiseUpdate, reference
from tests.emulator import emulate
from tests.numerics import assert_contract, poisoned
from tests.ops.denoise_update.test_op import assert_statistics

pytestmark = pytest.mark.skipif(emulate.COMPILER is None, reason="no g++: the CUDA kernels were not run")

KERNEL = "csrc/kernels/denoise_update.cu"
WRITTEN = ("latents", "previous", "next_input")
WIDE, NARROW = torch.float32, torch.bfloat16
DTYPES = [(WIDE, WIDE), (WIDE, NARROW), (NARROW, WIDE), (NARROW, NARROW)]
FORMS = ["plain", "shift", "self-condition"]
COMBINATIONS = list(itertools.product(DTYPES, FORMS, [False, True], [False, True], [False, True]))


@pytest.fixture(scope="module")
def emulator() -> emulate.Emulator:
    return emulate.build(KERNEL)


def problem(shape, dtypes, form, guided, normed, noise) -> dict:
    """Arguments of the op by name. Where there is a norm or a shift, rows have a mean of 100 standard deviations."""
    batch, length, width = shape
    rows = 2 * batch if guided else batch
    torch.manual_seed(width)
    return dict(
        latents=torch.randn(shape) + 1,
        prediction=(torch.randn(rows, length, width) + (100 if normed else 1)).to(dtypes[0]),
        previous=torch.randn(shape) + 3,
        next_input=poisoned(rows, length, width * (2 if form == "self-condition" else 1), dtype=dtypes[1]),
        coefficients=torch.randn(4, 4) + 0.5,
        step=2,
        seed=torch.tensor(-5),
        first_sample=torch.tensor(2**32 - 1),
        shift=torch.randn(width) + 300 if form == "shift" else None,
        guidance_scale=torch.tensor(2.5) if guided else None,
        norm_scale=torch.randn(width) + 0.5 if normed else None,
        norm_shift=torch.randn(width) - 1 if normed else None,
        statistics=None if form == "self-condition" else poisoned(rows * length, 1, 2, dtype=torch.float32),
        noise=noise,
    )


def call_of(p) -> emulate.Call:
    return emulate.Call("denoise_update", DenoiseUpdate(**p, backend="cuda"))


def expected(p, dtype) -> tuple[torch.Tensor, ...]:
    """What `reference` makes of the arguments, in `dtype`."""
    arguments = {name: value for name, value in p.items() if name not in ("next_input", "statistics")}
    arguments |= {name: p[name].to(dtype) for name in ("latents", "previous", "coefficients")}
    return reference(**arguments, self_condition=p["next_input"].shape[-1] != p["latents"].shape[-1])


def check(p, exact, baseline) -> None:
    for name, truth, float32 in zip(WRITTEN, exact, baseline, strict=True):
        assert_contract(p[name], truth, float32.to(p[name].dtype))
    if p["statistics"] is not None:
        assert_statistics(p["statistics"], p["next_input"])


# Rows of 1 quad; of less than a warp's; with one, two and four quads a thread, also with a thread's last ones missing.
@pytest.mark.parametrize("shape", [(1, 1, 4), (2, 3, 68), (2, 1, 132), (1, 1, 2052), (1, 2, 5120), (1, 1, 8192)])
def test_values(emulator, shape):
    combinations = COMBINATIONS if shape[2] < 1000 else COMBINATIONS[:: 5 if shape[2] < 8192 else 7]
    problems = [problem(shape, *combination) for combination in combinations]
    truths = [(expected(p, torch.float64), expected(p, torch.float32)) for p in problems]
    emulator.run(*map(call_of, problems), seed=0)
    for p, (exact, baseline) in zip(problems, truths, strict=True):
        check(p, exact, baseline)


@pytest.mark.parametrize("form", FORMS)
def test_without_the_prediction_before(emulator, form):
    """c is then ignored, whatever it is."""
    for shape in (2, 3, 68), (1, 1, 2052):
        p, other = (problem(shape, (NARROW, NARROW), form, True, True, True) for _ in range(2))
        p["coefficients"][2, 2], other["coefficients"][2, 2] = torch.inf, 0
        emulator.run(call_of(p | {"previous": None}), call_of(other), seed=0)
        for name in ("latents", "next_input", "statistics"):
            assert p[name] is other[name] is None or torch.equal(p[name], other[name])


def chain(emulator, seed) -> bool:
    """Whether three steps, each of which may start before the last is done, leave what they leave one by one."""
    steps = [problem((2, 3, 256), (NARROW, NARROW), "shift", True, True, True) for _ in range(3)]
    shared = {name: steps[0][name] for name in ("latents", "previous", "next_input", "statistics")}
    calls, alone = [], {name: tensor.clone() for name, tensor in shared.items()}
    for step, p in enumerate(steps):
        emulator.run(call_of(p | alone | dict(step=step)), seed=seed)
        calls.append(call_of(p | shared | dict(step=step)))
    emulator.run(*calls, seed=seed)
    return all(torch.equal(shared[name], alone[name]) for name in shared)


@pytest.mark.parametrize("seed", range(4))
def test_a_step_waits_for_the_one_before(emulator, seed):
    assert chain(emulator, seed)


def test_a_missing_wait_is_found():
    fault = emulate.planted(KERNEL, "    pdl_wait();\n", "")
    broken = emulate.build(KERNEL, replaced=fault)
    found = False
    for seed in range(4):
        try:
            found = found or not chain(broken, seed)
        except emulate.EmulationError:
            found = True
    assert found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    __syncthreads();\n", ""),
        ("(row[q].value[i] - of.mean) - of.rest", "row[q].value[i] - of.mean"),
        ("written[q] = widened(next)", "written[q] = moved"),
    ],
)
def test_a_fault_in_the_sums_is_found(old, new):
    broken = emulate.build(KERNEL, replaced=emulate.planted(KERNEL, old, new))
    with pytest.raises((AssertionError, emulate.EmulationError)):
        for seed in range(4):
            for dtypes in (WIDE, WIDE), (NARROW, NARROW):
                p = problem((1, 2, 1000), dtypes, "shift", False, True, False)
                exact, baseline = expected(p, torch.float64), expected(p, torch.float32)
                broken.run(call_of(p), seed=seed)
                check(p, exact, baseline)
