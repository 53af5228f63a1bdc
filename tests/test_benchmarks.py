"""benchmarks/kernels.py, as far as it goes without a card."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dllm_kernels.config import open_dllm_config
from tests.models import randomized

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "kernels.py"


@pytest.fixture(scope="module")
def kernels():
    spec = importlib.util.spec_from_file_location("kernels", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_spread_is_the_middle_and_both_fifths(kernels):
    assert kernels.spread([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == [2.0, 3.5, 5.0]


def test_the_loop_beside_ours_is_a_generation_through_the_model(kernels, monkeypatch):
    monkeypatch.setattr(kernels, "CARD", torch.device("cpu"))
    model = randomized(open_dllm_config(64, 101, 16, perceiver_layers=2, denoiser_layers=2), torch.bfloat16)
    torch.manual_seed(0)
    with torch.no_grad():
        run = kernels.eager_loop(model, 2, 3)
        tokens = run()
        torch.manual_seed(0)
        z = torch.randn(2, 16, 64).bfloat16()
        for t in (1.0, 2 / 3, 1 / 3):
            z = 0.9 * z + 0.1 * model.denoise(z, torch.full((2,), t).bfloat16())
        assert torch.equal(tokens, model.logits(model.decode(z)).argmax(-1))
        assert torch.equal(run(), tokens)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a card it runs")
def test_it_says_how_it_is_used():
    done = subprocess.run([sys.executable, SCRIPT, "x.json"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("usage: kernels.py OUTPUT.json [linear attention lm_head")
