"""Triton's lm_head: every tile against float64, special values, noise, batch invariance, a captured graph."""

import pytest
import torch

from dllm_kernels.ops.lm_head import triton as kernels
from dllm_kernels.ops.lm_head.op import lm_head
from tests.ops.lm_head.test_op import (
    Problem,
    check_batch_invariance,
    check_frequencies,
    check_scalars,
    check_special_values,
    check_values,
    scalar,
)

FLOAT, BFLOAT, HALF = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("shape", "dtypes", "temperature"),
    [
        ((1, 1, 1, 1), (FLOAT,), 0.7),
        ((1, 1, 384, 509), (BFLOAT,), 0.0),
        ((2, 10, 65, 130), (HALF,), 0.7),
        ((3, 21, 64, 2), (BFLOAT,), 0.0),
        ((1, 63, 65, 509), (BFLOAT,), 0.7),
        ((1, 64, 384, 65), (BFLOAT,), 0.7),
        ((1, 16, 1, 509), (FLOAT,), 0.7),
        ((13, 5, 65, 63), (FLOAT,), 0.0),
        ((13, 5, 1, 65), (HALF,), 0.0),
        ((2, 65, 64, 63), (BFLOAT,), 0.7),
        ((1, 130, 65, 65), (FLOAT, BFLOAT), 0.7),
        ((1, 3, 64, 4099), (BFLOAT,), 0.7),
        # Through descriptors: a tile's edge in rows, in the vocabulary and in the sum; several groups of rows.
        ((1, 129, 72, 509), (BFLOAT,), 0.7),
        ((2, 129, 8, 257), (HALF,), 0.0),
        ((35, 64, 64, 300), (BFLOAT,), 0.0),
    ],
    ids=str,
)
def test_values(device, shape, dtypes, temperature):
    check_values(Problem(*shape, *dtypes, temperature=temperature), device, "triton")


# The interpreter computes with NumPy, which warns of every NaN.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT])
def test_special_values(monkeypatch, device, dtype):
    monkeypatch.setattr(kernels, "_REDUCE_BLOCK", 2)
    check_special_values(device, "triton", dtype)


def test_reduction_in_several_blocks(monkeypatch, device):
    monkeypatch.setattr(kernels, "_REDUCE_BLOCK", 2)
    check_values(Problem(1, 5, 8, 509, temperature=0.7), device, "triton")


def test_frequencies(device):
    check_frequencies(device, "triton", batch=8)


def test_scalars(device):
    check_scalars(device, "triton")


@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT])
def test_batch_invariance(device, dtype):
    check_batch_invariance(device, "triton", dtype)


def test_batch_invariant_values(device):
    assert kernels._tile(1, BFLOAT, True) == kernels._tile(4096, BFLOAT, True)
    assert kernels._tile(1, FLOAT, True) == kernels._tile(4096, FLOAT, True)
    problem = Problem(3, 22, 65, 67, BFLOAT, temperature=0.7)
    tokens, logprobs = problem.run(device, "triton", batch_invariant=True)
    expected, expected_logprobs = problem.run(device, "torch")
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(logprobs, expected_logprobs, rtol=1e-5, atol=1e-5)


def test_float64_is_served_by_torch_alone(device):
    problem = Problem(1, 2, 3, 5, torch.float64)
    with pytest.raises(ValueError, match="computes in float32, and hidden is float64"):
        problem.run(device, "triton")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_captured_graph_reads_new_scalars(device):
    problem = Problem(2, 32, 64, 4099, BFLOAT)
    tensors = [t.to(device) for t in (problem.hidden, problem.weight, problem.bias)]
    temperature, seed, first_sample = scalar(0.0, device), scalar(1, device), scalar(0, device)
    lm_head(*tensors, temperature, seed, first_sample, True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens, logprobs = lm_head(*tensors, temperature, seed, first_sample, True)
    seen = set()
    for t, s, f in ((0.0, 1, 0), (1.0, 1, 0), (1.0, 2, 0), (1.0, 2, 2**40)):
        temperature.fill_(t), seed.fill_(s), first_sample.fill_(f)
        graph.replay()
        expected, expected_logprobs = lm_head(*tensors, scalar(t, device), scalar(s, device), scalar(f, device), True)
        assert torch.equal(tokens, expected)
        assert torch.equal(logprobs, expected_logprobs)
        seen.add(tuple(tokens.flatten().tolist()))
    assert len(seen) == 4
