"""linear_skinny: its packing, its definition through PyTorch on a CPU, and the CUDA kernel on a card."""

import dataclasses
import itertools
import math

import pytest
import torch

from dllm_kernels.bench.tune import shapes
from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.ops import extension
from dllm_kernels.ops.card import RTX_5090, SHARED_BYTES, Card
from dllm_kernels.ops.extension import has_wgmma, max_cluster
from dllm_kernels.ops.kernels import TILES
from dllm_kernels.ops.linear import config as gemm_config
from dllm_kernels.ops.linear.config import (
    SKINNY_TILES,
    WGMMA_TILES,
    GemmConfig,
    busiest_bytes,
    candidates,
    derived,
    is_faster,
)
from dllm_kernels.ops.linear.packing import pack, unpack, whole_shape
from dllm_kernels.ops.linear.reference import reference, row_statistics
from dllm_kernels.ops.linear.skinny import (
    LinearSkinny,
    empty_workspace,
    linear_skinny,
    select_config,
    unsupported_reason,
    workspace_elements,
)
from tests.numerics import assert_contract

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the CUDA kernel was compiled and not run")
needs_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or not has_wgmma(torch.device("cuda")), reason="no Hopper: the CUDA kernel was not run"
)
EPILOGUES = [
    {"norm"},
    {"gelu", "residual", "statistics"},
    {"norm", "gate", "gelu", "residual", "scaled", "statistics"},
]


def random(*shape, device="cpu", seed=0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.4).to(device)


def problem(rows, outputs, width, config, epilogue, device="cpu", chunk=None):
    """(arguments of linear_skinny, its result in float64, the same in bfloat16 by PyTorch)."""
    x = random(1, rows, width, device=device, seed=1)
    if "norm" in epilogue:
        x[0, 0] += 100  # a row whose mean is 100 times its standard deviation
    x, weight = x.bfloat16(), (random(outputs, width, device=device, seed=2) * width**-0.5).bfloat16()
    if "norm" in epilogue:
        weight = (weight - weight.float().mean(1, keepdim=True)).bfloat16()
    packed, arguments, exact = pack(weight.clone(), config), {}, {}
    bias = random(outputs, device=device, seed=3)
    if "norm" in epilogue:
        variance, mean = torch.var_mean(x.double(), dim=-1, correction=0, keepdim=True)
        sums = weight.double().sum(1)
        arguments |= {"column_sums": sums.float(), "stats": row_statistics(x, chunk), "stats_chunk": chunk or width}
        exact |= {"column_sums": sums, "mean": mean, "variance": variance}
    for name, size in (("gate", (outputs,)), ("residual", (1, rows, outputs))):
        if name in epilogue:
            value = random(*size, device=device, seed=len(name))
            arguments[name] = value.bfloat16() if name == "residual" else value
            exact[name] = arguments[name].double()
    if "scaled" in epilogue:
        arguments["next_scale"] = random(outputs, device=device, seed=9)
    gelu = "gelu" in epilogue
    arguments |= {"gelu": gelu, "with_stats": "statistics" in epilogue}
    workspace = empty_workspace(workspace_elements(packed, rows, max_cluster(x.device)), x.device)
    truth = reference(x.double(), weight.double(), bias.double(), **exact, gelu=gelu)
    narrow = {name: value.bfloat16() for name, value in exact.items() if name not in ("column_sums", "mean", "variance")}
    normed = torch.nn.functional.layer_norm(x, (width,)) if "norm" in epilogue else x
    baseline = reference(normed, weight, bias.bfloat16(), **narrow, gelu=gelu)
    return (x, packed, bias, workspace), arguments, truth, baseline


def check(rows, outputs, width, config, epilogue, device="cpu", chunk=None):
    positional, arguments, truth, baseline = problem(rows, outputs, width, config, epilogue, device, chunk)
    y, scaled, left = linear_skinny(*positional, **arguments)
    assert_contract(y, truth, baseline)
    workspace = positional[3]
    assert (workspace.view(torch.int32) == -1).all()
    if "scaled" in epilogue:
        assert torch.equal(scaled, (y.float() * (1 + arguments["next_scale"])).bfloat16())
    if "statistics" in epilogue:
        expected = row_statistics(y, config.tile_n)
        assert torch.allclose(left, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    else:
        assert left is None
    again = linear_skinny(*positional, **arguments)
    assert torch.equal(again[0], y)
    return y


@pytest.mark.parametrize("tile", SKINNY_TILES + WGMMA_TILES)
def test_packing_is_undone(tile):
    config, weight = GemmConfig(*tile, 1, 2), random(2 * 256, 256).bfloat16()
    assert torch.equal(unpack(pack(weight.clone(), config)), weight)
    part = weight[:200, :104].clone()
    assert torch.equal(unpack(pack(part, config)), part)


def test_packing_needs_no_other_memory_where_nothing_is_padded():
    weight = random(512, 256).bfloat16()
    assert pack(weight, GemmConfig(*SKINNY_TILES[0], 1, 2)).data.data_ptr() == weight.data_ptr()


def test_eight_columns_of_an_output_lie_together():
    """Values say where they come from: 1000 output + column, in float32 so that they are exact."""
    weight = (torch.arange(512).unsqueeze(1) * 1000 + torch.arange(64)).float()
    data = pack(weight, GemmConfig(64, 256, 32, 1, 8, 1, 2)).data
    assert data.shape == (2, 8, 256, 8)
    # Warp 3's outputs are 96 to 127 of a block: the first sixteen stand fourth in its first half, the others in its second.
    for place, output in ((3 * 16 + 5, 96 + 5), (128 + 3 * 16 + 5, 96 + 16 + 5)):
        assert data[1, 6, place].tolist() == [1000 * (256 + output) + column for column in range(48, 56)]


def test_a_warpgroup_has_four_neighbouring_outputs_in_the_columns_of_a_thread():
    """Columns 2 t and 2 t + 1 of two tiles of eight are thread t's (mma_bf16 in csrc/include/dllm/mma.cuh)."""
    weight = (torch.arange(192).unsqueeze(1) * 1000 + torch.arange(128)).float()
    data = pack(weight, GemmConfig(64, 96, 64, 4, 1, 1, 2)).data
    assert data.shape == (2, 16, 96, 8)
    for t in range(4):
        columns = [32 + 8 * tile + 2 * t + i for tile in (0, 1) for i in (0, 1)]
        outputs = [96 + 32 + 4 * t + i for i in range(4)]
        assert data[1, 5, columns].tolist() == [[1000 * o + c for c in range(40, 48)] for o in outputs]


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=lambda e: "+".join(sorted(e)))
@pytest.mark.parametrize(("rows", "outputs", "width"), [(1, 64, 64), (63, 200, 104), (65, 128, 256)])
def test_the_definition(rows, outputs, width, epilogue):
    check(rows, outputs, width, GemmConfig(64, 64, 64, 2, 2, 3, 2), epilogue, chunk=48 if width == 104 else None)


def test_the_op_passes_opcheck():
    (x, packed, bias, workspace), _, _, _ = problem(5, 64, 64, GemmConfig(64, 64, 64, 2, 2, 1, 2), set())
    call = LinearSkinny(x, packed.data, bias, workspace, 64, packed.config, gelu=True, next_scale=random(64), with_stats=True)
    arguments = [getattr(call, name) for name in ("input", "weight", "bias", "workspace", "n")]
    arguments += [list(dataclasses.astuple(packed.config)), None, None, 0, None, True, None, call.next_scale, True, True]
    torch.library.opcheck(torch.ops.dllm_kernels.linear_skinny.default, tuple(arguments))


@pytest.mark.parametrize(("outputs", "width"), [(100, 64), (64, 100)])
def test_what_the_kernel_cannot_step_over_is_named(outputs, width):
    (x, packed, bias, workspace), _, _, _ = problem(5, 64, 64, GemmConfig(64, 64, 64, 2, 2, 1, 2), set())
    odd = type(packed)(packed.data, outputs, width, packed.config)
    with pytest.raises(ValueError, match=rf"weight is \[{outputs}, {width}\]; both must be multiples of 8"):
        linear_skinny(x, odd, bias, workspace)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": random(1, 5, 64)}, r"x is torch.float32 \[1, 5, 64\]; it must be a contiguous bfloat16"),
        ({"bias": random(63)}, r"bias is torch.float32 \[63\]; it must be a contiguous float32 \[64\]"),
        ({"workspace": torch.zeros(3)}, "the workspace has 3 values of torch.float32; it must have 4096 of float32"),
        (
            {"workspace": torch.zeros(9999).double()},
            "the workspace has 9999 values of torch.float64; it must",
        ),
        ({"column_sums": random(64), "stats": random(5, 64, 2)}, "stats_chunk is 0; statistics are of at least 1 column"),
        ({"column_sums": random(64)}, "column_sums and stats go together"),
        ({"residual": random(1, 5, 64)}, "residual is torch.float32"),
        ({"gate": random(64).double()}, "gate is torch.float64"),
    ],
)
def test_what_does_not_fit_is_named(monkeypatch, changed, message):
    config = GemmConfig(64, 64, 64, 2, 2, 2 if "workspace" in changed else 1, 2)
    (x, packed, bias, workspace), _, _, _ = problem(5, 64, 64, dataclasses.replace(config, split_k=1), set())
    packed = type(packed)(packed.data, 64, 64, config)
    if "workspace" in changed:
        # It is needed where clusters do not run.
        monkeypatch.setattr("dllm_kernels.ops.linear.skinny.max_cluster", lambda device: 1)
        message = message.replace("4096", "8192")
    arguments = {"x": x, "packed": packed, "bias": bias, "workspace": workspace} | changed
    with pytest.raises(ValueError, match=message):
        linear_skinny(**arguments)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (torch.zeros(5, 1, 2).double(), r"stats are torch.float64 \[5, 1, 2\]; they must be a contiguous float32"),
        (torch.zeros(5, 2, 1).transpose(1, 2), "they must be a contiguous float32"),
    ],
)
def test_statistics_that_do_not_fit_are_named(statistics, message):
    positional, _, _, _ = problem(5, 64, 64, GemmConfig(64, 64, 64, 2, 2, 1, 2), set())
    if statistics.is_contiguous() and statistics.dtype == torch.float32:
        statistics = torch.zeros(2, 5, 1).permute(1, 2, 0)
    with pytest.raises(ValueError, match=message):
        linear_skinny(*positional, column_sums=random(64), stats=statistics, stats_chunk=64)


def test_packing_a_padded_weight_from_its_whole_shape():
    config, weight = GemmConfig(*SKINNY_TILES[0], 1, 2), random(200, 96).bfloat16()
    whole = torch.zeros(whole_shape(config, 200, 96)).bfloat16()
    whole[:200, :96] = weight
    packed = pack(whole, config, 200, 96)
    assert packed.data.data_ptr() == whole.data_ptr()
    assert torch.equal(unpack(packed), weight) and torch.equal(packed.data, pack(weight, config).data)


@pytest.mark.parametrize(
    ("backend", "rows", "as_for", "shape", "expected"),
    [
        ("auto", 64, None, (8192, 2048), True),
        ("auto", 128, None, (8192, 2048), True),
        ("auto", 64, None, (20480, 5120), True),
        ("auto", 65, None, (20480, 5120), False),
        ("auto", 129, None, (8192, 2048), False),
        ("auto", 512, 64, (8192, 2048), True),
        ("auto", 64, 192, (8192, 2048), False),
        ("cuda", 512, None, (20480, 5120), True),
        ("triton", 64, None, (8192, 2048), False),
        ("torch", 64, None, (8192, 2048), False),
    ],
)
def test_what_is_streamed(monkeypatch, backend, rows, as_for, shape, expected):
    """Where the table has no entry."""
    monkeypatch.setattr("dllm_kernels.ops.linear.skinny.cuda_unsupported_reason", lambda device: None)
    monkeypatch.setattr(gemm_config, "_table", dict)
    monkeypatch.setattr(gemm_config, "_layers", dict)
    config = select_config(rows, *shape, torch.bfloat16, torch.device("cpu"), backend, as_for)
    assert (config is not None) == expected
    if expected:
        assert config == gemm_config.select_config(as_for or rows, *shape, Card())


def test_which_weights_can_be_streamed():
    cpu = torch.device("cpu")
    assert unsupported_reason(64, 64, torch.float16, cpu) == "linear_skinny computes in bfloat16, not torch.float16"
    assert unsupported_reason(65, 64, torch.bfloat16, cpu).startswith("linear_skinny needs N and K that are multiples of 8")
    assert unsupported_reason(64, 64, torch.bfloat16, cpu) == "CUDA kernels do not run on cpu"


SHAPES = [(6144, 2048), (2048, 2048), (8192, 2048), (2048, 8192), (15360, 5120), (5120, 20480), (2304, 768), (64, 64), (8, 8)]


CARDS = {
    "H200": Card(),
    "RTX 5090": RTX_5090,
    "RTX PRO 6000": Card(188, 100 * 1024, wgmma=False),
    "DGX Spark": Card(48, 100 * 1024, wgmma=False),
    "B200": Card(148, wgmma=False),
    "78 SMs": Card(78, 100 * 1024, wgmma=False),
}
"""By name. Of all but the first no time is known."""


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
@pytest.mark.parametrize(("outputs", "width"), SHAPES)
@pytest.mark.parametrize("rows", [1, 64, 65, 256])
def test_every_config_fits(card, outputs, width, rows):
    for limit in (card.block_bytes, card.half_bytes):
        fitting = set(candidates(rows, outputs, width, card, limit))
        assert limit != card.block_bytes or derived(rows, outputs, width, card) in fitting
        for config in fitting:
            assert config.tile in (WGMMA_TILES if card.wgmma else SKINNY_TILES) and config.wgmma == card.wgmma
            assert config.num_stages >= 2 and config.shared_bytes() <= limit
            assert config.split_k <= min(8, -(-width // config.tile_k))
            of_a_slice = math.ceil(math.ceil(width / config.tile_k) / config.split_k)
            assert config.num_stages <= max(2, of_a_slice) and config.input_stages <= max(2, of_a_slice)
            deeper = dataclasses.replace(config, num_stages=config.num_stages + 1)
            assert config.num_stages in (16, max(2, of_a_slice)) or deeper.shared_bytes() > limit


@pytest.mark.parametrize("name", ["RTX 5090", "RTX PRO 6000"])
@pytest.mark.parametrize("preset", ["open-dllm-35b-a3b", "open-dllm-27b"])
def test_no_multiprocessor_reads_much_more_than_its_share(name, preset):
    card = CARDS[name]
    for outputs, width in shapes(LDLMConfig.preset(preset)):
        config = gemm_config.select_config(64, outputs, width, card)
        busiest = busiest_bytes(config, 64, outputs, width, card.multiprocessors)
        assert 2 * outputs * width / (card.multiprocessors * busiest) >= 0.9, (outputs, width, config)


def test_bytes_of_the_busiest_multiprocessor():
    # 3 blocks of 64 outputs in 2 slices of 2 and 1 stages: of 4 SMs one has two blocks, of 6 each has one.
    config = GemmConfig(64, 64, 64, 2, 2, 2, 2, 2)
    assert busiest_bytes(config, 64, 192, 192, 4) == 2 * 2 * 64 * 64 * 2
    assert busiest_bytes(config, 64, 192, 192, 6) == 2 * 64 * 64 * 2


def test_the_next_kernels_block_fits_beside_a_block_where_it_can():
    assert 2 * (Card().block_bytes + 1024) == 228 * 1024
    assert RTX_5090.block_bytes == SHARED_BYTES and RTX_5090.half_bytes == 50_176


def test_a_shape_that_was_timed_takes_its_config_from_the_table(monkeypatch):
    config, proxy = GemmConfig(64, 64, 64, 2, 2, 2, 5, 4), Card(132, 100 * 1024, wgmma=False)
    monkeypatch.setattr(gemm_config, "_table", lambda: {(132, False, 1, 6144, 2048): config})
    assert gemm_config.select_config(64, 6144, 2048, proxy) is config
    untimed = [(64, RTX_5090), (64, Card()), (65, proxy)]
    for rows, card in untimed:
        assert gemm_config.select_config(rows, 6144, 2048, card) == derived(rows, 6144, 2048, card) != config


def test_a_plan_streams_where_a_whole_layer_was_faster(monkeypatch):
    layers = {(132, True, 1, 2048): False, (132, True, 2, 2048): True, (132, True, 3, 5120): True}
    monkeypatch.setattr(gemm_config, "_layers", lambda: layers)
    for outputs, width in ((6144, 2048), (2048, 8192), (16384, 2048)):
        assert not is_faster(64, outputs, width, Card()) and is_faster(65, outputs, width, Card())
    assert is_faster(192, 20480, 5120, Card()) and not is_faster(192, 6144, 2048, Card())
    # Where none was timed, the rows decide.
    assert is_faster(128, 6144, 2048, RTX_5090) and not is_faster(129, 6144, 2048, RTX_5090)
    assert is_faster(64, 20480, 5120, RTX_5090) and not is_faster(65, 20480, 5120, RTX_5090)


def test_the_table_fits():
    assert {wgmma for _, wgmma, *_ in gemm_config._table()} == {False, True}
    for (multiprocessors, wgmma, row_tiles, outputs, width), config in gemm_config._table().items():
        card = Card(multiprocessors, wgmma=wgmma) if wgmma else Card(multiprocessors, 100 * 1024, wgmma=False)
        assert config.shared_bytes() <= card.block_bytes and config.num_stages >= 2
        found = {(c.tile, c.split_k) for c in candidates(64 * row_tiles, outputs, width, card)}
        assert (config.tile, config.split_k) in found


@needs_gpu
@pytest.mark.parametrize("tile", SKINNY_TILES)
def test_the_kernel_is_the_definition(tile):
    shapes = [(64, 512, 512), (63, 520, 328), (65, 256, 2048), (1, 256, 128), (200, 1000, 1000), (16, 64, 2048)]
    slices_of = [found.split_k for found in TILES["linear_skinny"] if found.shape == tile]
    for slices, (rows, outputs, width), epilogue in itertools.product(slices_of, shapes, EPILOGUES):
        config = GemmConfig(*tile, slices, 2, 2)
        if config.shared_bytes() <= SHARED_BYTES and slices <= -(-width // config.tile_k):
            check(rows, outputs, width, config, epilogue, "cuda", chunk=256)


@needs_hopper
@pytest.mark.parametrize("tile", WGMMA_TILES)
def test_the_kernel_by_warpgroups_is_the_definition(tile):
    outputs, slices_of = tile[1], [found.split_k for found in TILES["linear_skinny"] if found.shape == tile]
    shapes = [(64, 4 * outputs, 512), (63, outputs + 40, 576), (65, 2048, 2048), (1, 2 * outputs, 512), (200, outputs, 1024)]
    for slices, (rows, outputs, width), epilogue in itertools.product(slices_of, shapes, EPILOGUES):
        for stages, input_stages in ((3, 2), (2, 4)):
            config = GemmConfig(*tile, slices, stages, input_stages)
            if config.shared_bytes() <= Card().block_bytes:
                check(rows, outputs, width, config, epilogue, "cuda", chunk=256)


CONFIGS = [
    pytest.param(GemmConfig(64, 128, 64, 2, 2, 3, 3, 2), id="portable"),
    pytest.param(GemmConfig(64, 64, 64, 4, 1, 4, 3), marks=needs_hopper, id="warpgroups"),
    pytest.param(GemmConfig(128, 64, 64, 8, 1, 4, 3), marks=needs_hopper, id="warpgroups of 128 rows"),
]


@needs_gpu
@pytest.mark.parametrize("config", CONFIGS)
def test_a_row_does_not_depend_on_the_rows_beside_it(config):
    (x, packed, bias, _), arguments, _, _ = problem(200, 512, 1024, config, {"gelu"}, "cuda")
    workspace = empty_workspace(workspace_elements(packed, 200, max_cluster(x.device)), x.device)
    whole, _, _ = linear_skinny(x, packed, bias, workspace, **arguments)
    for begin, end in ((0, 1), (63, 65), (64, 128), (199, 200)):
        part, _, _ = linear_skinny(x[:, begin:end].contiguous(), packed, bias, workspace, **arguments)
        assert torch.equal(part, whole[:, begin:end])


@needs_gpu
@pytest.mark.parametrize("config", CONFIGS)
def test_overlapping_launches_change_nothing(config):
    (x, packed, bias, workspace), arguments, _, _ = problem(64, 512, 512, config, {"gelu"}, "cuda")
    # Rows of mean zero, so that fifty layers do not grow beyond bfloat16.
    centred = [w - w.mean(1, keepdim=True) for w in (random(512, 512, device="cuda", seed=seed) for seed in (7, 8))]
    packed, other = (pack((w * 512**-0.5).bfloat16(), config) for w in centred)

    def chain():
        # Nothing but our kernels, so that each overlaps with the one before it.
        y = x
        for i in range(50):
            y, _, _ = linear_skinny(y, other if i % 2 else packed, bias, workspace, **arguments)
        return y

    extension.load().set_overlapping(False)
    apart = chain()
    extension.load().set_overlapping(True)
    assert apart.isfinite().all()
    assert all(torch.equal(chain(), apart) for _ in range(5))


@needs_gpu
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("bits", [0x7FC0, 0xFFC0, 0xFFFF])
def test_a_row_of_nan_stays_a_row_of_nan(bits, config):
    """Also for the NaN whose bits mean that nothing was handed over yet."""
    (x, packed, bias, workspace), arguments, truth, baseline = problem(64, 256, 1024, config, {"gelu"}, "cuda")
    x.view(torch.int16)[0, 7, 100] = bits if bits < 0x8000 else bits - 0x10000
    y, _, _ = linear_skinny(x, packed, bias, workspace, **arguments)
    rest = torch.arange(64, device="cuda") != 7
    assert y[0, 7].isnan().all()
    assert_contract(y[:, rest], truth[:, rest], baseline[:, rest])
