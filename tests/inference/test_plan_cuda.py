"""A plan whose layers are packed for the CUDA kernels, on a CPU, where PyTorch stands in for the kernels.

What it passes from layer to layer is held against the model: packed weights, row statistics, adaLN's scaled rows, residuals.
"""

import pytest
import torch

import dllm_kernels.inference.pack as pack_module
from dllm_kernels import FusedSampler
from dllm_kernels.inference.fold import Numerics
from dllm_kernels.inference.plan import Plan
from dllm_kernels.ops.kernels import TILES
from dllm_kernels.ops.linear.config import GemmConfig
from dllm_kernels.ops.linear.skinny import row_statistics
from dllm_kernels.ops.lm_head.skinny import FEW_ROWS
from tests.inference.packed import CARD, CONFIGS, TIMES, pack
from tests.models import randomized
from tests.numerics import assert_contract


@pytest.mark.parametrize("seq_len", [None, 7])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_loop_passes_statistics_from_step_to_step(name, seq_len, packing, monkeypatch):
    config = CONFIGS[name]
    options = {"num_steps": 4, "batch_size": 2, "seq_len": seq_len, "solver": "ddpm", "device": "cpu", "logprobs": True}
    options |= {"context_len": 5, "guidance": True} if config.context else {}
    call = {"seed": 3}
    if config.context:
        hidden = torch.randn(2, 4, config.hidden_dim, generator=torch.Generator().manual_seed(0))
        call |= {"context": hidden, "guidance_scale": 2.0}
    with monkeypatch.context() as plain:
        plain.setattr(pack_module, "select_config", lambda *_: None)
        plain.setattr(pack_module, "select_lm_head_config", lambda *_: None)
        expected = FusedSampler(randomized(config), **options, dtype=torch.float32)(**call)
    monkeypatch.setattr(pack_module, "select_lm_head_config", lambda *_: FEW_ROWS)
    monkeypatch.setattr(Numerics, "of", lambda dtype, device: CARD)
    out = FusedSampler(randomized(config), **options)(**call)
    assert (out.latents - expected.latents).norm() < 0.02 * expected.latents.norm()
    assert (out.tokens == expected.tokens).float().mean() > 0.9
    same = out.tokens == expected.tokens
    assert (out.logprobs - expected.logprobs)[same].abs().max() < 0.3


@pytest.fixture
def packing(monkeypatch):
    """Has every layer packed, each with another configuration."""
    count = iter(range(10**6))

    def select(rows, outputs, width, *_):
        tiles = [t for t in TILES["linear_skinny"] if not t.wgmma and t.split_k <= -(-width // t.tile_k)]
        tile = tiles[next(count) % len(tiles)]
        return GemmConfig(*tile.shape, tile.split_k, 2, 2)

    monkeypatch.setattr(pack_module, "select_config", select)


def make(config, **options):
    return Plan(config, *pack(config, **options))


def output(plan, x):
    """The prediction, with the norm that denoise_update applies where there is one."""
    denoiser = plan.packed.denoiser
    if denoiser.norm_scale is None:
        return x
    return torch.nn.functional.layer_norm(x.float(), x.shape[-1:]) * (1 + denoiser.norm_scale) + denoiser.norm_shift


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_packed_plan_is_the_model(name, packing):
    config = CONFIGS[name]
    plan = make(config)
    assert all(layer.up.packed for layer in plan.packed.denoiser.layers + plan.packed.latent_decoder.layers)
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
            inputs.stats.copy_(row_statistics(inputs.x))

        def predict(model, dtype, time=time, previous=previous):
            times = time.to(dtype).expand(2)
            return model.denoise(latents.to(dtype), times, None if previous is None else previous.to(dtype))

        result = output(plan, plan.denoise(step, inputs, None))
        assert_contract(result.bfloat16(), predict(exact, torch.float64), predict(half, torch.bfloat16))


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_packed_decoder_is_the_model(name, packing):
    config = CONFIGS[name]
    latents = torch.randn(2, config.seq_len, config.latent_dim, generator=torch.Generator().manual_seed(4)) + 0.3
    plan = make(config)
    head = plan.packed.lm_head
    logits = plan.decode(latents).double() @ head.weight.double().T + head.bias.double()

    def reference(dtype):
        model = randomized(config, dtype)
        return model.logits(model.decode(latents.to(dtype)))

    assert_contract(logits.bfloat16(), reference(torch.float64), reference(torch.bfloat16))


@pytest.mark.parametrize("guidance", [False, True])
@torch.no_grad()
def test_a_packed_plan_reads_a_prompt(guidance, packing):
    config = CONFIGS["ldlm"]
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(2, config.seq_len, config.latent_dim, generator=generator)
    hidden = torch.randn(2, 6, config.hidden_dim, generator=generator) + 0.4
    mask = torch.arange(6) < torch.tensor([[4], [6]])
    plan = make(config, context_len=6, guidance=guidance)
    context = plan.context(hidden.bfloat16(), mask, torch.tensor(True))
    result = plan.denoise(0, plan.first_input(latents), context)

    def predict(dtype):
        model, times = randomized(config, dtype), TIMES[0].to(dtype).expand(2)
        prompted = model.denoise(latents.to(dtype), times, None, hidden.to(dtype), mask)
        return torch.cat((prompted, model.denoise(latents.to(dtype), times, None))) if guidance else prompted

    assert_contract(result, predict(torch.float64), predict(torch.bfloat16))
