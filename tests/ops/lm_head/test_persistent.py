"""The CUDA lm_head in tiles: when it is taken, its machine code, and on a Hopper card its values."""

import re

import pytest
import torch
from torch import Tensor

from dllm_kernels.ops.lm_head import persistent
from dllm_kernels.ops.lm_head.op import lm_head
from dllm_kernels.ops.lm_head.persistent import lm_head_persistent, parts, supports
from tests.numerics import assert_contract
from tests.ops.lm_head.test_cuda import BFLOAT, check_special, compiled
from tests.ops.lm_head.test_op import Problem, check_values
from tests.ops.test_extension import defects, needs_gpu, needs_module, needs_nvcc


@pytest.fixture
def card(monkeypatch):
    """A card that can run it."""
    monkeypatch.setattr(persistent, "unsupported_reason", lambda device: None)


@pytest.fixture
def hopper():
    if persistent.unsupported_reason(torch.device("cuda")) is not None:
        pytest.skip(f"not run: {persistent.unsupported_reason(torch.device('cuda'))}")
    return torch.device("cuda")


def taken(rows: int = 128, vocab_size: int = 1000, width: int = 256, dtype=BFLOAT, bias_dtype=torch.float32) -> bool:
    hidden, weight = torch.zeros(1, rows, width, dtype=dtype), torch.zeros(vocab_size, width, dtype=dtype)
    return supports(hidden, weight, torch.zeros(vocab_size, dtype=bias_dtype))


def test_it_is_taken_for_many_rows_of_what_it_has_code_for(card):
    assert taken() and taken(rows=65) and taken(vocab_size=4) and taken(width=2048)
    assert not taken(rows=64) and not taken(vocab_size=1002) and not taken(width=192) and not taken(width=288)
    assert not taken(dtype=torch.float32) and not taken(dtype=torch.float16) and not taken(bias_dtype=BFLOAT)


def test_a_bias_that_no_bulk_copy_reads_is_not_taken(card):
    hidden, weight, bias = torch.zeros(1, 128, 256, dtype=BFLOAT), torch.zeros(1000, 256, dtype=BFLOAT), torch.zeros(1001)
    assert supports(hidden, weight, bias[:-1]) and not supports(hidden, weight, bias[1:])


def test_it_is_not_taken_elsewhere():
    assert not taken()


def test_parts_fill_the_card():
    # Rows of one tile, two, thirty-two, more than there are SMs; a vocabulary of fewer tiles than SMs.
    assert [parts(132, rows, 248320) for rows in (65, 128, 129, 4096, 132 * 128, 20000)] == [132, 132, 66, 4, 1, 1]
    assert parts(132, 128, 1000) == 4 and parts(132, 128, 4) == 1


def test_auto_goes_there_and_no_other(monkeypatch):
    """With or without log-probabilities; a batch-invariant call would differ with the number of parts."""
    calls = []

    def stand_in(hidden, weight, bias, temperature, seed, first_sample, logprobs):
        calls.append(logprobs)
        tokens = torch.full(hidden.shape[:2], 7)
        return tokens, torch.full(hidden.shape[:2], -1.0) if logprobs else torch.empty(0)

    monkeypatch.setattr(persistent, "supports", lambda *_: True)
    monkeypatch.setattr(persistent, "lm_head_persistent", stand_in)
    scalars = torch.tensor(0.0), torch.tensor(1), torch.tensor(2)
    arguments = torch.randn(2, 65, 256).bfloat16(), torch.randn(8, 256).bfloat16(), torch.zeros(8), *scalars
    tokens, logprobs = lm_head(*arguments, True)
    assert (tokens == 7).all() and (logprobs == -1).all()
    tokens, logprobs = lm_head(*arguments)
    assert (tokens == 7).all() and logprobs is None and calls == [True, False]
    expected, _ = lm_head(*arguments, backend="torch")
    invariant, _ = lm_head(*arguments, batch_invariant=True)
    assert torch.equal(invariant, expected) and len(calls) == 2


@needs_nvcc
def test_machine_code(tmp_path):
    kernels = compiled("lm_head_persistent", "sm_90a", tmp_path)
    # With and without log-probabilities; the merge.
    assert len(kernels) == 3
    for key, (usage, sass) in kernels.items():
        assert defects(usage, sass) == [], key
        # Temperature and parts may have been written by the kernel before.
        assert not re.search(r"\bLDG\S*\.CONSTANT\b", sass), key
        assert not re.search(r"\b(LDG|STG)", sass.split("ACQBULK")[0]), key
        if "merge" not in key[1]:
            # Nine warps share the registers of an SM's four quarters.
            assert usage["REG"] <= 168, key
            assert "HGMMA.64x256x16.F32.BF16" in sass and "UTMALDG.2D" in sass and "UBLKCP" in sass, key


@needs_nvcc
def test_nothing_is_left_of_it_for_other_cards(tmp_path):
    for key, (_, sass) in compiled("lm_head_persistent", "sm_120a", tmp_path).items():
        assert "merge" in key[1] or not re.search(r"\b(HMMA|UTMALDG|STG|LDS)", sass), key


class Tiled(Problem):
    """A problem of the kernel's dtype, run by it whatever the number of rows."""

    def run(self, device: torch.device, backend: str = "", logprobs: bool = True, batch_invariant: bool = False):
        tokens, logprob = lm_head_persistent(*self.tensors(), logprobs)
        return tokens.cpu(), logprob.cpu() if logprobs else None

    def tensors(self) -> tuple[Tensor, ...]:
        scalars = (torch.tensor(value, device="cuda") for value in (float(self.temperature), self.seed, self.first_sample))
        return self.hidden.cuda(), self.weight.cuda(), self.bias.cuda(), *scalars


@needs_module
@needs_gpu
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("width", [256, 832, 2048])
@pytest.mark.parametrize("vocab_size", [8, 1000, 1012, 50260])
def test_values(hopper, vocab_size, width, temperature):
    for batch, length in ((1, 1), (1, 63), (5, 13), (2, 64), (9, 50)):
        check_values(Tiled(batch, length, width, vocab_size, BFLOAT, temperature=temperature), hopper, "")


@needs_module
@needs_gpu
def test_values_of_many_rows(hopper):
    """More tiles of rows than SMs; tokens are PyTorch's with the same noise, but for logits that differ in rounding only."""
    problem = Tiled(270, 64, 256, 1028, BFLOAT, temperature=0.7)
    tensors = problem.tensors()
    expected, logprob = lm_head(*tensors, True, False, "torch")
    tokens, ours = lm_head_persistent(*tensors, True)
    same = tokens == expected
    assert same.float().mean() > 0.99
    torch.testing.assert_close(ours[same], logprob[same], rtol=0, atol=problem.rounding())


@needs_module
@needs_gpu
@pytest.mark.parametrize("temperature", [0.0, 1e-30])
def test_special_values(hopper, temperature):
    def run(column: Tensor):
        # 1,009 entries, and 3 that never win.
        weight = torch.zeros(1012, 256, dtype=BFLOAT)
        weight[:, 0] = torch.cat((column, column.new_full((3,), -float("inf"))))
        hidden = torch.zeros(1, 65, 256, dtype=BFLOAT, device="cuda")
        hidden[..., 0] = 1
        scalars = (torch.tensor(value, device="cuda") for value in (temperature, 3, 4))
        return lm_head_persistent(hidden, weight.cuda(), torch.full((1012,), 0.5, device="cuda"), *scalars, True)

    check_special(run)


@needs_module
@needs_gpu
def test_a_hundred_replays_of_a_graph_are_equal_and_read_scalars_anew(hopper):
    hidden, weight, bias, temperature, seed, sample = Tiled(3, 64, 768, 50260, BFLOAT, temperature=0.7).tensors()
    lm_head_persistent(hidden, weight, bias, temperature, seed, sample, True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens, logprobs = lm_head(hidden, weight, bias, temperature, seed, sample, True)
    found = []
    for values in ((0.7, 5, 0), (0.0, 5, 0), (0.7, 6, 1), (0.7, 5, 0)):
        for scalar, value in zip((temperature, seed, sample), values, strict=True):
            scalar.fill_(value)
        expected = lm_head_persistent(hidden, weight, bias, temperature, seed, sample, True)
        for _ in range(25):
            graph.replay()
            assert torch.equal(tokens, expected[0]) and torch.equal(logprobs, expected[1])
        found.append(tokens.clone())
    assert torch.equal(found[0], found[3]) and not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@needs_module
@needs_gpu
def test_large_logprobs_keep_the_contract(hopper):
    """The case it is made for, against float64 in pieces."""
    problem = Tiled(3, 64, 2048, 248320, BFLOAT)
    tokens, logprobs = problem.run(hopper)
    hidden, weight, bias = (t.cuda() for t in (problem.hidden, problem.weight, problem.bias))
    rows = hidden.flatten(0, 1)
    exact = torch.cat([rows.double() @ w.double().T for w in weight.split(16384)], 1) + bias.double()
    at = tokens.cuda().view(-1, 1)
    baseline = (torch.mm(rows, weight.T, out_dtype=torch.float32) + bias).log_softmax(-1)
    assert_contract(logprobs.view(-1, 1), exact.log_softmax(-1).gather(1, at), baseline.gather(1, at))
    assert (exact.max(-1).values - exact.gather(1, at)[:, 0]).max() < 1e-3
