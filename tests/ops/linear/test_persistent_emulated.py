"""The CUDA linear in tiles on a CPU (tests/emulator), against float64."""

import pytest
import torch
from torch import Tensor

from dllm_kernels.ops.linear.persistent import LinearPersistent
from dllm_kernels.ops.linear.reference import reference
from tests.emulator import emulate
from tests.numerics import assert_contract, poisoned

pytestmark = pytest.mark.skipif(emulate.COMPILER is None, reason="no g++: the CUDA kernels were not run")

KERNEL = "csrc/kernels/linear_persistent.cu"
SEEDS = range(8)  # every pair of copies' and launches' extremes; tests/emulator/machine.cpp, make_policy


@pytest.fixture(scope="module")
def emulator() -> emulate.Emulator:
    return emulate.build(KERNEL, flags=emulate.CARDS["hopper"])


def problem(
    rows: int,
    outputs: int,
    width: int,
    blocks: int,
    after: dict | None = None,
    gate: bool = False,
    gelu: bool = False,
    residual: int = 0,
) -> dict:
    """Tensors of a call, by name. The input is what the call `after` writes, if one is given."""
    generator = torch.Generator().manual_seed(rows * width + outputs)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) + 0.3

    return dict(
        weight=(random(outputs, width) / width**0.5).bfloat16(),
        x=after["y"] if after else random(rows, width).bfloat16(),
        bias=random(outputs).bfloat16(),
        gate=random(outputs) if gate else None,
        gelu=gelu,
        residual=random(residual, outputs).bfloat16() if residual else None,
        y=poisoned(rows, outputs, dtype=torch.bfloat16),
        blocks=blocks,
    )


def call_of(p: dict) -> emulate.Call:
    call = LinearPersistent(p["x"], p["weight"], p["bias"], p["gate"], p["residual"], p["gelu"], output=p["y"])
    return emulate.Call("linear_persistent", call, changed={"blocks": p["blocks"]})


def run(emulator: emulate.Emulator, *problems: dict, seed: int = 0, **options: int) -> None:
    emulator.run(*map(call_of, problems), seed=seed, **options)


def expected(p: dict, dtype: torch.dtype) -> Tensor:
    """The formula in a dtype, from the call's own tensors."""
    cast = {name: None if p[name] is None else p[name].to(dtype) for name in ("x", "weight", "bias", "gate", "residual")}
    if cast["residual"] is not None:
        cast["residual"] = cast["residual"][torch.arange(len(p["x"])) % len(cast["residual"])]
    return reference(**cast, gelu=p["gelu"])


def check(p: dict) -> None:
    assert_contract(p["y"], expected(p, torch.float64), expected(p, torch.bfloat16))


PROBLEMS = [
    # rows, outputs, width, blocks, what follows the product
    (1, 8, 64, 1, {}),
    (127, 248, 128, 2, dict(gelu=True)),
    (128, 256, 256, 132, dict(residual=128)),
    (129, 264, 64, 3, dict(gate=True, residual=64)),
    (300, 520, 192, 2, dict(gate=True, gelu=True, residual=300)),
    (640, 256, 320, 4, dict(residual=1)),
    (2304, 264, 64, 7, dict(gelu=True)),
]


@pytest.mark.parametrize(("rows", "outputs", "width", "blocks", "after"), PROBLEMS)
def test_values(emulator, rows, outputs, width, blocks, after):
    """One tile and many, tiles of a block from one to ten, rows and outputs that leave tiles unfilled, rings used less than
    once and many times, more than 16 tiles high."""
    p = problem(rows, outputs, width, blocks, **after)
    run(emulator, p, seed=rows)
    check(p)


def in_a_row() -> list[dict]:
    """Calls the second of which reads what the first writes, each block with several tiles."""
    a = problem(260, 320, 256, 2, gelu=True)
    b = problem(260, 264, 320, 3, a, gate=True, residual=130)
    return [a, b]


def test_calls_in_a_row_are_what_they_are_alone(emulator):
    """Though each may start before the last is done; the last writes what the first reads."""
    alone = in_a_row()
    for p in alone:
        run(emulator, p)
        check(p)
    for seed in SEEDS:
        a, b = in_a_row()
        c = problem(260, 256, 264 // 64 * 64, 2)
        c["y"] = a["x"]
        run(emulator, a, b, c, seed=seed)
        assert torch.equal(a["y"], alone[0]["y"]) and torch.equal(b["y"], alone[1]["y"])
        check(c)


def test_bits_depend_neither_on_other_rows_nor_on_the_blocks(emulator):
    whole = problem(260, 264, 192, 2, residual=260)
    run(emulator, whole)
    for rows, blocks in (140, 5), (1, 1):
        p = problem(260, 264, 192, blocks, residual=260)
        p["x"], p["y"] = p["x"][-rows:].clone(), p["y"][-rows:].clone()
        p["residual"] = p["residual"][-rows:].clone()
        run(emulator, p)
        assert torch.equal(p["y"], whole["y"][-rows:])


@pytest.mark.parametrize(("outputs", "width"), [(12, 64), (8, 96)])
def test_shapes_that_are_refused(emulator, outputs, width):
    with pytest.raises(emulate.EmulationError, match="takes n that is a multiple of 8 and k of 64"):
        run(emulator, problem(5, outputs, width, 1))


def test_a_card_without_warpgroups_refuses_it():
    with pytest.raises(emulate.EmulationError, match="linear_persistent runs on Hopper only"):
        run(emulate.build(KERNEL), problem(5, 8, 64, 1))
