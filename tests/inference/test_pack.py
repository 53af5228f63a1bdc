"""Packing: what is computed once is what the model computes, and how layers are packed does not depend on the batch."""

import dataclasses

import pytest
import torch

from dllm_kernels.inference.fold import FoldedLinear, Numerics
from dllm_kernels.inference.pack import PlanOptions, pack_model
from dllm_kernels.inference.weights import LiveModel
from dllm_kernels.ops.linear import skinny as linear_skinny_file
from dllm_kernels.ops.lm_head import skinny as lm_head_skinny_file
from tests.inference.packed import CONFIGS, TIMES, pack
from tests.models import randomized

EXACT = Numerics(torch.float64, torch.float64, torch.float64, torch.device("cpu"))


def close(found, expected):
    return torch.allclose(found, expected.double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_invariant_model_is_packed_the_same_for_every_batch(name, monkeypatch):
    """Which layers are packed, and with which configurations, is decided for one sample; only the call's rows differ."""
    for module in (linear_skinny_file, lm_head_skinny_file):
        monkeypatch.setattr(module, "cuda_unsupported_reason", lambda device: None)
    config, configs = CONFIGS[name], []
    for batch in (1, 8):
        options = {"context_len": 3 * config.context, "guidance": config.context, "batch_invariant": True}
        packed, _ = pack(config, batch_size=batch, **options)
        parts = [getattr(layer, part.name) for layer in packed.denoiser.layers for part in dataclasses.fields(layer)]
        layers = [part for part in parts if isinstance(part, FoldedLinear)]
        layers += [packed.latent_decoder.key_value, packed.token_decoder.key_value]
        configs.append([layer.weight.config for layer in layers] + [packed.lm_head.weight.config])
    assert configs[0] == configs[1] and len(configs[0]) > 5


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_the_time_of_every_step_is_the_models(name):
    config = CONFIGS[name]
    denoiser, time = pack(config, EXACT)[0].denoiser, randomized(config, torch.float64).denoiser.time_embedding(TIMES)
    assert close(denoiser.first_shift, time[0])
    assert (denoiser.time_shift is None) == config.self_conditioning
    assert config.self_conditioning or close(denoiser.time_shift, time)


@torch.no_grad()
def test_the_guidance_scale_of_the_config_is_in_the_time_of_every_step():
    config = dataclasses.replace(CONFIGS["ldlm"], guidance_range=(0.5, 5.0), sampled_guidance=2.0)
    denoiser, model = pack(config, EXACT)[0].denoiser, randomized(config, torch.float64).denoiser
    time = model.time_embedding(TIMES) + model.guidance_embedding(torch.full_like(TIMES, 0.25))
    assert close(model.step_embedding(TIMES, torch.full_like(TIMES, 2.0)), time)
    assert close(denoiser.first_shift, time[0])


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_the_latent_decoder_starts_after_its_first_self_attention(name):
    config = CONFIGS[name]
    decoder, model = pack(config, EXACT)[0].latent_decoder, randomized(config, torch.float64).latent_decoder
    layer = model.layers[0]
    start = model.latents + layer.self_attention(layer.self_norm(model.latents))
    query = layer.cross_attention.query(layer.cross_norm(start)).unflatten(-1, (config.num_heads, -1))
    first = decoder.layers[0]
    assert close(decoder.start, start) and close(first.query_constant, query)
    assert first.qkv is None and first.query is None and first.first is first.up
    assert decoder.layers[1].query_constant is None and decoder.layers[1].first is decoder.layers[1].qkv


@torch.no_grad()
def test_the_null_context_has_the_models_keys_and_values():
    config = CONFIGS["ldlm"]
    denoiser, model = pack(config, EXACT, context_len=3)[0].denoiser, randomized(config, torch.float64).denoiser
    expected = [block.cross_attention.key_value(model.null_context)[0, 0] for block in model.blocks]
    assert close(denoiser.null_key_value, torch.cat(expected))
    # Without a prompt the null context is in the bias after the self-attention, and nothing is left to attend to.
    folded = pack(config, EXACT)[0].denoiser
    assert folded.prompt_key_value is None and folded.layers[0].cross_out is None
    added = folded.layers[0].out.bias - denoiser.layers[0].out.bias
    assert close(added, model.blocks[0].cross_attention(torch.zeros(1, 1, config.dim).double(), model.null_context)[0])


@pytest.mark.parametrize("name", ["denoiser.blocks.0.mlp.up.bias", "latent_decoder.latents", "lm_head.weight"])
def test_a_weight_that_is_not_finite_is_named(name):
    config = CONFIGS["ldlm"]
    model = randomized(config)
    with torch.no_grad():
        model.state_dict()[name].view(-1)[-1] = float("nan")
    with pytest.raises(ValueError, match=rf"^{name} holds NaN or infinity$"):
        pack_model(config, LiveModel(model), TIMES, PlanOptions(config.seq_len, 1, EXACT))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_plan_shares_no_memory_with_the_model(name, dtype):
    """What is written through `.data` after packing leaves no trace, so it must not reach the plan either."""
    config = CONFIGS[name]
    model = randomized(config, dtype)
    numerics = Numerics.of(dtype, torch.device("cpu"))
    packed = pack_model(config, LiveModel(model), TIMES, PlanOptions(config.seq_len, 1, numerics))
    theirs = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    found, ours = [packed], []
    while found:
        part = found.pop()
        ours += [part] if isinstance(part, torch.Tensor) else []
        found += part if isinstance(part, list) else vars(part).values() if dataclasses.is_dataclass(part) else []
    assert len(ours) > 20 and not theirs & {tensor.untyped_storage().data_ptr() for tensor in ours}
