"""The CUDA kernels of the lm_head: their machine code, what the ops say without a card, and their values on one."""

import ctypes
import dataclasses
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dllm_kernels.diffusion.noise import GUMBEL_NOISE, gumbels, uniforms
from dllm_kernels.ops import extension
from dllm_kernels.ops.card import SHARED_BYTES
from dllm_kernels.ops.dispatch import select
from dllm_kernels.ops.linear.config import GemmConfig
from dllm_kernels.ops.linear.packing import PackedWeight, pack
from dllm_kernels.ops.lm_head import library
from dllm_kernels.ops.lm_head import skinny as lm_head_skinny_file
from dllm_kernels.ops.lm_head.library import LmHeadChunked
from dllm_kernels.ops.lm_head.op import lm_head
from dllm_kernels.ops.lm_head.skinny import (
    FEW_ROWS,
    KERNEL,
    MANY_ROWS,
    LmHeadSkinny,
    config_for,
    lm_head_skinny,
    parts,
    select_config,
)
from tests.numerics import assert_contract
from tests.ops.lm_head.test_op import (
    HUGE_SAMPLE,
    Problem,
    check_batch_invariance,
    check_frequencies,
    check_scalars,
    check_special_values,
    check_values,
    fresh_memory_is_poisoned,
)
from tests.ops.test_extension import CSRC, NVCC, defects, functions, needs_gpu, needs_module, needs_nvcc

BFLOAT = torch.bfloat16
INF, NAN = float("inf"), float("nan")
CONFIGS = (FEW_ROWS, MANY_ROWS)


def compiled(name: str, architecture: str, folder) -> dict:
    binary = folder / f"{name}.cubin"
    source = CSRC / "kernels" / f"{name}.cu"
    command = [NVCC, "-std=c++20", "-cubin", f"-arch={architecture}", f"-I{CSRC / 'include'}", "-o", binary, source]
    subprocess.run(command, check=True)
    return functions(binary)


@needs_nvcc
@pytest.mark.parametrize("architecture", ["sm_90a", "sm_120a"])
def test_machine_code_of_the_stream(architecture, tmp_path):
    kernels = compiled("lm_head_skinny", architecture, tmp_path)
    # Two configs, each with and without log-probabilities; the merge.
    assert len(kernels) == 2 * 2 + 1
    for key, (usage, sass) in kernels.items():
        assert defects(usage, sass) == [], key
        # Bias, temperature and parts may have been written by the kernel before.
        assert not re.search(r"\bLDG\S*\.CONSTANT\b", sass), key
        assert not re.search(r"\b(LDG|STG)", sass.split("ACQBULK")[0]), key
        if "merge" not in key[1]:
            # Two blocks of 256 threads share an SM's registers.
            assert usage["REG"] <= 128, key
            product = "HGMMA.64x64x16.F32.BF16" if architecture == "sm_90a" else "HMMA.16816.F32.BF16"
            assert product in sass and "UBLKCP" in sass and "UTMALDG.2D" in sass, key
            assert architecture == "sm_90a" or len(re.findall(r"\bLDSM\.16\.M88\.4\b", sass)) >= 12, key


@needs_nvcc
@pytest.mark.parametrize("architecture", ["sm_90a", "sm_120a"])
def test_machine_code_of_a_chunk(architecture, tmp_path):
    ((usage, sass),) = compiled("lm_head_chunked", architecture, tmp_path).values()
    assert defects(usage, sass) == []
    assert re.search(r"\bLDG\.E\.128\b", sass)
    before, after = sass.split("ACQBULK")
    assert not re.search(r"\b(LDG|STG)", before) and re.search(r"\bLDG", after)


def test_gumbel_noise_of_the_device_code(tmp_path):
    """csrc/include/dllm/philox.cuh as plain C++, at both ends of the uniforms and between, against float64."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler: the device code's noise was not checked")
    source, library = tmp_path / "gumbel.cpp", tmp_path / "gumbel.so"
    source.write_text(
        '#include "dllm/philox.cuh"\n'
        'extern "C" void gumbels(int count, const uint32_t* words, float* values) {\n'
        "    for (int i = 0; i < count; ++i) values[i] = dllm::gumbel(words[i]);\n"
        "}\n"
        'extern "C" uint32_t stream() { return dllm::kGumbelNoise; }\n'
    )
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{CSRC / 'include'}"]
    subprocess.run([compiler, *flags, "-o", library, source], check=True)
    host = ctypes.CDLL(str(library))
    assert host.stream() == GUMBEL_NOISE
    words = torch.randint(0, 2**32, (2**16,), generator=torch.Generator().manual_seed(0))
    words[:4] = torch.tensor([0, 511, 512, 2**32 - 1])
    values, narrow = torch.full((len(words),), NAN), words.to(torch.uint32)
    host.gumbels(len(words), ctypes.c_void_p(narrow.data_ptr()), ctypes.c_void_p(values.data_ptr()))
    torch.testing.assert_close(values.double(), gumbels(uniforms(words).double()), rtol=3e-7, atol=3e-7)


def test_configs_fit_the_shared_memory_and_the_card():
    for config in CONFIGS:
        assert config.shared_bytes(KERNEL) <= SHARED_BYTES
        # One more stage would not fit.
        assert dataclasses.replace(config, num_stages=config.num_stages + 1).shared_bytes(KERNEL) > SHARED_BYTES
    # An H200, an RTX 5090, and a vocabulary smaller than the card.
    assert parts(970, FEW_ROWS, 132, 228 * 1024) == 264
    assert parts(970, FEW_ROWS, 170, 100 * 1024) == 170
    assert parts(5, FEW_ROWS, 132, 228 * 1024) == 5


def test_the_config_is_chosen_by_the_rows():
    assert [config_for(rows, False) for rows in (1, 64, 65, 256)] == [FEW_ROWS, FEW_ROWS, MANY_ROWS, MANY_ROWS]
    assert config_for(4096, batch_invariant=True) == FEW_ROWS


def test_auto_streams_what_was_timed(monkeypatch):
    monkeypatch.setattr(lm_head_skinny_file, "unsupported_reason", lambda *_: None)
    cpu = torch.device("cpu")
    for width, expected in ((2048, FEW_ROWS), (5120, FEW_ROWS), (5128, None)):
        assert select_config(64, width, BFLOAT, cpu, "auto") == expected
    assert select_config(65, 2048, BFLOAT, cpu, "auto") is None and select_config(64, 2048, BFLOAT, cpu, "triton") is None
    assert select_config(65, 8192, BFLOAT, cpu, "cuda") == MANY_ROWS
    assert select_config(4096, 5120, BFLOAT, cpu, "auto", as_for=64) == FEW_ROWS


@needs_module
def test_auto_takes_the_kernel_that_was_timed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    card = torch.device("cuda")
    assert select("lm_head", card).backend == "triton"
    assert select("lm_head", card, "cuda").backend == "cuda"


X, B, ZERO = torch.zeros(2, 3, 16, dtype=BFLOAT), torch.zeros(5), torch.tensor(0)


def packed(vocab_size: int = 5, width: int = 16, config: GemmConfig = FEW_ROWS) -> PackedWeight:
    return pack(torch.zeros(vocab_size, width, dtype=BFLOAT), config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": X.float()}, r"hidden is torch\.float32 \[2, 3, 16\]; it must be a bfloat16 \[B, T, 16\] and not empty"),
        ({"hidden": X[..., :8]}, r"hidden is torch\.bfloat16 \[2, 3, 8\]"),
        ({"hidden": X.transpose(0, 1)}, r"hidden has strides \(16, 48, 1\); it must be contiguous"),
        ({"bias": B[:4]}, r"bias is torch\.float32 \[4\]; it must be a contiguous float32 \[5\]"),
        ({"bias": B.bfloat16()}, r"bias is torch\.bfloat16 \[5\]"),
        ({"hidden": X[..., :12].contiguous(), "packed": packed(width=12)}, "a width of 12; it must be a multiple of 8"),
        ({"packed": packed(config=GemmConfig(64, 64, 64, 2, 2, 1, 2))}, "which lm_head_skinny has no code for"),
        ({"packed": packed(config=dataclasses.replace(FEW_ROWS, num_stages=5))}, "which lm_head_skinny has no code for"),
        ({"temperature": torch.ones(1)}, r"temperature is torch\.float32 \[1\]; it must be a float32 scalar tensor"),
        ({"seed": torch.tensor(1.0)}, r"seed is torch\.float32 \[\]; it must be an int64 scalar tensor"),
        ({"bias": B.to("meta")}, "bias is on meta and hidden on cpu; they must share a device"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_input_gets_one_sentence(change, message):
    good = {"hidden": X, "packed": packed(), "bias": B, "temperature": torch.tensor(0.0), "seed": ZERO, "first_sample": ZERO}
    with pytest.raises(ValueError, match=message):
        lm_head_skinny(**(good | change))


def test_what_cannot_run_says_why():
    weight = torch.zeros(5, 16, dtype=BFLOAT)
    with pytest.raises(RuntimeError, match="CUDA kernels do not run on cpu"):
        lm_head(X, weight, B, torch.tensor(0.0), ZERO, ZERO, backend="cuda")
    with pytest.raises(ValueError, match="the cuda implementation of lm_head computes in float32, and hidden is float64"):
        library._cuda(X.double(), weight, B, torch.tensor(0.0), ZERO, ZERO, False, False)


@pytest.mark.parametrize("config", CONFIGS, ids=["few", "many"])
def test_pytorch_stands_in_for_the_kernel(config):
    problem = Problem(2, 5, 40, 301, BFLOAT, temperature=0.7)
    scalars = (torch.tensor(0.7), torch.tensor(problem.seed), torch.tensor(HUGE_SAMPLE))
    tokens, logprobs = lm_head_skinny(problem.hidden, pack(problem.weight.clone(), config), problem.bias, *scalars, True)
    expected = lm_head(problem.hidden, problem.weight, problem.bias, *scalars, True, True, "torch")
    assert torch.equal(tokens, expected[0]) and torch.equal(logprobs, expected[1])
    weight = pack(problem.weight.clone(), config)
    arguments = (list(dataclasses.astuple(config)), problem.hidden, weight.data, problem.bias, *scalars, 301)
    for asked in (False, True):
        torch.library.opcheck(torch.ops.dllm_kernels.lm_head_skinny.default, (*arguments, asked))


@needs_module
def test_the_launchers_name_what_they_do_not_take():
    x, nothing = torch.zeros(1, 1, 8, dtype=BFLOAT), torch.zeros(8)
    few = LmHeadSkinny(GemmConfig(64, 64, 64, 1, 1, 1, 2), x, x, nothing, nothing, ZERO, ZERO, 8, False)
    call = SimpleNamespace(**vars(few), m=1, length=1, k=8, parts=1)
    with pytest.raises(ValueError, match="lm_head_skinny has no code for tiles of 64 x 64 with stages of 64, 1 x 1 warps"):
        extension.load().lm_head_skinny(call, 0)
    good = LmHeadChunked(torch.zeros(16), nothing, nothing, ZERO, ZERO, nothing, ZERO, None, 1, 1, 8, 8, 0, 8)
    for wrong in (dict(begin=2), dict(pitch=6), dict(logits=torch.zeros(17)[1:])):
        with pytest.raises(ValueError, match="rows of logits that begin at multiples of four values"):
            extension.load().lm_head_chunked(dataclasses.replace(good, **wrong), 0)


# On a card


@dataclasses.dataclass
class Streamed(Problem):
    """A `Problem` of tests/test_lm_head.py for the packed op."""

    dtype: torch.dtype = BFLOAT
    config: GemmConfig = FEW_ROWS

    def run(self, device: torch.device, backend: str = "", logprobs: bool = True, batch_invariant: bool = False):
        with fresh_memory_is_poisoned():
            tokens, logprob = lm_head_skinny(*self.tensors(), logprobs)
        return tokens.cpu(), logprob.cpu() if logprobs else None

    def tensors(self) -> tuple:
        scalars = (torch.tensor(value, device="cuda") for value in (float(self.temperature), self.seed, self.first_sample))
        return self.hidden.cuda(), pack(self.weight.cuda(), self.config), self.bias.cuda(), *scalars


@needs_module
@needs_gpu
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("width", [64, 768, 2048])
@pytest.mark.parametrize("vocab_size", [8, 1000, 1009, 50257])
def test_values(vocab_size, width, temperature):
    for batch, length in ((1, 1), (1, 63), (1, 64), (5, 13), (2, 64), (4, 50)):
        for config in CONFIGS:
            problem = Streamed(batch, length, width, vocab_size, temperature=temperature, config=config)
            check_values(problem, torch.device("cuda"), "")


@needs_module
@needs_gpu
@pytest.mark.parametrize("config", CONFIGS, ids=["few", "many"])
def test_tokens_are_those_of_pytorch(config):
    """With the same noise, in float64 there: `rounding` is how far a matrix unit's sums are from float64, not from others."""
    problem = Streamed(2, 64, 2048, 50257, temperature=0.7, config=config)
    hidden, _, *rest = problem.tensors()
    expected, logprob = lm_head(hidden.double(), problem.weight.cuda().double(), *rest, True, False, "torch")
    tokens, streamed = lm_head_skinny(*problem.tensors(), True)
    same = tokens == expected
    assert same.float().mean() > 0.99
    torch.testing.assert_close(streamed[same], logprob[same], rtol=0, atol=problem.rounding())


def check_special(problem_of) -> None:
    """Ties, infinities and NaN in several tiles; `problem_of(column)` runs the op on one column of logits."""
    vocab_size = 1009
    weight = torch.zeros(vocab_size, 7)
    weight[[5, 64, 200, 1008], 0] = 3
    weight[:, 1] = -INF
    weight[:, 2] = -INF
    weight[[200, 299], 2] = -2
    weight[[130, 600], 3] = INF
    weight[[140, 750], 4] = NAN
    weight[200, 4] = INF
    weight[:, 5] = torch.linspace(-60000, 50000, vocab_size)
    weight[1008, 5] = 60000
    for column, token in enumerate([5, 0, 200, 130, 140, 1008, 0]):
        tokens, logprobs = problem_of(weight[:, column].bfloat16())
        assert (tokens == token).all(), column
        if column in (1, 3, 4):
            assert logprobs.isnan().all(), column
        else:
            expected = (weight[:, column].bfloat16().double() + 0.5).log_softmax(0)[token].item()
            torch.testing.assert_close(
                logprobs.double().cpu(), torch.full(logprobs.shape, expected).double(), rtol=3e-7, atol=3e-7
            )


@needs_module
@needs_gpu
@pytest.mark.parametrize("temperature", [0.0, 1e-30])
@pytest.mark.parametrize("config", CONFIGS, ids=["few", "many"])
def test_special_values(config, temperature):
    def run(column: Tensor):
        weight = torch.zeros(len(column), 64, dtype=BFLOAT)
        weight[:, 0] = column
        hidden = torch.zeros(1, 65, 64, dtype=BFLOAT, device="cuda")
        hidden[..., 0] = 1
        scalars = (torch.tensor(value, device="cuda") for value in (temperature, 3, 4))
        bias = torch.full((len(column),), 0.5, device="cuda")
        return lm_head_skinny(hidden, pack(weight.cuda(), config), bias, *scalars, True)

    check_special(run)


@needs_module
@needs_gpu
@pytest.mark.parametrize("config", CONFIGS, ids=["few", "many"])
def test_a_sample_does_not_depend_on_its_batch(config):
    batch = Streamed(7, 50, 768, 50257, temperature=0.7, config=config)
    tokens, logprobs = batch.run(torch.device("cuda"))
    again, logprobs_again = batch.run(torch.device("cuda"))
    assert torch.equal(tokens, again) and torch.equal(logprobs, logprobs_again)
    for first, last in ((0, 1), (5, 6), (2, 5)):
        part = dataclasses.replace(batch, batch=last - first, first_sample=HUGE_SAMPLE + first)
        part.hidden, part.weight, part.bias = batch.hidden[first:last].clone(), batch.weight, batch.bias
        got, got_logprobs = part.run(torch.device("cuda"))
        assert torch.equal(got, tokens[first:last]) and torch.equal(got_logprobs, logprobs[first:last])


@needs_module
@needs_gpu
def test_scalars_are_read_anew_by_a_graph():
    hidden, weight, bias, temperature, seed, sample = Streamed(1, 64, 768, 50257, temperature=0.7).tensors()
    lm_head_skinny(hidden, weight, bias, temperature, seed, sample, True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens, logprobs = lm_head_skinny(hidden, weight, bias, temperature, seed, sample, True)
    for values in ((0.7, 5, 0), (0.0, 5, 0), (0.7, 6, 1), (0.7, 5, 0)):
        for scalar, value in zip((temperature, seed, sample), values, strict=True):
            scalar.fill_(value)
        hidden.mul_(1.01)
        for _ in range(20):
            graph.replay()
            expected = lm_head_skinny(hidden, weight, bias, temperature, seed, sample, True)
            assert torch.equal(tokens, expected[0]) and torch.equal(logprobs, expected[1])


@needs_module
@needs_gpu
def test_is_a_sound_custom_op():
    hidden, weight, *rest = Streamed(2, 3, 64, 67, temperature=0.7).tensors()
    arguments = (list(dataclasses.astuple(FEW_ROWS)), hidden, weight.data, *rest, 67)
    for logprobs in (False, True):
        torch.library.opcheck(torch.ops.dllm_kernels.lm_head_skinny.default, (*arguments, logprobs))


@needs_module
@needs_gpu
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(
    "dtypes", [(BFLOAT, None), (torch.float16, None), (torch.float32, None), (torch.float32, BFLOAT)], ids=str
)
def test_values_in_chunks(monkeypatch, dtypes, temperature):
    # For halves a library multiplies a last chunk that is not a multiple of 8 by another kernel, with sums of another kind.
    multiple = 1 if dtypes[0] == torch.float32 else 8
    for chunk, shape in ((32768, (5, 64, 768, 50257)), (512, (3, 65, 64, 1009)), (64, (1, 1, 8, 67)), (4, (1, 2, 8, 3))):
        shape = (*shape[:3], -(-shape[3] // multiple) * multiple)
        monkeypatch.setattr(library, "_CUDA_CHUNK", chunk)
        check_values(Problem(*shape, *dtypes, temperature=temperature), torch.device("cuda"), "cuda")


@needs_module
@needs_gpu
def test_chunks_keep_to_their_memory(monkeypatch):
    monkeypatch.setattr(library, "_CUDA_LOGITS", 2**20)
    arguments = (t.cuda() for t in (torch.zeros(8, 64, 64).bfloat16(), torch.zeros(50257, 64).bfloat16(), torch.zeros(50257)))
    scalars = (torch.tensor(value, device="cuda") for value in (0.0, 1, 2))
    arguments = (*arguments, *scalars)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    lm_head(*arguments, backend="cuda")
    assert torch.cuda.max_memory_allocated() - before < 1.1 * 4 * 2**20


@needs_module
@needs_gpu
def test_what_holds_for_every_backend_holds_in_chunks(monkeypatch):
    monkeypatch.setattr(library, "_CUDA_CHUNK", 64)
    device = torch.device("cuda")
    for dtype in (torch.float32, BFLOAT):
        check_special_values(device, "cuda", dtype)
        check_batch_invariance(device, "cuda", dtype)
    check_scalars(device, "cuda")
    check_frequencies(device, "cuda", batch=64)


@needs_module
@needs_gpu
def test_large_logprobs_keep_the_contract():
    """The case it is made for, against float64 in pieces."""
    problem = Streamed(1, 64, 2048, 248320)
    tokens, logprobs = problem.run(torch.device("cuda"))
    hidden, weight, bias = problem.hidden.cuda(), problem.weight.cuda(), problem.bias.cuda()
    exact = torch.cat([hidden[0].double() @ w.double().T for w in weight.split(16384)], 1) + bias.double()
    at = tokens.cuda()[0].unsqueeze(1)
    baseline = (torch.mm(hidden[0], weight.T, out_dtype=torch.float32) + bias).log_softmax(-1)
    assert_contract(logprobs[0].unsqueeze(1), exact.log_softmax(-1).gather(1, at), baseline.gather(1, at))
    assert (exact.max(-1).values - exact.gather(1, at)[:, 0]).max() < 1e-3
