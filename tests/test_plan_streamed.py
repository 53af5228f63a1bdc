"""A plan whose layers are streamed, on a CPU: PyTorch stands in for the CUDA kernel, so that what the plan passes from layer to
layer (packed weights, row statistics, adaLN's scaled rows, residuals) is held against the model."""

import pytest
import torch

import dllm_kernels.plan as plan_module
from dllm_kernels import LDLMConfig
from dllm_kernels.config import open_dllm_config
from dllm_kernels.fold import Numerics
from dllm_kernels.kernels.stream import TILES, StreamConfig
from dllm_kernels.ops.stream_linear import PackedWeight
from dllm_kernels.plan import Plan
from dllm_kernels.sources import LiveModel
from tests.models import randomized
from tests.numerics import assert_contract

CPU = torch.device("cpu")
TIMES = torch.tensor([1.0, 0.6, 0.3], dtype=torch.float64)
CONFIGS = {
    "ldlm": LDLMConfig.preset("tiny", seq_len=13, dim=128, hidden_dim=192, latent_dim=96, vocab_size=101, num_heads=4),
    "open-dllm": open_dllm_config(128, 101, 16, perceiver_layers=2, denoiser_layers=2),
    "open-dllm with proj_in": open_dllm_config(128, 101, 16, proj_in=True, perceiver_layers=2, denoiser_layers=2),
}


@pytest.fixture
def streaming(monkeypatch):
    """Lets every layer be streamed, each in another cut."""
    count = iter(range(10**6))

    def cut(*_):
        i = next(count)
        return StreamConfig(TILES[i % len(TILES)], 1 + i % 3, 2)

    monkeypatch.setattr(plan_module, "cut_for", cut)


def make(config, context_len=0, guidance=False):
    numerics = Numerics(torch.bfloat16, torch.bfloat16, torch.float32, CPU)
    return Plan(config, LiveModel(randomized(config)), TIMES, config.seq_len, 2, context_len, guidance, numerics)


def output(plan, x):
    """The prediction, with the norm that denoise_update applies where there is one."""
    if plan.out_scale is None:
        return x
    return torch.nn.functional.layer_norm(x.float(), x.shape[-1:]) * (1 + plan.out_scale) + plan.out_shift


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_streamed_plan_is_the_model(name, streaming):
    config = CONFIGS[name]
    plan = make(config)
    assert all(isinstance(layer.up.weight, PackedWeight) for layer in plan.denoiser_layers + plan.latent_layers)
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, config.seq_len, config.latent_dim, generator=generator) + 0.3
    exact, half = randomized(config, torch.float64), randomized(config, torch.bfloat16)
    inputs = plan.first_input(latents)
    for step, time in ((0, TIMES[0]), (1, TIMES[1])):
        previous = None if step == 0 else latents.roll(1, 0)
        if step and config.self_conditioning:
            inputs.x.copy_(torch.cat((latents, previous), dim=-1))
        elif step:
            inputs.x.copy_(latents + plan.next_shift(step - 1))
            inputs.statistics.copy_(plan_module.row_statistics(inputs.x))

        def predict(model, dtype, time=time, previous=previous):
            times = time.to(dtype).expand(2)
            return model.denoise(latents.to(dtype), times, None if previous is None else previous.to(dtype))

        result = output(plan, plan.denoise(step, inputs, None))
        assert_contract(result.bfloat16(), predict(exact, torch.float64), predict(half, torch.bfloat16))


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_streamed_decoder_is_the_model(name, streaming):
    config = CONFIGS[name]
    latents = torch.randn(2, config.seq_len, config.latent_dim, generator=torch.Generator().manual_seed(4)) + 0.3
    plan = make(config)
    logits = plan.decode(latents).double() @ plan.lm_head_weight.double().T + plan.lm_head_bias.double()

    def reference(dtype):
        model = randomized(config, dtype)
        return model.logits(model.decode(latents.to(dtype)))

    assert_contract(logits.bfloat16(), reference(torch.float64), reference(torch.bfloat16))


@pytest.mark.parametrize("guidance", [False, True])
@torch.no_grad()
def test_a_streamed_plan_reads_a_prompt(guidance, streaming):
    config = CONFIGS["ldlm"]
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(2, config.seq_len, config.latent_dim, generator=generator)
    hidden = torch.randn(2, 6, config.hidden_dim, generator=generator) + 0.4
    mask = torch.arange(6) < torch.tensor([[4], [6]])
    plan = make(config, context_len=6, guidance=guidance)
    context = plan.context(hidden.bfloat16(), mask, torch.tensor(True), guidance)
    result = plan.denoise(0, plan.first_input(latents), context)

    def predict(dtype):
        model, times = randomized(config, dtype), TIMES[0].to(dtype).expand(2)
        prompted = model.denoise(latents.to(dtype), times, None, hidden.to(dtype), mask)
        return torch.cat((prompted, model.denoise(latents.to(dtype), times, None))) if guidance else prompted

    assert_contract(result, predict(torch.float64), predict(torch.bfloat16))
