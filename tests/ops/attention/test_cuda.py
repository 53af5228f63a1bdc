"""The CUDA kernel of attention: its machine code, what the op says without a card, and its values on one."""

import re
import subprocess
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dllm_kernels.ops import extension
from dllm_kernels.ops.attention import op
from dllm_kernels.ops.attention.cuda import Attention, Strides
from dllm_kernels.ops.attention.op import attention, attention_forward, reference
from tests.numerics import assert_contract
from tests.ops.test_extension import CSRC, NVCC, defects, functions, needs_gpu, needs_module, needs_nvcc

BFLOAT = torch.bfloat16
NAN = float("nan")


@needs_nvcc
@pytest.mark.parametrize("architecture", ["sm_90a", "sm_120a"])
def test_machine_code(architecture, tmp_path):
    binary = tmp_path / "attention.cubin"
    source = CSRC / "kernels" / "attention.cu"
    subprocess.run(
        [NVCC, "-std=c++20", "-cubin", f"-arch={architecture}", f"-I{CSRC / 'include'}", "-o", binary, source], check=True
    )
    kernels = functions(binary)
    assert len(kernels) == 7
    for key, (usage, sass) in kernels.items():
        assert defects(usage, sass) == [], key
        # Keys and queries move 16 bytes at a time, the keys to registers and the queries to shared memory.
        assert len(re.findall(r"\bLDG\.E\.128\b", sass)) >= 4, key
        assert re.search(r"\bLDGSTS\S*\.128\b", sass), key
        assert "HMMA.16816.F32.BF16" in sass, key
        # A value that the kernel before has just written must not come from the cache of constants.
        assert not re.search(r"\bLDG\S*\.CONSTANT\b", sass), key
        assert sass.index("ACQBULK") < sass.index("LDGSTS"), key
        assert sass.index("ACQBULK") < re.search(r"\bLDG\b", sass).start(), key


def inputs(batch, queries, keys, heads, head_dim, masked=False, device="cuda") -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """q, k, v with a mean of 0.5; of a mask the last sample has no key, and what is masked holds NaN."""
    generator = torch.Generator().manual_seed(head_dim + queries)
    shapes = [(batch, n, heads, head_dim) for n in (queries, keys, keys)]
    q, k, v = ((torch.randn(shape, generator=generator) + 0.5).to(device, BFLOAT) for shape in shapes)
    if not masked:
        return q, k, v, None
    mask = (torch.rand(batch, keys, generator=generator) < 0.6).to(device)
    mask[-1] = False
    return q, k.masked_fill(~mask[:, :, None, None], NAN), v.masked_fill(~mask[:, :, None, None], NAN), mask


def on_the_card(*shape: int, dtype: torch.dtype = BFLOAT) -> Tensor:
    """A tensor without memory that says it is on a card."""
    with FakeTensorMode():
        return torch.empty(shape, dtype=dtype, device="cuda")


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


@needs_module
@pytest.mark.parametrize(
    ("q", "keys", "backend", "expected"),
    [
        ((1, 64, 8, 256), 64, "auto", "cuda"),
        ((1, 64, 8, 640), 256, "auto", "cuda"),
        ((1, 64, 8, 256), 64, op._DIFFERENTIABLE, "triton"),
        ((1, 64, 8, 252), 64, "auto", "triton"),
        ((1, 64, 8, 24), 64, "auto", "triton"),
        ((1, 64, 8, 648), 64, "auto", "torch"),
        ((1, 257, 8, 256), 64, "auto", "triton"),
        ((1, 64, 8, 256), 257, "auto", "triton"),
        ((15, 64, 8, 256), 64, "auto", "cuda"),
        ((16, 64, 8, 256), 64, "auto", "triton"),
        ((16, 32, 8, 256), 64, "auto", "cuda"),
        ((16, 33, 8, 256), 64, "auto", "triton"),
        ((16, 64, 8, 256), 129, "auto", "torch"),
        ((64, 64, 8, 256), 128, "auto", "triton"),
        ((64, 64, 8, 264), 64, "auto", "torch"),
        ((16, 64, 8, 640), 64, "auto", "torch"),
        ((64, 64, 12, 64), 64, "auto", "triton"),
        ((64, 64, 16, 128), 128, "auto", "triton"),
        ((64, 64, 16, 128), 129, "auto", "torch"),
        ((64, 129, 16, 128), 64, "auto", "torch"),
        ((16, 64, 8, 640), 64, op._DIFFERENTIABLE, "triton"),
        ((4, 64, 12, 64), 64, "auto", "cuda"),
        ((16, 64, 12, 64), 64, "auto", "triton"),
        ((1, 256, 12, 64), 256, "auto", "triton"),
        ((1, 512, 8, 256), 512, "auto", "torch"),
        ((1000, 64, 8, 256), 64, "auto", "triton"),
        ((1000, 64, 8, 256), 64, op._DIFFERENTIABLE, "triton"),
        ((1000, 512, 8, 256), 64, "cuda", "cuda"),
    ],
)
def test_auto_takes_what_serves(hopper, q, keys, backend, expected):
    assert op._select(on_the_card(*q), on_the_card(q[0], keys, *q[2:]), None, backend).backend == expected


@needs_module
def test_auto_leaves_many_masked_keys_to_triton(hopper):
    for shape, expected in (((64, 64, 8, 256), "triton"), ((64, 64, 8, 640), "torch"), ((1, 64, 8, 256), "cuda")):
        q = on_the_card(*shape)
        assert op._select(q, q, on_the_card(*shape[:2], dtype=torch.bool), "auto").backend == expected


@needs_module
def test_auto_takes_cuda_for_a_crowd_of_heads_where_triton_is_missing(hopper, monkeypatch):
    monkeypatch.setattr(op, "triton_unsupported_reason", lambda device: "triton is not installed")
    for shape, expected in (((16, 64, 8, 256), "cuda"), ((64, 64, 8, 256), "torch")):
        q = on_the_card(*shape)
        assert op._select(q, q, None, "auto").backend == expected


@needs_module
def test_auto_leaves_other_dtypes_to_the_others(hopper):
    for dtype, expected in ((torch.float16, "triton"), (torch.float32, "torch")):
        q = on_the_card(1, 64, 8, 256, dtype=dtype)
        assert op._select(q, q, None, "auto").backend == expected


def test_what_the_kernel_has_no_code_for_is_named():
    q = torch.zeros(1, 2, 1, 40)
    with pytest.raises(ValueError, match=r"cuda implementation of attention computes bfloat16, and q is torch\.float32"):
        op._cuda(q, q, q, None, False)
    for head_dim in (24, 36, 648):
        q = torch.zeros(1, 2, 1, head_dim, dtype=BFLOAT)
        with pytest.raises(ValueError, match=f"from 32 to 640 that are multiples of 8, and q has {head_dim}"):
            op._cuda(q, q, q, None, False)
    with pytest.raises(RuntimeError, match="CUDA kernels do not run on cpu"):
        attention(q, q, q, backend="cuda")


def raw_call(q: Tensor, **changes) -> None:
    """The launcher, as the op calls it, with q for all."""
    call, names = Attention(q, q, q, None, q, False), ("batch", "queries", "keys", "heads", "head_dim")
    values = {name: getattr(call, name) for name in (*names, "q_strides", "k_strides", "v_strides")}
    extension.load().attention(SimpleNamespace(**(vars(call) | values | changes)), 0)


@needs_module
def test_the_launcher_names_what_it_does_not_take():
    q = torch.zeros(1, 2, 1, 64, dtype=BFLOAT)
    for head_dim in (24, 36, 648):
        with pytest.raises(ValueError, match="head dimensions of 32 to 640 that are multiples of 8"):
            raw_call(q, head_dim=head_dim)
    shifted = torch.zeros(q.numel() + 4, dtype=BFLOAT)[4:].view_as(q)
    for changes in (dict(k=shifted), dict(v_strides=Strides(128, 68, 64)), dict(q_strides=Strides(128, 2**31, 64))):
        with pytest.raises(ValueError, match="begin at multiples of 16 bytes"):
            raw_call(q, **changes)


@needs_module
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU launches it")
def test_a_launch_that_fails_says_so():
    with pytest.raises(RuntimeError, match="attention could not be launched: "):
        raw_call(torch.zeros(1, 2, 1, 64, dtype=BFLOAT))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    out, lse = attention_forward(q, k, v, mask, causal, "cuda")
    assert out.is_contiguous() and out.dtype == q.dtype and lse.numel() == 0
    return out


def check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> None:
    out = attend(q, k, v, mask, causal)
    exact = reference(q.double(), k.double(), v.double(), mask, causal)
    assert_contract(out, exact, attention(q, k, v, mask, causal, "torch"))
    if mask is not None:
        assert out[-1].eq(0).all()


@pytest.fixture
def poisoned_memory():
    """torch.empty fills with NaN, so that what the kernel does not write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


LENGTHS = (1, 16, 63, 64, 65, 127, 256)


@needs_module
@needs_gpu
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("head_dim", [32, 40, 64, 96, 128, 136, 256, 320, 512, 640])
def test_values(head_dim):
    for queries in LENGTHS:
        for keys in LENGTHS:
            for masked in (False, True):
                check(*inputs(2, queries, keys, 3, head_dim, masked))
        for masked in (False, True):
            check(*inputs(2, queries, queries, 3, head_dim, masked), causal=True)


@needs_module
@needs_gpu
@pytest.mark.usefixtures("poisoned_memory")
def test_strided_views():
    generator = torch.Generator().manual_seed(0)
    for head_dim in (64, 256, 632):
        packed = (torch.randn(3, 65, 3, 2, head_dim + 8, generator=generator) + 0.5).to("cuda", BFLOAT)
        q, k, v = packed.unbind(dim=2)
        check(q, k, v, causal=True)
        # Heads that begin at multiples of 16 bytes, and heads that do not, which are copied.
        check(*(x[..., 8:] for x in (q, k, v)))
        check(*(x[..., 4:-4] for x in (q, k, v)))
        check(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)))
        check(q[:1].expand(3, -1, -1, -1), k, v)


@needs_module
@needs_gpu
@pytest.mark.parametrize(("heads", "head_dim"), [(8, 64), (16, 128), (8, 256), (8, 640)])
def test_a_sample_does_not_depend_on_its_batch(heads, head_dim):
    q, k, v, mask = inputs(33, 64, 64, heads, head_dim, masked=True)
    together = attend(q, k, v, mask)
    for first, last in ((0, 1), (5, 6), (30, 33), (1, 17)):
        part = slice(first, last)
        assert torch.equal(together[part], attend(q[part], k[part], v[part], mask[part]))
    assert torch.equal(together, attend(q, k, v, mask))


@needs_module
@needs_gpu
def test_a_chain_in_a_graph_is_the_chain_call_by_call():
    """Kernels that may start before the one ahead of them is complete."""
    q, k, v, _ = inputs(1, 64, 64, 8, 256)
    expected = q
    for _ in range(20):
        expected = attend(expected, k, v)
        torch.cuda.synchronize()
    source, graph = torch.zeros_like(q), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = source
        for _ in range(20):
            out = attend(out, k, v)
    source.copy_(q)
    for _ in range(50):
        graph.replay()
        assert torch.equal(out, expected)


@needs_module
@needs_gpu
def test_gradients_go_through_pytorch():
    q, k, v, _ = inputs(1, 17, 17, 2, 64)
    grads = []
    for backend in ("cuda", "torch"):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        grads.append(torch.autograd.grad(attention(*leaves, backend=backend).float().square().sum(), leaves))
    for actual, expected in zip(*grads, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.05)
