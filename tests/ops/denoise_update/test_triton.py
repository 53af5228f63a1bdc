"""The solver update of Triton, and on a card that of CUDA, against float64, in every combination."""

import itertools

import pytest
import torch

from dllm_kernels.ops.denoise_update import op
from dllm_kernels.ops.denoise_update.op import DenoiseUpdate, reference
from tests.numerics import assert_contract, poisoned
from tests.ops.denoise_update.test_op import assert_statistics

COMBINATIONS = list(itertools.product((False, True), repeat=5))
# One value; less and more than one program of 512 values a sample; a width that lets loads be wide. CUDA's are wide always.
SHAPES = [(1, 1, 1), (2, 5, 63), (3, 13, 127), (2, 9, 128)]
STEP = 1
WRITTEN = ("latents", "previous", "next_input")
KERNELS = ["triton", "cuda"] if torch.cuda.is_available() else ["triton"]


def denoise_update(**arguments):
    op.denoise_update(DenoiseUpdate(**arguments))


@pytest.fixture(params=KERNELS)
def backend(request) -> str:
    return request.param


def scalar(value: int, device) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int64, device=device)


def guarded(values: torch.Tensor, device) -> torch.Tensor:
    """A contiguous copy with NaN behind it."""
    memory = poisoned(values.numel() + 1024, dtype=values.dtype, device=device)
    memory[: values.numel()] = values.flatten().to(device)
    return memory[: values.numel()].view(values.shape)


def guard(tensor: torch.Tensor) -> torch.Tensor:
    return torch.as_strided(tensor, (1024,), (1,), tensor.numel())


def problem(
    device,
    guided=False,
    self_condition=False,
    shifted=False,
    normed=False,
    shape=(2, 5, 64),
    compute=torch.bfloat16,
    first=3,
):
    """Arguments of `denoise_update` by name, with next_input and statistics poisoned."""
    torch.manual_seed(sum(shape))
    batch, length, width = shape
    rows = 2 * batch if guided else batch
    return dict(
        latents=guarded(torch.randn(shape) + 1, device),
        prediction=guarded((torch.randn(rows, length, width) - 2).to(compute), device),
        previous=guarded(torch.randn(shape) + 3, device),
        next_input=guarded(poisoned(rows, length, width * (2 if self_condition else 1), dtype=compute), device),
        coefficients=(torch.randn(3, 4) + 0.5).to(device),
        step=STEP,
        seed=scalar(-77, device),
        first_sample=scalar(first, device),
        shift=(torch.randn(width) + 1).to(device) if shifted and not self_condition else None,
        guidance_scale=torch.tensor(2.5, device=device) if guided else None,
        norm_scale=(torch.randn(width) + 0.5).to(device) if normed else None,
        norm_shift=(torch.randn(width) - 1).to(device) if normed else None,
        statistics=None if self_condition else guarded(poisoned(rows * length, 1, 2, dtype=torch.float32), device),
    )


def expected(p, noise, dtype):
    """What `reference` makes of the same arguments in `dtype`."""
    converted = {name: p[name].to(dtype) for name in ("latents", "previous", "coefficients")}
    arguments = {name: value for name, value in (p | converted).items() if name not in ("next_input", "statistics")}
    self_condition = p["next_input"].shape[-1] != p["latents"].shape[-1]
    return dict(zip(WRITTEN, reference(**arguments, noise=noise, self_condition=self_condition), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("guided", "self_condition", "shifted", "normed", "noise"), COMBINATIONS)
def test_values(device, backend, shape, guided, self_condition, shifted, normed, noise):
    if backend == "cuda":
        shape = (*shape[:2], (shape[2] + 3) // 4 * 4)
    p = problem(device, guided, self_condition, shifted, normed, shape, first=2**32 - 1)
    if normed:
        p["prediction"] += 100  # standard deviations
    truth, baseline = expected(p, noise, torch.float64), expected(p, noise, torch.float32)
    denoise_update(**p, noise=noise, backend=backend)
    for name in WRITTEN:
        assert_contract(p[name], truth[name], baseline[name].to(p[name].dtype))
        assert guard(p[name]).isnan().all()
    if not self_condition:
        assert_statistics(p["statistics"], p["next_input"])
        assert guard(p["statistics"]).isnan().all()


@pytest.mark.parametrize("self_condition", [False, True])
def test_without_the_prediction_before(device, backend, self_condition):
    """c is then ignored, whatever it is."""
    p, other = (problem(device, True, self_condition, True, True) for _ in range(2))
    p["coefficients"][STEP, 2], other["coefficients"][STEP, 2] = torch.inf, 0
    denoise_update(**p | {"previous": None}, noise=True, backend=backend)
    denoise_update(**other, noise=True, backend=backend)
    for name in ("latents", "next_input") + (() if self_condition else ("statistics",)):
        assert torch.equal(p[name], other[name])


@pytest.mark.skipif("cuda" not in KERNELS, reason="needs a card")
@pytest.mark.parametrize(
    ("shape", "offset", "message"),
    [
        ((2, 5, 63), 0, "takes widths that are multiples of 4 up to 8192, not 63"),
        ((1, 2, 8196), 0, "takes widths that are multiples of 4 up to 8192, not 8196"),
        ((2, 5, 64), 1, "takes latents at an address that is a multiple of four values"),
    ],
)
def test_what_cuda_does_not_take_goes_to_triton(device, shape, offset, message):
    p = problem(device, shape=shape)
    memory = poisoned(p["latents"].numel() + offset, dtype=torch.float32, device=device)
    p["latents"] = memory[offset:].view(shape).copy_(p["latents"])
    with pytest.raises(ValueError, match=message):
        denoise_update(**p, backend="cuda")
    truth, baseline = expected(p, False, torch.float64), expected(p, False, torch.float32)
    denoise_update(**p)
    assert_contract(p["latents"], truth["latents"], baseline["latents"])


@pytest.mark.parametrize("compute", [torch.float32, torch.float16])
@pytest.mark.parametrize("self_condition", [False, True])
def test_other_compute_dtypes(device, backend, compute, self_condition):
    if backend == "cuda" and compute is torch.float16:
        with pytest.raises(ValueError, match="takes prediction of"):
            denoise_update(**problem(device, compute=compute), backend=backend)
        return
    p = problem(device, True, self_condition, True, compute=compute)
    truth, baseline = expected(p, True, torch.float64), expected(p, True, torch.float32)
    denoise_update(**p, noise=True, backend=backend)
    for name in WRITTEN:
        assert_contract(p[name], truth[name], baseline[name].to(p[name].dtype))


@pytest.mark.parametrize("guided", [False, True])
def test_the_last_row_leaves_exactly_the_prediction(device, backend, guided):
    p = problem(device, guided, True, False, compute=torch.float32)
    p["coefficients"][STEP] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    denoise_update(**p, noise=True, backend=backend)
    assert torch.equal(p["latents"], p["previous"])
    if not guided:
        assert torch.equal(p["latents"], p["prediction"])
    for half in p["next_input"].split(2):
        assert torch.equal(half, torch.cat((p["latents"], p["latents"]), dim=-1))


def test_a_sample_is_the_same_in_every_batch(device, backend):
    shape, first = (3, 13, 124), 2**32 - 2
    whole = problem(device, True, False, True, True, shape, first=first)
    parts = []
    for j in range(3):
        part = {name: whole[name][j : j + 1].clone() for name in ("latents", "previous")}
        part |= {name: whole[name][j::3].clone() for name in ("prediction", "next_input")}
        part["statistics"] = whole["statistics"].unflatten(0, (6, 13))[j::3].flatten(0, 1).clone()
        parts.append(whole | part | dict(first_sample=scalar(first + j, device)))
    denoise_update(**whole, noise=True, backend=backend)
    for j, part in enumerate(parts):
        denoise_update(**part, noise=True, backend=backend)
        for name in ("latents", "previous"):
            assert torch.equal(part[name][0], whole[name][j])
        assert torch.equal(part["next_input"], whole["next_input"][j::3])
        assert torch.equal(part["statistics"].unflatten(0, (2, 13)), whole["statistics"].unflatten(0, (6, 13))[j::3])


def test_float64_is_served_by_torch_alone(device, backend):
    p = problem(device)
    p |= {name: p[name].double() for name in ("latents", "previous", "coefficients")}
    with pytest.raises(ValueError, match=r"latents .*float64"):
        denoise_update(**p, backend=backend)
    truth = expected(p, False, torch.float64)
    denoise_update(**p)
    torch.testing.assert_close(p["latents"], truth["latents"], rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a compiler")
def test_steps_share_one_compilation(device):
    from dllm_kernels.ops.denoise_update.triton import denoise_update_kernel

    def compiled() -> int:
        return len(denoise_update_kernel.device_caches[torch.cuda.current_device()][0])

    p = problem(device) | dict(coefficients=torch.zeros(33, 4, device=device))
    denoise_update(**(p | dict(step=0)), backend="triton")
    before = compiled()
    for step in (1, 2, 16, 32):
        denoise_update(**(p | dict(step=step)), backend="triton")
    assert compiled() == before > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA graph")
@pytest.mark.parametrize("backend", [*KERNELS, "torch"])
def test_a_captured_graph_reads_new_scalars(device, backend):
    p, eager = (problem(device, True, True) for _ in range(2))
    denoise_update(**(p | {name: p[name].clone() for name in WRITTEN}), noise=True, backend=backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        denoise_update(**p, noise=True, backend=backend)
    for name, value in (("seed", 5), ("first_sample", 2**32), ("guidance_scale", -1.5)):
        p[name].fill_(value)
        eager[name].fill_(value)
    graph.replay()
    denoise_update(**eager, noise=True, backend=backend)
    for name in WRITTEN:
        assert torch.equal(p[name], eager[name])
