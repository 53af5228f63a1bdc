"""FusedSampler on a CPU: plan == model, seeds, batches, changed weights, threads."""

import dataclasses
import gc

import numpy as np
import pytest
import torch
from torch.optim.optimizer import _global_optimizer_post_hooks

from dllm_kernels import LDLM, FusedSampler, LDLMConfig
from dllm_kernels.inference import sampler as sampler_file
from dllm_kernels.inference.weights import LiveModel
from dllm_kernels.model.config import open_dllm_config
from dllm_kernels.model.layers import MLP
from tests.inference.reference_sampler import reference_sample
from tests.models import randomized
from tests.numerics import assert_contract
from tests.threads import together

TINY = LDLMConfig.preset("tiny", seq_len=13, hidden_dim=48, latent_dim=24, vocab_size=101)
CONFIGS = {
    "ldlm": TINY,
    "ldlm without context": LDLMConfig.preset("tiny", seq_len=13, vocab_size=101, context=False, standardize=False),
    "open-dllm": open_dllm_config(64, 101, 13, perceiver_layers=2, denoiser_layers=2),
    "open-dllm with proj_in": open_dllm_config(64, 101, 13, proj_in=True, perceiver_layers=2, denoiser_layers=2),
}


def sampler_of(model, **options):
    return FusedSampler(model, **({"device": "cpu", "dtype": torch.float64, "num_steps": 3} | options))


@pytest.mark.parametrize("solver, eta", [("ddim", None), ("ddpm", None), ("ddpm", 1.5), ("ddpm", 2.0), ("dpmpp_2m", None)])
@pytest.mark.parametrize("name", CONFIGS)
def test_plan_equals_model_in_float64(name, solver, eta):
    model = randomized(CONFIGS[name], torch.float64)
    sampler = sampler_of(model, batch_size=2, num_steps=5, solver=solver, eta=eta, logprobs=True)
    out = sampler(seed=7, first_sample=3)
    eta = float(solver == "ddpm") if eta is None else eta
    latents, logits = reference_sample(model, 5, 2, solver=solver, eta=eta, seed=7, first_sample=3)
    assert torch.allclose(out.latents, latents, rtol=0, atol=1e-11 * latents.abs().max())
    assert torch.equal(out.tokens, logits.argmax(-1))
    expected = logits.log_softmax(-1).gather(-1, out.tokens[..., None])[..., 0]
    assert torch.allclose(out.logprobs.double(), expected, rtol=0, atol=1e-5)


def test_a_model_that_reads_a_guidance_scale_is_sampled_at_its_configs():
    found = []
    for scale in (1.0, 3.0):
        config = dataclasses.replace(TINY, guidance_range=(0.5, 5.0), sampled_guidance=scale)
        model = randomized(config, torch.float64)
        latents, _ = reference_sample(model, 3, 2, seed=7)
        found.append(sampler_of(model, batch_size=2)(seed=7).latents)
        assert torch.allclose(found[-1], latents, rtol=0, atol=1e-11 * latents.abs().max())
    assert not torch.allclose(*found, atol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_steps", [1, 2])
def test_few_steps_and_short_sequences(name, num_steps):
    model = randomized(CONFIGS[name], torch.float64)
    out = sampler_of(model, num_steps=num_steps, seq_len=7)(seed=1)
    latents, logits = reference_sample(model, num_steps, seq_len=7, seed=1)
    assert torch.allclose(out.latents, latents, rtol=0, atol=1e-11 * latents.abs().max())
    assert torch.equal(out.tokens, logits.argmax(-1))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plan_keeps_the_contract(name, dtype):
    """Against float64, the plan's latents err at most twice as much as the model in the plan's dtype."""
    model = randomized(CONFIGS[name], torch.float64)
    exact, _ = reference_sample(model, 4, 2, seed=5)
    baseline, _ = reference_sample(randomized(CONFIGS[name], dtype), 4, 2, seed=5)
    out = sampler_of(model, num_steps=4, batch_size=2, dtype=dtype)(seed=5)
    assert_contract(out.latents, exact, baseline.to(dtype))


class TestContext:
    model = randomized(TINY, torch.float64)
    context = torch.randn(2, 6, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 1
    mask = torch.arange(6) < torch.tensor([[4], [6]])

    @pytest.mark.parametrize("guidance_scale", [None, 1.0, 2.5])
    def test_prompt(self, guidance_scale):
        sampler = sampler_of(self.model, batch_size=2, context_len=9, guidance=guidance_scale is not None)
        scale = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
        out = sampler(seed=2, context=self.context, context_mask=self.mask, **scale)
        latents, _ = reference_sample(self.model, 3, 2, seed=2, context=self.context, context_mask=self.mask, **scale)
        assert torch.allclose(out.latents, latents, rtol=0, atol=1e-6 * latents.abs().max() if scale else 1e-10)

    def test_no_prompt_is_the_null_context(self):
        latents, _ = reference_sample(self.model, 3, 2, seed=2)
        sampler = sampler_of(self.model, batch_size=2, context_len=9)
        sampler(seed=2, context=self.context)
        assert torch.allclose(sampler(seed=2).latents, latents, rtol=0, atol=1e-10)

    def test_an_empty_prompt_attends_to_nothing(self):
        mask = torch.zeros(2, 6, dtype=torch.bool)
        out = sampler_of(self.model, batch_size=2, context_len=6)(seed=2, context=self.context, context_mask=mask)
        latents, _ = reference_sample(self.model, 3, 2, seed=2, context=self.context, context_mask=mask)
        assert torch.isfinite(out.latents).all()
        assert torch.allclose(out.latents, latents, rtol=0, atol=1e-10)

    def test_what_a_longer_prompt_left_behind_is_not_read(self):
        sampler = sampler_of(self.model, batch_size=2, context_len=9)
        first = sampler(context=self.context[:, :3])
        sampler(context=torch.full((2, 9, 48), 50.0, dtype=torch.float64))
        assert torch.equal(sampler(context=self.context[:, :3]).latents, first.latents)


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_depend_on_the_denoiser(name):
    """The published loop multiplies the last prediction by zero, so its tokens do not."""
    model = randomized(CONFIGS[name], torch.float64)
    sampler = sampler_of(model, batch_size=8)
    before = sampler().tokens
    with torch.no_grad():
        model.denoiser.blocks[0].mlp.down.weight.neg_()
    sampler.refresh()
    assert not torch.equal(sampler().tokens, before)


class TestSeeds:
    model = randomized(TINY)

    def test_same_seed_same_output(self):
        options = {"dtype": torch.bfloat16, "solver": "ddpm", "logprobs": True}
        one, two = sampler_of(self.model, **options), sampler_of(self.model, **options)
        a, b, c = one(seed=3, temperature=0.8), one(seed=3, temperature=0.8), two(seed=3, temperature=0.8)
        for x in (b, c):
            assert torch.equal(a.tokens, x.tokens) and torch.equal(a.latents, x.latents) and torch.equal(a.logprobs, x.logprobs)
        assert not torch.equal(a.latents, one(seed=4).latents)
        assert not torch.equal(a.tokens, one(seed=3, temperature=5.0).tokens)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_batch_invariance(self, dtype):
        """Sample 17 alone and as element 5 of a batch of 8."""
        options = {
            "dtype": dtype,
            "solver": "ddpm",
            "batch_invariant": True,
            "context_len": 5,
            "guidance": True,
            "logprobs": True,
        }
        context = torch.randn(8, 5, 48) + 1
        batch = sampler_of(self.model, batch_size=8, **options)(
            seed=9, first_sample=12, context=context, temperature=0.7, guidance_scale=2.0
        )
        alone = sampler_of(self.model, **options)(
            seed=9, first_sample=17, context=context[5:6], temperature=0.7, guidance_scale=2.0
        )
        assert torch.equal(batch.tokens[5:6], alone.tokens)
        assert torch.equal(batch.latents[5:6], alone.latents)
        assert torch.equal(batch.logprobs[5:6], alone.logprobs)

    def test_survives_saving(self, tmp_path):
        before = sampler_of(self.model, dtype=torch.bfloat16)(seed=1)
        self.model.save_pretrained(tmp_path)
        for sampler in (
            sampler_of(LDLM.from_pretrained(tmp_path), dtype=torch.bfloat16),
            FusedSampler.from_pretrained(tmp_path, num_steps=3, device="cpu"),
        ):
            after = sampler(seed=1)
            assert torch.equal(before.tokens, after.tokens) and torch.equal(before.latents, after.latents)

    def test_given_noise_replaces_the_seeds(self):
        noise = torch.randn(1, 13, 24, dtype=torch.float64) + 0.3
        latents, _ = reference_sample(randomized(TINY, torch.float64), 3, noise=noise)
        sampler = sampler_of(randomized(TINY, torch.float64))
        plain = sampler(seed=8).latents
        assert torch.allclose(sampler(seed=8, noise=noise).latents, latents, rtol=0, atol=1e-10)
        assert torch.equal(sampler(seed=8).latents, plain)

    def test_seeds_and_samples_of_any_integer_type(self):
        sampler = sampler_of(self.model)
        expected = sampler(seed=200, first_sample=3).latents
        for kind in (np.int64, np.uint8, torch.tensor):
            assert torch.equal(sampler(seed=kind(200), first_sample=kind(3)).latents, expected)

    def test_negative_and_large_seeds_are_64_bit(self):
        sampler = sampler_of(self.model)
        assert torch.equal(sampler(seed=-1).latents, sampler(seed=2**64 - 1).latents)


def test_the_models_own_grid_is_the_default():
    config = dataclasses.replace(TINY, sampled_log_snr=(-4.5, -2.0))
    model = randomized(config)
    options = {"num_steps": 3, "device": "cpu", "dtype": torch.float64}
    latents = [FusedSampler(model, grid=grid, **options)().latents for grid in ("auto", ("log_snr", -4.5, -2.0), "t")]
    assert torch.equal(latents[0], latents[1]) and not torch.allclose(latents[0], latents[2], rtol=0, atol=1e-3)


def test_outputs_are_fresh():
    sampler = sampler_of(randomized(TINY))
    first = sampler(seed=1)
    kept = first.latents.clone(), first.tokens.clone()
    sampler(seed=2)
    assert torch.equal(first.latents, kept[0]) and torch.equal(first.tokens, kept[1])


class TestChangedWeights:
    @pytest.mark.parametrize("name", ["denoiser.blocks.0.mlp.up.weight", "latent_decoder.latents", "statistics.latent_mean"])
    def test_written_in_place(self, name):
        model = randomized(TINY)
        sampler = sampler_of(model)
        before = sampler().latents
        with torch.no_grad():
            model.state_dict(keep_vars=True)[name].add_(1)
        with pytest.raises(RuntimeError, match=rf"weights changed.*{name}.*refresh\(\)"):
            sampler()
        sampler.refresh()
        after = sampler()
        expected = sampler_of(model)()
        assert torch.equal(after.latents, expected.latents) and torch.equal(after.tokens, expected.tokens)
        assert name.startswith(("latent_decoder", "statistics")) or not torch.equal(after.latents, before)

    @pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}])
    def test_a_step_of_an_optimizer(self, options):
        model = randomized(TINY)
        sampler, optimizer = sampler_of(model), torch.optim.AdamW(model.parameters(), **options)
        optimizer.step()
        sampler()
        model.lm_head.bias.grad = torch.ones_like(model.lm_head.bias)
        optimizer.step()
        with pytest.raises(RuntimeError, match=r"lm_head\.bias.*refresh\(\)"):
            sampler()
        sampler.refresh()
        sampler()

    def test_optimizers_forget_a_sampler_that_is_gone(self):
        hooks = _global_optimizer_post_hooks
        gc.collect()
        before = len(hooks)
        sampler = sampler_of(randomized(TINY))
        sampler.refresh()
        assert len(hooks) == before + 1
        del sampler
        gc.collect()
        assert len(hooks) == before

    def test_samplers_of_one_source_are_watched_apart(self):
        source = LiveModel(randomized(TINY))
        first = sampler_of(source)
        with torch.no_grad():
            source.model.lm_head.bias.add_(1)
        second = sampler_of(source, num_steps=2)
        with pytest.raises(RuntimeError, match=r"lm_head\.bias"):
            first()
        second()

    def test_replaced(self):
        model = randomized(TINY)
        sampler = sampler_of(model)
        model.lm_head.weight = torch.nn.Parameter(torch.randn(101, 48))
        with pytest.raises(RuntimeError, match=r"lm_head\.weight"):
            sampler()

    def test_a_replaced_module(self):
        model = randomized(TINY)
        sampler = sampler_of(model)
        model.token_decoder.layers[0].mlp = MLP(48)
        with pytest.raises(RuntimeError, match=r"token_decoder\.layers\.0\.mlp"):
            sampler()

    def test_the_latent_encoder_is_not_packed(self):
        model = randomized(TINY)
        sampler = sampler_of(model)
        with torch.no_grad():
            model.latent_encoder.latents.add_(1)
        sampler()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_packing_leaves_the_model_as_it_is(self, dtype):
        model = randomized(TINY, dtype)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        sampler_of(model, dtype=dtype)()
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_after_a_refresh_that_failed(monkeypatch):
    sampler = sampler_of(randomized(TINY))
    expected = sampler().latents
    with monkeypatch.context() as patch:
        patch.setattr(sampler_file, "free_memory", lambda device: 0)
        with pytest.raises(MemoryError):
            sampler.refresh()
    with pytest.raises(RuntimeError, match=r"the last refresh\(\) failed; call refresh\(\) again"):
        sampler()
    sampler.refresh()
    assert torch.equal(sampler().latents, expected)


def test_the_cpu_by_its_number():
    sampler = sampler_of(randomized(TINY), device="cpu:0")
    assert sampler(noise=torch.zeros(1, 13, 24, device="cpu:0")).latents.shape == (1, 13, 24)


@pytest.mark.parametrize(("solver", "read"), [("ddim", [False] * 5), ("ddpm", [False] * 5), ("dpmpp_2m", [True] * 5)])
def test_a_step_reads_the_prediction_before_where_its_solver_does(monkeypatch, solver, read):
    found, update = [], sampler_file.denoise_update

    def watched(call):
        found.append(call.previous is not None)
        update(call)

    monkeypatch.setattr(sampler_file, "denoise_update", watched)
    sampler_of(randomized(TINY), num_steps=5, solver=solver)()
    assert found == read


class TestThreads:
    def test_calls_of_a_shared_sampler(self):
        sampler = sampler_of(randomized(TINY), solver="ddpm")
        expected = [sampler(seed=s, temperature=1.0) for s in range(8)]
        found = together(8, lambda s: [sampler(seed=s, temperature=1.0) for _ in range(4)])
        for s in range(8):
            for out in found[s]:
                assert torch.equal(out.latents, expected[s].latents) and torch.equal(out.tokens, expected[s].tokens)

    def test_calls_wait_for_a_refresh(self):
        sampler = sampler_of(randomized(TINY))
        expected = [sampler(seed=s).latents for s in range(6)]
        found = together(6, lambda s: [(s > 1 or sampler.refresh(), sampler(seed=s).latents)[1] for _ in range(6)])
        assert all(torch.equal(latents, expected[s]) for s in range(6) for latents in found[s])

    def test_progress_may_not_call_its_sampler(self):
        sampler = sampler_of(randomized(TINY))
        expected = sampler(seed=1).latents
        for call in (sampler, sampler.refresh):
            with pytest.raises(RuntimeError, match="in the middle of a call, and what it reports progress to calls it again"):
                sampler(seed=1, progress=lambda *_, call=call: call())
        assert torch.equal(sampler(seed=1).latents, expected)


def test_progress_names_every_phase():
    seen = []
    sampler_of(randomized(TINY))(progress=lambda phase, number: seen.append((phase, number)))
    assert seen == [("noise", 0), ("denoise", 0), ("denoise", 1), ("denoise", 2), ("decode", 0), ("lm_head", 0)]


def test_a_graph_needs_a_card():
    sampler = sampler_of(randomized(TINY))
    assert sampler.graph is None
    with pytest.raises(RuntimeError, match="a graph needs a CUDA card; this sampler runs on cpu"):
        sampler.capture()
