"""The CUDA kernel of attention on a CPU (tests/emulator), against float64."""

import pytest
import torch
from torch import Tensor

from dllm_kernels.ops.attention.cuda import Attention
from dllm_kernels.ops.attention.op import reference
from tests.emulator import emulate
from tests.numerics import assert_contract, poisoned

pytestmark = pytest.mark.skipif(emulate.COMPILER is None, reason="no g++: the CUDA kernels were not run")

KERNEL = "csrc/kernels/attention.cu"
NAN = float("nan")


@pytest.fixture(scope="module")
def emulator() -> emulate.Emulator:
    return emulate.build(KERNEL)


def problem(batch, queries, keys, heads, head_dim, masked=False, causal=False) -> dict:
    """Arguments of the op by name; q, k and v have a mean of 0.5, and what is masked holds NaN."""
    generator = torch.Generator().manual_seed(head_dim)
    shapes = [(batch, n, heads, head_dim) for n in (queries, keys, keys)]
    q, k, v = ((torch.randn(shape, generator=generator) + 0.5).bfloat16() for shape in shapes)
    mask = None
    if masked:
        mask = torch.rand(batch, keys, generator=generator) < 0.6
        mask[batch - 1] = False
        k, v = (x.masked_fill(~mask[:, :, None, None], NAN) for x in (k, v))
    return dict(q=q, k=k, v=v, key_mask=mask, causal=causal)


def call_of(p: dict, out: Tensor) -> emulate.Call:
    return emulate.Call("attention", Attention(**p, out=out))


def attend(emulator: emulate.Emulator, p: dict, seed: int = 0) -> Tensor:
    out = poisoned(*p["q"].shape, dtype=torch.bfloat16)
    emulator.run(call_of(p, out), seed=seed)
    return out


def check(p: dict, out: Tensor) -> None:
    q, k, v = (p[name] for name in ("q", "k", "v"))
    exact = reference(q.double(), k.double(), v.double(), p["key_mask"], p["causal"])
    assert_contract(out, exact, reference(q, k, v, p["key_mask"], p["causal"]))
    if p["key_mask"] is not None:
        assert out[-1].eq(0).all()


@pytest.mark.parametrize(
    ("batch", "queries", "keys", "heads", "head_dim", "masked", "causal"),
    [
        # Each instance; the longest prompts in several tiles of keys.
        (1, 1, 1, 1, 32, False, False),
        (2, 17, 63, 2, 40, True, False),
        (1, 16, 64, 1, 64, False, False),
        (1, 33, 33, 1, 96, False, True),
        (2, 65, 65, 1, 128, True, True),
        (1, 15, 127, 1, 128, False, False),
        (1, 64, 64, 1, 256, False, False),
        (2, 17, 130, 1, 256, True, False),
        (1, 65, 65, 1, 136, False, True),
        (2, 5, 65, 1, 320, True, False),
        (1, 17, 17, 1, 384, False, True),
        (2, 16, 66, 1, 512, True, False),
        (1, 64, 64, 1, 640, False, False),
        (2, 17, 129, 1, 640, True, False),
        (1, 5, 3, 1, 520, False, False),
        # Many tiles of queries: blocks that own all columns, and blocks of two tiles.
        (5, 3, 5, 13, 256, True, False),
        (4, 33, 65, 11, 136, True, False),
        (6, 17, 17, 22, 64, False, True),
    ],
)
def test_values(emulator, batch, queries, keys, heads, head_dim, masked, causal):
    p = problem(batch, queries, keys, heads, head_dim, masked, causal)
    check(p, attend(emulator, p, seed=queries))


def test_packed_views_are_read_in_place(emulator):
    packed = (torch.randn(2, 18, 3, 2, 128, generator=torch.Generator().manual_seed(0)) + 0.5).bfloat16()
    q, k, v = packed[:, 1:].unbind(dim=2)
    p = dict(q=q, k=k, v=v, key_mask=None, causal=True)
    check(p, attend(emulator, p))
    # One query for all samples, as the learned queries of a Perceiver.
    p = p | dict(q=q[:1].expand(2, -1, -1, -1), causal=False)
    check(p, attend(emulator, p))


def test_a_head_does_not_see_its_neighbours(emulator):
    p = problem(1, 17, 20, 3, 40)
    clean = attend(emulator, p)
    for name in ("q", "k", "v"):
        p[name][:, :, ::2] = NAN
    assert torch.equal(attend(emulator, p)[:, :, 1], clean[:, :, 1])


@pytest.mark.parametrize("head_dim", [64, 256])
def test_a_sample_does_not_depend_on_its_batch(emulator, head_dim):
    p = problem(10, 5, 9, 40, head_dim)
    alone = {name: x if not isinstance(x, Tensor) else x[3:4] for name, x in p.items()}
    assert torch.equal(attend(emulator, p)[3:4], attend(emulator, alone))


def chain(emulator: emulate.Emulator, seed: int) -> bool:
    """Whether two calls, the second of which reads the first's output and may start before, are what they are alone."""
    p = problem(2, 17, 17, 2, 64)
    first, second = (poisoned(*p["q"].shape, dtype=torch.bfloat16) for _ in range(2))
    emulator.run(call_of(p, first), call_of(p | dict(q=first), second), seed=seed)
    return torch.equal(first, attend(emulator, p)) and torch.equal(second, attend(emulator, p | dict(q=first)))


@pytest.mark.parametrize("seed", range(4))
def test_a_call_waits_for_the_one_before(emulator, seed):
    assert chain(emulator, seed)


def test_a_missing_wait_is_found():
    broken = emulate.build(KERNEL, replaced=emulate.planted(KERNEL, "    pdl_wait();\n", ""))
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
        ("    mbarrier_wait(queries_here, 0);\n", ""),
        ("        __syncthreads();\n\n        // Half a warp", "        // Half a warp"),
        ("        __syncthreads();\n\n        // What a masked", "        // What a masked"),
        ("out[m][n][0] *= upper", "out[m][n][0] *= 1"),
        ("first + row;\n                score", "first + row + 1;\n                score"),
        ("used ? v_words[step][r] :", "true ? v_words[step][r] :"),
        ("before && used >> i & 1", "before"),
        ("min(first + row, call.queries - 1)", "first + row"),
        ("start + 16 * step + 4 * t + r, end - 1", "start + 16 * step + 4 * t + r, end"),
        ("flags[i] = key < end &&", "flags[i] ="),
        ("+ column, column < call.head_dim)", "+ column, true)"),
        ("largest == -INFINITY ? 0.0f : largest", "largest"),
        ("row < call.queries && column", "column"),
    ],
)
def test_a_fault_is_found(old, new):
    broken = emulate.build(KERNEL, replaced=emulate.planted(KERNEL, old, new))
    with pytest.raises((AssertionError, emulate.EmulationError)):
        for seed in range(2):
            for arguments in (
                (2, 17, 65, 2, 40, True, False),
                (1, 33, 33, 1, 72, False, True),
                (1, 1, 130, 1, 64, False, False),
            ):
                p = problem(*arguments)
                p["k"][:, 0] -= 4  # the maximum rises, so that what came before is rescaled
                check(p, attend(broken, p, seed))
