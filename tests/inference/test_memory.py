"""What a plan may allocate, measured on over 1 GB of packed weights, and how its parts come and go."""

import subprocess
import sys
import weakref

import pytest
import torch

from dllm_kernels import FusedSampler, LDLMConfig
from dllm_kernels.inference.sampler import PLAN_OVERHEAD
from dllm_kernels.inference.weights import RandomModel, StoredModel
from tests.models import randomized

MEASURE = """
import re, torch
from dllm_kernels import LDLM, FusedSampler, LDLMConfig
from dllm_kernels.model.config import open_dllm_config
from dllm_kernels.ops.linear.params import Activations

def kilobytes(field):
    return int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

torch.set_default_dtype(torch.bfloat16)
model = LDLM(open_dllm_config(1280, 248_320)).eval()
torch.set_default_dtype(torch.float32)
# What libraries import and allocate at their first use is not the plan's.
FusedSampler(LDLM(LDLMConfig.preset("tiny")), device="cpu")()
open("/proc/self/clear_refs", "w").write("5")
before = kilobytes("VmRSS")
sampler = FusedSampler(model, num_steps=50, device="cpu")
packed = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("latent_encoder")) * 2
for step in (0, 49):
    sampler.plan.denoise(step, Activations(torch.zeros(1, 64, 1280)), None)
hidden = sampler.plan.decode(torch.zeros(1, 64, 1280))
print(packed, (kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak resident set from Linux's /proc")
def test_a_plan_beside_a_live_model_on_a_cpu():
    """N = 50, B = 1, T = 64: the peak resident set grows by at most 1.15 times the packed weights, which exceed 1 GB."""
    result = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    packed, grown = map(int, result.stdout.split())
    assert packed > 1e9
    assert grown <= PLAN_OVERHEAD * packed, f"{grown / packed:.3f} times the packed weights"
    assert grown >= 0.8 * packed, "the measurement missed the plan"


def test_parts_are_let_go_before_the_next_is_asked_for(tmp_path):
    randomized(LDLMConfig.preset("tiny", vocab_size=101)).save_pretrained(tmp_path)
    stored, alive, most = StoredModel(tmp_path), [], []

    class Watched:
        config = stored.config

        def __call__(self, name):
            most.append([other for other, part in alive if part() is not None])
            module = stored(name)
            # Packing takes a part's tensors over, so a tensor shows how long it holds them.
            alive.append((name, weakref.ref(next(iter(module.state_dict(keep_vars=True).values())))))
            return module

        def watch(self):
            return lambda: None

    FusedSampler(Watched(), num_steps=1, device="cpu")
    assert [name for name, _ in alive] == ["statistics", "denoiser", "latent_decoder", "token_decoder", "lm_head"]
    assert most[1:4] == [["statistics"], ["statistics"], ["statistics"]]
    assert all(part() is None for name, part in alive)


def test_the_batch_counts():
    source = RandomModel(LDLMConfig.preset("tiny"))
    with pytest.raises(MemoryError, match=r"the plan needs about 147\d{3}\.\d GB on cpu"):
        FusedSampler(source, 1, 10**9, device="cpu", dtype=torch.float32)


def test_too_little_memory_is_said_before_anything_is_allocated(monkeypatch):
    monkeypatch.setattr("dllm_kernels.inference.sampler.free_memory", lambda device: 10**9)
    config = LDLMConfig.preset("open-dllm-27b")

    def never(name):
        raise AssertionError(f"{name} was built")

    source = RandomModel(config)
    monkeypatch.setattr(RandomModel, "__call__", lambda self, name: never(name))
    with pytest.raises(MemoryError, match=r"the plan needs about 11\.\d GB on cpu and 1\.0 GB are free"):
        FusedSampler(source, device="cpu", dtype=torch.bfloat16)
