"""Every Triton kernel, compiled for the cards it is meant for, keeps within their shared memory and spills nothing."""

import ast
import dataclasses
from pathlib import Path

import pytest
import triton
import triton.language as tl

from dllm_kernels.ops import ahead_of_time
from dllm_kernels.ops.ahead_of_time import SHARED_BYTES, Specialization, compile_for, specializations, violations

ALL = specializations()
OPS = Path(ahead_of_time.__file__).parent


@pytest.fixture(autouse=True)
def triton_cache(monkeypatch, request):
    """Compiled kernels outlive the session, so that a second run costs nothing."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(request.config.cache.mkdir("triton")))


@pytest.mark.parametrize(
    ("specialization", "capability"),
    [pytest.param(s, c, id=f"{s.name}-{c}") for s in ALL for c in s.capabilities],
)
def test_kernel_keeps_within_its_budget(specialization, capability):
    assert violations(compile_for(specialization, capability), capability) == []


def test_names_are_unique():
    names = [s.name for s in ALL]
    assert sorted(set(names)) == sorted(names)


def test_every_module_that_launches_a_kernel_lists_its_specializations():
    launching, listing = set(), {s.kernel.fn.__module__ for s in ALL}
    for path in OPS.glob("*/*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if any(isinstance(call.func, ast.Subscript) for call in calls):
            launching.add(f"{OPS.parent.name}.{OPS.name}.{path.parent.name}.{path.stem}")
    assert launching and launching <= listing


@triton.jit
def _greedy(x, y, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    values = tl.load(x + offsets, mask=offsets < n, other=-1.0)
    tl.store(y + offsets, values - tl.max(values, 0), mask=offsets < n)


@triton.jit
def _deep(x, y, n, BLOCK: tl.constexpr):
    rows, columns = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, n, BLOCK):
        tile = tl.load(x + rows * n + start + columns)
        total = tl.dot(tile, tl.load(x + (start + rows) * n + columns), total)
    tl.store(y + rows * BLOCK + columns, total)


def _planted(kernel, dtype: str, block: int, num_warps: int, num_stages: int) -> Specialization:
    signature = {"x": dtype, "y": "*fp32", "n": "i32", "BLOCK": "constexpr"}
    return Specialization(kernel.fn.__name__, kernel, signature, {"BLOCK": block}, num_warps, num_stages)


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_a_kernel_that_spills_is_caught(capability):
    modest, greedy = (compile_for(_planted(_greedy, "*fp32", *shape, 2), capability) for shape in ((1024, 4), (8192, 1)))
    assert violations(modest, capability) == []
    assert greedy.registers == 255 and greedy.stack > 0 and greedy.sass_spills > 0
    assert [line.split(maxsplit=1)[1] for line in violations(greedy, capability)] == [
        "B of stack",
        "LDL and STL instructions",
    ]


def test_a_kernel_that_takes_too_much_shared_memory_is_caught_on_the_card_that_has_less():
    deep = _planted(_deep, "*bf16", 64, 8, 8)
    shared = compile_for(deep, 120).shared_bytes
    assert SHARED_BYTES[120] < shared < SHARED_BYTES[90]
    assert violations(compile_for(deep, 120), 120) == [f"{shared:,} B of shared memory, the limit is 101,376"]
    assert violations(compile_for(deep, 90), 90) == []
    assert violations(compile_for(dataclasses.replace(deep, num_stages=2), 120), 120) == []
