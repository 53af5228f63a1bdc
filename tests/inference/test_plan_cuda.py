"""A plan whose layers are streamed, on a CPU: PyTorch stands in for the CUDA kernel, so that what the plan passes from layer to
layer (packed weights, row statistics, adaLN's scaled rows, residuals) is held against the model."""

import dataclasses

import pytest
import torch

import dllm_kernels.inference.plan as plan_module
from dllm_kernels import FusedSampler, LDLMConfig
from dllm_kernels.inference.fold import FoldedLinear, Numerics
from dllm_kernels.inference.plan import Plan
from dllm_kernels.inference.weights import LiveModel
from dllm_kernels.model.config import open_dllm_config
from dllm_kernels.ops.linear import skinny as linear_skinny_file
from dllm_kernels.ops.linear.config import SKINNY_TILES, GemmConfig
from dllm_kernels.ops.linear.packing import PackedWeight
from dllm_kernels.ops.lm_head import skinny as lm_head_skinny_file
from tests.models import randomized
from tests.numerics import assert_contract

CPU = torch.device("cpu")
TIMES = torch.tensor([1.0, 0.6, 0.3], dtype=torch.float64)
CONFIGS = {
    "ldlm": LDLMConfig.preset("tiny", seq_len=13, dim=128, hidden_dim=192, latent_dim=96, vocab_size=101, num_heads=4),
    "open-dllm": open_dllm_config(128, 101, 16, perceiver_layers=2, denoiser_layers=2),
    "open-dllm with proj_in": open_dllm_config(128, 101, 16, proj_in=True, perceiver_layers=2, denoiser_layers=2),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_invariant_plan_streams_the_same_in_every_batch(name, monkeypatch):
    """What streams, and how it is cut, is that of one sample; only the call's rows differ."""
    for module in (linear_skinny_file, lm_head_skinny_file):
        monkeypatch.setattr(module, "cuda_unsupported_reason", lambda device: None)
    config, cuts = CONFIGS[name], []
    for batch in (1, 8):
        numerics = Numerics(torch.bfloat16, torch.bfloat16, torch.float32, CPU)
        options = {"context_len": 3 * config.context, "guidance": config.context, "batch_invariant": True}
        plan = Plan(config, LiveModel(randomized(config)), TIMES, config.seq_len, batch, numerics=numerics, **options)
        layers = [getattr(layer, part.name) for layer in plan.denoiser_layers for part in dataclasses.fields(layer)]
        folded = [layer for layer in layers if isinstance(layer, FoldedLinear)] + [plan.latent_key_value, plan.token_key_value]
        cuts.append([layer.weight.config for layer in folded] + [plan.lm_head_weight.config])
    assert cuts[0] == cuts[1] and len(cuts[0]) > 5


class Half:
    """The dtypes of a plan on a card, on a CPU."""

    @staticmethod
    def of(dtype, device):
        return Numerics(torch.bfloat16, torch.bfloat16, torch.float32, device)


@pytest.mark.parametrize("seq_len", [None, 7])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_loop_passes_statistics_from_step_to_step(name, seq_len, streaming, monkeypatch):
    config = CONFIGS[name]
    options = {"num_steps": 4, "batch_size": 2, "seq_len": seq_len, "solver": "ddpm", "device": "cpu", "logprobs": True}
    options |= {"context_len": 5, "guidance": True} if config.context else {}
    call = {"seed": 3}
    if config.context:
        hidden = torch.randn(2, 4, config.hidden_dim, generator=torch.Generator().manual_seed(0))
        call |= {"context": hidden, "guidance_scale": 2.0}
    with monkeypatch.context() as plain:
        plain.setattr(plan_module, "select_config", lambda *_: None)
        plain.setattr(plan_module, "select_lm_head_config", lambda *_: None)
        expected = FusedSampler(randomized(config), **options, dtype=torch.float32)(**call)
    monkeypatch.setattr(plan_module, "select_lm_head_config", lambda *_: lm_head_skinny_file.FEW_ROWS)
    monkeypatch.setattr("dllm_kernels.inference.sampler.Numerics", Half)
    out = FusedSampler(randomized(config), **options)(**call)
    assert (out.latents - expected.latents).norm() < 0.02 * expected.latents.norm()
    assert (out.tokens == expected.tokens).float().mean() > 0.9
    same = out.tokens == expected.tokens
    assert (out.logprobs - expected.logprobs)[same].abs().max() < 0.3


@pytest.fixture
def streaming(monkeypatch):
    """Lets every layer be streamed, each in another cut."""
    count = iter(range(10**6))

    def cut(*_):
        i = next(count)
        return GemmConfig(*SKINNY_TILES[i % len(SKINNY_TILES)], 1 + i % 3, 2)

    monkeypatch.setattr(plan_module, "select_config", cut)


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
