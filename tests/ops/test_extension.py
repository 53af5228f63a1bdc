"""The CUDA kernels: what was compiled, for which cards, and the noise that they draw, which plain C++ computes as well.

Where nvcc is missing the package has no CUDA kernels, and the tests of the compiled module are skipped and say so.
"""

import ctypes
import importlib.util
import itertools
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dllm_kernels.bench import machine_code
from dllm_kernels.diffusion.noise import STEP_NOISE, uniforms, words
from dllm_kernels.ops import extension
from dllm_kernels.ops.denoise_update.op import reference
from tests.numerics import assert_contract, poisoned
from tests.ops.denoise_update.test_op import assert_statistics

CSRC = Path(__file__).parents[2] / "csrc"
NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc: nothing can be compiled")
# With nvcc an absent module is a failure.
needs_module = pytest.mark.skipif(
    NVCC is None and importlib.util.find_spec("dllm_kernels._C") is None,
    reason="no nvcc: the CUDA kernels were neither compiled nor checked",
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the CUDA kernels were compiled and not run")


def functions(binary: Path) -> dict[tuple[str, str], tuple[dict[str, int], str]]:
    """(resource usage, SASS) of every kernel in a binary, by (architecture, name)."""
    found = {(k.architecture, k.name): (k.usage, k.sass) for k in machine_code.kernels(binary)}
    assert found
    return found


def defects(usage: dict[str, int], sass: str) -> list[str]:
    """How a kernel breaks the rule: no stack, no local memory, no spills."""
    return machine_code.Kernel("", "", usage, sass).defects()


@pytest.fixture(scope="module")
def built() -> dict[tuple[str, str], tuple[dict[str, int], str]]:
    return functions(Path(extension.load().__file__))


@pytest.mark.parametrize(
    ("capability", "built", "expected"),
    [
        ((9, 0), ("sm_90a", "sm_120a"), True),
        ((9, 0), ("sm_90",), False),
        ((12, 0), ("sm_90a", "sm_120a"), False),
        ((9, 0), None, False),
    ],
)
def test_where_warpgroups_can_run(monkeypatch, capability, built, expected):
    def architectures():
        if built is None:
            raise RuntimeError("absent")
        return built

    monkeypatch.setattr(extension, "architectures", architectures)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert extension.has_wgmma(torch.device("cuda", 0)) == expected
    assert extension.has_wgmma(torch.device("cpu"))


@needs_module
def test_the_module_has_code_for_both_targets(built):
    assert extension.architectures() == ("sm_90a", "sm_120a")
    assert {architecture for architecture, _ in built} == {"sm_90a", "sm_120a"}


@needs_module
def test_no_kernel_spills(built):
    assert {key: defects(*value) for key, value in built.items() if defects(*value)} == {}


@needs_module
def test_denoise_update_moves_sixteen_bytes_at_once(built):
    found = {key: sass for key, (_, sass) in built.items() if "denoise_update_kernel" in key[1]}
    # For two architectures; two dtypes of the prediction and of the next input; one, two and four quads a thread.
    assert len(found) == 2 * 4 * 3
    for key, sass in found.items():
        quads = int(re.search(r"Li(\d)E", key[1])[1])
        # Latents, the previous z0, both of the norm's vectors and the shift are float32 in every variant.
        assert len(re.findall(r"\bLDG\.E\.128\b", sass)) >= 5 * quads, key
        assert len(re.findall(r"\bSTG\.E\.128\b", sass)) >= 2 * quads, key
        # The scalars, and none of the rest.
        assert len(re.findall(r"\bLDG\.E(\.CONSTANT)?\s", sass)) <= 2, key


@needs_module
def test_denoise_update_reads_nothing_before_its_predecessors_are_done(built):
    for key, (_, sass) in built.items():
        if "denoise_update_kernel" in key[1]:
            before, after = sass.split("ACQBULK")
            assert not re.search(r"\b(LDG|STG)", before) and re.search(r"\bLDG", after), key


@needs_nvcc
def test_the_gate_catches_a_kernel_that_spills(tmp_path):
    source = tmp_path / "planted.cu"
    source.write_text(
        "__global__ void planted(float* x, const int* index) {\n"
        "    float table[512];\n"
        "    for (int i = 0; i < 512; ++i) table[i] = x[i * 64 + threadIdx.x];\n"
        "    for (int i = 0; i < 512; ++i) table[index[i]] += 1;\n"
        "    x[threadIdx.x] = table[index[threadIdx.x]];\n"
        "}\n"
    )
    binary = tmp_path / "planted.cubin"
    subprocess.run([NVCC, "-cubin", "-arch=sm_120a", "-o", binary, source], check=True)
    ((usage, sass),) = functions(binary).values()
    found = defects(usage, sass)
    assert found[0] == "STACK:2048" and any(line.startswith("STL") for line in found)
    assert "LDG.E.128" not in sass


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> ctypes.CDLL:
    """csrc/include/dllm/philox.cuh as plain C++."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler: the device code's noise was not checked")
    folder = tmp_path_factory.mktemp("philox")
    source, library = folder / "philox.cpp", folder / "philox.so"
    source.write_text(
        '#include "dllm/philox.cuh"\n'
        'extern "C" void draw(int64_t seed, int64_t sample, uint32_t step, uint32_t quad, uint32_t* words, float* uniforms,\n'
        "                     float* normals) {\n"
        "    const dllm::Words drawn = dllm::random_words(seed, quad, step, sample, dllm::kStepNoise);\n"
        "    float four[4];\n"
        "    dllm::normals(drawn, four);\n"
        "    for (int i = 0; i < 4; ++i) {\n"
        "        words[i] = drawn.word[i];\n"
        "        uniforms[i] = dllm::uniform(drawn.word[i]);\n"
        "        normals[i] = four[i];\n"
        "    }\n"
        "}\n"
        'extern "C" void pairs(int count, const uint32_t* words, float* normals) {\n'
        "    for (int i = 0; i < count; ++i) {\n"
        "        dllm::normal_pair(words[2 * i], words[2 * i + 1], normals[2 * i], normals[2 * i + 1]);\n"
        "    }\n"
        "}\n"
    )
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{CSRC / 'include'}"]
    subprocess.run([compiler, *flags, "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("seed", [0, 1234567, -1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize(
    ("sample", "step", "quad"), [(0, 0, 0), (7, 3, 61), (2**32 - 1, 999, 2**28 - 1), (2**56 + 2**32 + 5, 1, 2)]
)
def test_device_noise_is_the_noise_of_the_truth(host, seed, sample, step, quad):
    drawn = [poisoned(4, dtype=dtype) for dtype in (torch.int32, torch.float32, torch.float32)]
    arguments = (ctypes.c_int64(seed), ctypes.c_int64(sample), ctypes.c_uint32(step), ctypes.c_uint32(quad))
    host.draw(*arguments, *(ctypes.c_void_p(tensor.data_ptr()) for tensor in drawn))
    expected = words(seed, sample, step, STEP_NOISE, 1, torch.arange(4 * quad, 4 * quad + 4))[0]
    assert torch.equal(drawn[0].long() & 0xFFFFFFFF, expected)
    assert torch.equal(drawn[1], uniforms(expected))
    u = uniforms(expected).double()
    radius, angle = torch.sqrt(-2 * torch.log(u[0::2])), 2 * math.pi * u[1::2]
    exact = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1).flatten()
    assert (drawn[2].double() - exact).abs().max() <= 1e-6


@pytest.mark.parametrize("radius_word", [0, 1 << 9, 2**31, 2**32 - 1])
def test_device_normals_are_within_a_millionth_at_every_kind_of_angle(host, radius_word):
    boundaries = torch.arange(8).unsqueeze(1) * 2**29 + torch.tensor([0, 511, 512, 2**28, 2**29 - 1])
    angle_word = torch.cat((boundaries.flatten(), torch.randint(2**32, (100_000,))))
    pair = torch.stack((torch.full_like(angle_word, radius_word), angle_word), dim=-1)
    drawn = poisoned(*pair.shape, dtype=torch.float32)
    packed = pair.to(torch.uint32)
    host.pairs(len(pair), ctypes.c_void_p(packed.data_ptr()), ctypes.c_void_p(drawn.data_ptr()))
    u = uniforms(pair).double()
    radius, angle = torch.sqrt(-2 * torch.log(u[:, 0])), 2 * math.pi * u[:, 1]
    exact = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    assert (drawn.double() - exact).abs().max() <= 1e-6


def denoise_update(step, noise, **tensors):
    """The raw call, as ops/denoise_update/op.py makes it."""
    latents, next_input = tensors["latents"], tensors["next_input"]
    batch, length, width = latents.shape
    extension.load().denoise_update(
        **{name: 0 if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()},
        step=step,
        batch=batch,
        length=length,
        width=width,
        prediction_dtype=str(tensors["prediction"].dtype).removeprefix("torch."),
        next_input_dtype=str(next_input.dtype).removeprefix("torch."),
        noise=noise,
        self_condition=next_input.shape[-1] != width,
        stream=torch.cuda.current_stream(latents.device).cuda_stream if latents.is_cuda else 0,
    )


def update_arguments(
    device, shape=(3, 5, 64), dtype=torch.float32, next_dtype=torch.float32, form="shift", guided=False, normed=False
):
    """A `form` of "shift" has statistics, and in rows of a mean of 100 standard deviations."""
    batch, length, width = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return (torch.randn(size, generator=generator) + 0.7).to(device)

    rows = 2 * batch if guided else batch
    return dict(
        latents=draw(*shape),
        prediction=draw(rows, length, width).to(dtype),
        previous=draw(*shape),
        next_input=poisoned(rows, length, width * (2 if form == "self-condition" else 1), dtype=next_dtype, device=device),
        coefficients=draw(4, 4),
        step=2,
        seed=torch.tensor(-5, device=device),
        first_sample=torch.tensor(2**32 - 1, device=device),
        shift=draw(width) + 300 if form == "shift" else None,
        guidance_scale=torch.tensor(2.5, device=device) if guided else None,
        norm_scale=draw(width) if normed else None,
        norm_shift=draw(width) if normed else None,
        statistics=poisoned(rows * length, 1, 2, dtype=torch.float32, device=device) if form == "shift" else None,
    )


@needs_module
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU launches it")
def test_a_launch_that_fails_says_so():
    with pytest.raises(RuntimeError, match="denoise_update could not be launched: "):
        denoise_update(**update_arguments("cpu"), noise=True)


@needs_module
def test_a_dtype_without_code_is_named():
    with pytest.raises(ValueError, match="take float32 and bfloat16, not float16"):
        denoise_update(**update_arguments("cpu", dtype=torch.float16), noise=True)


@needs_module
@pytest.mark.parametrize(
    ("shape", "form", "changes", "message"),
    [
        ((1, 1, 6), "plain", {}, "needs a width that is a multiple of 4 up to 8192, not 6"),
        ((1, 1, 8196), "plain", {}, "needs a width that is a multiple of 4 up to 8192, not 8196"),
        ((1, 1, 8), "plain", {"norm_scale": torch.zeros(8)}, "norm_scale and norm_shift, or neither"),
        ((1, 1, 8), "self-condition", {"statistics": torch.zeros(1, 1, 2)}, "neither shift nor statistics with self-cond"),
        ((1, 1, 8), "plain", {"previous": torch.zeros(1, 1, 9)[..., 1:]}, "addresses that are multiples of four values"),
    ],
)
def test_denoise_update_refuses_what_it_cannot_do(shape, form, changes, message):
    with pytest.raises(ValueError, match=message):
        denoise_update(**(update_arguments("cpu", shape, form=form) | changes), noise=False)


@needs_module
@needs_gpu
@pytest.mark.parametrize(
    "shape", [(1, 1, 4), (3, 63, 68), (2, 65, 64), (1, 64, 2048), (5, 7, 3004), (1, 3, 5120), (1, 2, 8192)]
)
def test_denoise_update_is_the_definition(shape):
    wide, narrow = torch.float32, torch.bfloat16
    dtypes = [(wide, wide), (wide, narrow), (narrow, wide), (narrow, narrow)]
    forms = ["plain", "shift", "self-condition"]
    for variant in itertools.product(dtypes, forms, [False, True], [False, True], [False, True]):
        check_denoise_update(shape, *variant)


def check_denoise_update(shape, dtypes, form, guided, normed, noise):
    arguments = update_arguments("cuda", shape, *dtypes, form, guided, normed)
    if normed:
        arguments["prediction"] += 100

    def expected(dtype):
        values = {
            name: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v
            for name, v in arguments.items()
            if name not in ("next_input", "statistics")
        }
        return reference(**values, noise=noise, self_condition=form == "self-condition")

    exact, baseline = expected(torch.float64), expected(torch.float32)
    denoise_update(**arguments, noise=noise)
    for name, truth, float32 in zip(("latents", "previous", "next_input"), exact, baseline, strict=True):
        assert_contract(arguments[name], truth, float32.to(arguments[name].dtype))
    if form == "shift":
        assert_statistics(arguments["statistics"], arguments["next_input"])


def test_an_absent_module_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "dllm_kernels._C", None)
    extension.load.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="installed without its CUDA kernels: they need nvcc"):
            extension.load()
        assert extension.cuda_unsupported_reason(torch.device("cuda")).startswith("dllm-kernels was installed without")
    finally:
        extension.load.cache_clear()


def test_cuda_kernels_need_a_cuda_device():
    assert extension.cuda_unsupported_reason(torch.device("cpu")) == "CUDA kernels do not run on cpu"


@needs_module
def test_a_card_without_code_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    message = "the CUDA kernels were compiled for sm_90a, sm_120a, and this card is sm_89"
    assert extension.cuda_unsupported_reason(torch.device("cuda")) == message
    for capability in ((9, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, value=capability: value)
        assert extension.cuda_unsupported_reason(torch.device("cuda")) is None


@pytest.mark.parametrize(
    ("architecture", "capability", "expected"),
    [
        ("sm_90a", (9, 0), True),
        ("sm_120a", (12, 0), True),
        ("sm_120a", (12, 1), False),
        ("sm_120f", (12, 1), True),
        ("sm_80", (8, 6), True),
        ("sm_86", (8, 0), False),
        ("sm_80", (9, 0), False),
        ("sm_90a", (12, 0), False),
    ],
)
def test_code_runs_on_the_cards_that_it_was_compiled_for(architecture, capability, expected):
    assert extension.supports(architecture, capability) is expected
