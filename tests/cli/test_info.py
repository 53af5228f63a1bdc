"""The command `info`."""

import pytest
import torch

from dllm_kernels import __version__
from dllm_kernels.ops.dispatch import explain
from tests.cli.command import read, run

CPU = torch.device("cpu")


def test_json():
    found = read("info", "--device", "cpu")
    assert [(row["op"], row["backend"], row["why"]) for row in found["ops"]] == explain(CPU)
    assert {row["op"] for row in found["ops"]} >= {"attention", "denoise_update", "linear", "lm_head", "modulate"}
    assert found["dllm_kernels"] == __version__ and found["torch"] == torch.__version__
    assert found["capability"] is None and found["memory_bytes"] > 10**8
    assert bool(found["cuda_kernels"]) == (found["cuda_kernels_unsupported_reason"] is None)


@pytest.mark.parametrize("built", [("sm_90a", "sm_120a"), None])
def test_the_compiled_kernels(monkeypatch, built):
    def architectures():
        if built is None:
            raise RuntimeError("installed without its CUDA kernels")
        return built

    monkeypatch.setattr("dllm_kernels.ops.extension.architectures", architectures)
    found, text = read("info", "--device", "cpu"), run("info", "--device", "cpu").stdout
    assert found["cuda_kernels"] == list(built or ())
    assert f"CUDA kernels: {'sm_90a, sm_120a' if built else 'installed without its CUDA kernels'}" in text


def test_table():
    out = run("info", "--device", "cpu").stdout
    assert f"torch {torch.__version__}" in out
    for op, backend, _ in explain(CPU):
        assert any(op in line and backend in line for line in out.splitlines())
