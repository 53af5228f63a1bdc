"""linear_persistent: its definition through PyTorch on a CPU, who uses it when, and the CUDA kernel on a card."""

import pytest
import torch

from dllm_kernels.inference.fold import Numerics, fold_linear
from dllm_kernels.ops import extension
from dllm_kernels.ops.extension import has_wgmma
from dllm_kernels.ops.linear import library, persistent
from dllm_kernels.ops.linear import op as linear_file
from dllm_kernels.ops.linear.params import Activations
from dllm_kernels.ops.linear.persistent import linear_persistent
from dllm_kernels.ops.linear.reference import reference
from tests.numerics import assert_contract

CPU = torch.device("cpu")
needs_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or not has_wgmma(torch.device("cuda")), reason="no Hopper: the CUDA kernel was not run"
)
ROWS_BESIDE = [(0, 1), (127, 129), (128, 256), (255, 300)]


def linear(x, params, **around):
    return linear_file.linear(Activations(x), params, **around).x


def random(*shape, device="cpu", seed=0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.3).to(device)


def problem(batch, length, outputs, width, gate=False, residual=0, gelu=False, device="cpu"):
    """Arguments of linear_persistent by name; `residual` is of how many samples, 0 for none."""
    return dict(
        x=random(batch, length, width, device=device, seed=1).bfloat16(),
        weight=(random(outputs, width, device=device, seed=2) * width**-0.5).bfloat16(),
        bias=random(outputs, device=device, seed=3).bfloat16(),
        gate=random(outputs, device=device, seed=4) if gate else None,
        residual=random(residual, length, outputs, device=device, seed=5).bfloat16() if residual else None,
        gelu=gelu,
    )


def check(p):
    """The op's result for a problem, after a look at its values."""
    y = linear_persistent(**p)
    assert y.dtype == torch.bfloat16 and y.is_contiguous()
    assert_contract(y, reference(**p | {"x": p["x"].double()}), reference(**p))
    return y


@pytest.mark.parametrize("after", [{}, dict(gelu=True), dict(gate=True), dict(residual=3), dict(residual=1)], ids=str)
def test_the_definition(after):
    check(problem(3, 5, 72, 128, **after))


def test_the_definition_with_all_that_may_follow():
    p = problem(3, 5, 72, 128, gate=True, residual=1, gelu=True)
    product = torch.einsum("btk,nk->btn", p["x"].double(), p["weight"].double()) * p["gate"].double() + p["bias"].double()
    exact = product * (1 + torch.erf(product / 2**0.5)) / 2 + p["residual"].double()
    assert torch.allclose(reference(**p | {"x": p["x"].double()}), exact, rtol=0, atol=1e-12)
    check(p)


def test_the_op_passes_opcheck():
    for after in ({}, dict(gate=True, residual=2, gelu=True)):
        torch.library.opcheck(torch.ops.dllm_kernels.linear_persistent.default, tuple(problem(2, 3, 16, 64, **after).values()))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": random(64).bfloat16()}, "weight is [64]; it must be [N, K] with N a multiple of 8 and K of 64"),
        ({"weight": random(12, 64).bfloat16()}, "weight is [12, 64]; it must be [N, K] with N a multiple of 8"),
        ({"weight": random(16, 96).bfloat16()}, "weight is [16, 96]; it must be [N, K] with N a multiple of 8 and K of 64"),
        ({"weight": random(0, 64).bfloat16()}, "weight is [0, 64]; it must be [N, K]"),
        ({"x": random(6, 64).bfloat16()}, "x is [6, 64]; it must be [B, T, 64] and not empty"),
        ({"x": random(2, 3, 128).bfloat16()}, "x is [2, 3, 128]; it must be [B, T, 64] and not empty"),
        ({"x": random(2, 0, 64).bfloat16()}, "x is [2, 0, 64]; it must be [B, T, 64] and not empty"),
        ({"residual": random(2, 4, 16).bfloat16()}, "residual is [2, 4, 16]; it must be [2, 3, 16] or [1, 3, 16]"),
        ({"residual": random(2, 3, 8).bfloat16()}, "residual is [2, 3, 8]; it must be [2, 3, 16] or [1, 3, 16]"),
        ({"residual": random(3, 3, 16).bfloat16()}, "residual is [3, 3, 16]; it must be [2, 3, 16] or [1, 3, 16]"),
        ({"residual": random(3, 16).bfloat16()}, "residual is [3, 16]; it must be [2, 3, 16] or [1, 3, 16]"),
        ({"bias": random(1).bfloat16()}, "bias is [1]; it must be [16]"),
        ({"gate": random(1, 16)}, "gate is [1, 16]; it must be [16]"),
        ({"x": random(2, 3, 64)}, "x is torch.float32 with strides (192, 64, 1); it must be contiguous torch.bfloat16"),
        ({"x": random(3, 2, 64).bfloat16().transpose(0, 1)}, "x is torch.bfloat16 with strides (64, 128, 1); it must be"),
        ({"weight": random(16, 64)}, "weight is torch.float32 with strides (64, 1); it must be contiguous torch.bfloat16"),
        ({"weight": random(64, 16).bfloat16().T}, "weight is torch.bfloat16 with strides (1, 16); it must be contiguous"),
        ({"bias": random(16)}, "bias is torch.float32 with strides (1,); it must be contiguous torch.bfloat16"),
        ({"gate": random(16).bfloat16()}, "gate is torch.bfloat16 with strides (1,); it must be contiguous torch.float32"),
        ({"gate": random(32)[::2]}, "gate is torch.float32 with strides (2,); it must be contiguous torch.float32"),
        ({"residual": random(1, 3, 16)}, "residual is torch.float32 with strides (48, 16, 1); it must be contiguous"),
        ({"bias": torch.empty(16, dtype=torch.bfloat16, device="meta")}, "bias is on meta and x on cpu; they must share"),
    ],
)
def test_what_does_not_fit_is_named(changed, message):
    with pytest.raises(ValueError) as error:
        linear_persistent(**problem(2, 3, 16, 64, gate=True, residual=1) | changed)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("rows", "outputs", "expected"),
    [
        (4096, 8192, True),
        (4096, 2048, True),  # 256 tiles in two rounds of 132: 97 %
        (1024, 2048, False),  # 64 tiles: 48 %
        (1024, 6144, False),  # 192 tiles in two rounds: 73 %
        (512, 8192, True),
        (256, 8192, False),
        (64, 8192, False),
        (0, 8192, False),
        (113 * 128, 256, True),  # 85 % of 132 are 112.2
        (112 * 128, 256, False),
        (132 * 128, 256, True),
        (132 * 128 + 1, 256, False),
        (65 * 128, 512, True),
        # Tiles that are not full count for what is in them.
        (128, 132 * 256, True),
        (64, 132 * 256, False),
        (128 * 132, 216, False),
    ],
)
def test_where_tiles_win_on_132_multiprocessors(rows, outputs, expected):
    assert persistent.is_faster(132, rows, outputs) is expected


def test_the_least_share_is_enough():
    """17 of 20 tiles are 85 %."""
    assert persistent.is_faster(20, 17 * 128, 256) and not persistent.is_faster(20, 17 * 128 - 1, 256)


def test_why_the_kernel_cannot_run(monkeypatch):
    assert persistent.unsupported_reason(CPU) == "CUDA kernels do not run on cpu"
    monkeypatch.setattr(persistent, "cuda_unsupported_reason", lambda device: None)
    assert persistent.unsupported_reason(CPU) is None
    monkeypatch.setattr(persistent, "has_wgmma", lambda device: False)
    assert persistent.unsupported_reason(CPU) == "the kernel multiplies by wgmma, which only Hopper has (sm_90a)"


@pytest.mark.parametrize(
    ("rows", "outputs", "width", "x_dtype", "weight_dtype", "expected"),
    [
        (4096, 8192, 2048, torch.bfloat16, torch.bfloat16, True),
        (4096, 8184, 64, torch.bfloat16, torch.bfloat16, True),
        (4096, 8188, 64, torch.bfloat16, torch.bfloat16, False),
        (4096, 8192, 2016, torch.bfloat16, torch.bfloat16, False),
        (4096, 8192, 2048, torch.float32, torch.bfloat16, False),
        (4096, 8192, 2048, torch.float16, torch.float16, False),
        (256, 8192, 2048, torch.bfloat16, torch.bfloat16, False),
    ],
)
def test_which_layers_are_served(monkeypatch, rows, outputs, width, x_dtype, weight_dtype, expected):
    x = torch.empty(rows // 64, 64, width, dtype=x_dtype, device="meta")
    weight = torch.empty(outputs, width, dtype=weight_dtype, device="meta")
    assert persistent.supports(x, weight) is False
    monkeypatch.setattr(persistent, "unsupported_reason", lambda device: None)
    assert persistent.supports(x, weight) is expected


def test_a_tensor_that_no_bulk_copy_reads_keeps_a_layer_from_the_tiles(tiles):
    """The residual begins at 2 bytes past a multiple of 16."""
    params, x = layer(), random(1, 5, 128).bfloat16()
    residual = random(1, 5, 72).bfloat16()
    shifted = torch.empty(residual.numel() + 1, dtype=torch.bfloat16)[1:].view_as(residual).copy_(residual)
    given = linear(x, params, residual=residual.clone())
    assert tiles == [(1, 5, 128)]
    assert torch.allclose(linear(x, params, residual=shifted).float(), given.float(), rtol=0.02, atol=0.02)
    assert tiles == [(1, 5, 128)]


@pytest.fixture
def tiles(monkeypatch):
    """The shapes of the inputs that went to tiles; all may go there."""
    monkeypatch.setattr(library, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(persistent, "unsupported_reason", lambda device: None)
    monkeypatch.setattr(persistent, "is_faster", lambda *_: True)
    seen = []

    def recording(x, *rest):
        seen.append(tuple(x.shape))
        return linear_persistent(x, *rest)

    monkeypatch.setattr(persistent, "linear_persistent", recording)
    return seen


def layer(scaled=False, gated=False, normed=True):
    """A folded layer in bfloat16, as on a card."""
    norm = torch.nn.LayerNorm(128, elementwise_affine=False, dtype=torch.float64) if normed else None
    scale, shift = (random(1, 128, seed=5), random(1, 128, seed=6)) if scaled else (None, None)
    gate = random(1, 72, seed=7).double() if gated else None
    numerics = Numerics(torch.bfloat16, torch.bfloat16, torch.float32, CPU)
    weight, bias = random(72, 128, seed=8).double() / 11, random(72, seed=9).double()
    return fold_linear(weight, bias, numerics, norm=norm, scale=scale, shift=shift, gate=gate).at(0)


LAYERS = [
    (dict(normed=False), dict(gelu=True)),
    ({}, dict(gelu=True)),
    (dict(scaled=True), {}),
    (dict(scaled=True, gated=True), dict(residual=1)),
    (dict(normed=False, gated=True), dict(gelu=True, residual=3)),
]


@pytest.mark.parametrize(("of_layer", "after"), LAYERS, ids=str)
@torch.no_grad()
def test_a_layer_goes_to_tiles_where_they_serve(tiles, of_layer, after):
    params, x = layer(**of_layer), random(3, 5, 128).bfloat16()
    assert (params.column_sums is None) != of_layer.get("normed", True)
    gelu, samples = after.get("gelu", False), after.get("residual", 0)
    residual = random(samples, 5, 72, seed=3).bfloat16() if samples else None
    own = linear(x, params, gelu=gelu, residual=residual, backend="torch")
    assert torch.equal(linear(x, params, gelu=gelu, residual=residual, backend="triton"), own)
    assert tiles == []
    y = linear(x, params, gelu=gelu, residual=residual)
    assert tiles == [(3, 5, 128)]
    folded = {name: getattr(params, name) for name in ("column_sums", "scale", "gate")}
    exact = reference(x.double(), params.weight, params.bias, **folded, gelu=gelu)
    assert_contract(y, exact if residual is None else exact + residual.double(), own)


def test_where_tiles_do_not_serve_a_layer_does_not_go_there(tiles, monkeypatch):
    monkeypatch.setattr(persistent, "supports", lambda *_: False)
    params, x = layer(), random(3, 5, 128).bfloat16()
    assert torch.equal(linear(x, params), linear(x, params, backend="torch"))
    assert tiles == []


def test_inputs_with_gaps_go_to_tiles(tiles):
    params = layer(normed=False)
    x, residual = random(3, 5, 256).bfloat16()[..., :128], random(3, 5, 144).bfloat16()[..., :72]
    y = linear(x, params, residual=residual)
    assert torch.equal(y, linear(x.contiguous(), params, residual=residual.contiguous()))
    assert tiles == [(3, 5, 128)] * 2


@pytest.mark.parametrize("samples", [0, 1, 3])
def test_a_sample_alone_is_what_it_is_in_a_batch(tiles, samples):
    params, x = layer(scaled=True, gated=True), random(3, 5, 128).bfloat16()
    residual = random(samples, 5, 72, seed=3).bfloat16() if samples else None
    whole = linear(x, params, gelu=True, residual=residual, batch_invariant=True)
    assert tiles == [(1, 5, 128)] * 3
    for i in range(3):
        own = residual[i : i + 1].clone() if samples == 3 else residual
        alone = linear(x[i : i + 1].clone(), params, gelu=True, residual=own, batch_invariant=True)
        assert torch.equal(whole[i : i + 1], alone)


@needs_hopper
@pytest.mark.parametrize(
    ("batch", "length", "outputs", "width", "after"),
    [
        (64, 64, 8192, 2048, dict(gelu=True)),
        (64, 64, 2048, 8192, dict(residual=64)),
        (8, 64, 8192, 2048, dict(gelu=True)),
        (8, 125, 6152, 1920, dict(gate=True, residual=1)),
        (3, 43, 264, 64, dict(gate=True, gelu=True, residual=3)),
        (1, 1, 8, 64, {}),
    ],
)
def test_the_kernel_is_the_definition(batch, length, outputs, width, after):
    p = problem(batch, length, outputs, width, **after, device="cuda")
    assert persistent.unsupported_reason(p["x"].device) is None
    y = check(p)
    # So many calls that blocks meet in other orders.
    assert all(torch.equal(linear_persistent(**p), y) for _ in range(100))


@needs_hopper
def test_a_row_does_not_depend_on_the_rows_beside_it():
    p = problem(1, 300, 2048, 1024, residual=1, gelu=True, device="cuda")
    whole = linear_persistent(**p)
    for begin, end in ROWS_BESIDE:
        part = {name: p[name][:, begin:end].clone() for name in ("x", "residual")}
        assert torch.equal(linear_persistent(**p | part), whole[:, begin:end])


@needs_hopper
def test_a_graph_replays_the_call():
    p = problem(16, 64, 8192, 1024, gate=True, residual=1, device="cuda")
    linear_persistent(**p)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = linear_persistent(**p)
    for seed in range(3):
        p["x"].copy_(random(16, 64, 1024, seed=seed))
        expected = linear_persistent(**p)
        for _ in range(20):
            y.zero_()
            graph.replay()
            assert torch.equal(y, expected)


@needs_hopper
def test_overlapping_launches_change_nothing():
    p = problem(8, 125, 1024, 1024, gelu=True, device="cuda")
    # Rows of mean zero, so that fifty layers do not grow beyond bfloat16.
    drawn = [random(1024, 1024, device="cuda", seed=seed) for seed in (7, 8)]
    weights = [((w - w.mean(1, keepdim=True)) / 32).bfloat16() for w in drawn]

    def chain():
        # Nothing but our kernel, so that each launch overlaps with the one before it.
        y = p["x"]
        for i in range(50):
            y = linear_persistent(y, weights[i % 2], p["bias"], gelu=True)
        return y

    extension.load().set_overlapping(False)
    try:
        apart = chain()
    finally:
        extension.load().set_overlapping(True)
    assert apart.isfinite().all()
    assert all(torch.equal(chain(), apart) for _ in range(5))


@needs_hopper
def test_addresses_that_do_not_fit_are_named():
    p = problem(1, 5, 16, 64, device="cuda")
    p["bias"] = torch.zeros(17, dtype=torch.bfloat16, device="cuda")[1:]
    with pytest.raises(ValueError, match="bias is at an address that is not a multiple of 16 bytes"):
        linear_persistent(**p)
