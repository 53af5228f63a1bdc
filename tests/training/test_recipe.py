"""The losses against a plain computation of their formulas, and each part of the recipe by what it changes."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from dllm_kernels import LDLMConfig
from dllm_kernels.diffusion.noise import normals
from dllm_kernels.diffusion.schedule import NoiseSchedule
from dllm_kernels.model.ldlm import LDLM
from dllm_kernels.ops.attention.op import attention
from dllm_kernels.training.randomness import _KEY, draw
from dllm_kernels.training.recipe import Batch, JointTraining, encoder_share
from dllm_kernels.training.settings import OptimizerSettings, RecipeSettings
from dllm_kernels.training.timesteps import AdaptiveTimesteps
from tests.models import randomized

CONFIG = LDLMConfig.preset("tiny", seq_len=6, vocab_size=31, hidden_dim=48, latent_dim=40, decoder_noise=0.7)
ONE = torch.ones(())


def batch(count=5, prompts=True, seed=0):
    """Windows of 1 to 6 tokens; hidden states are not standardised, and what stands at padding is large."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(6) < torch.tensor([6, 4, 1, 6, 3])[:count].unsqueeze(1)
    tokens = torch.randint(0, 31, (count, 6), generator=generator)
    hidden = 2 * torch.randn(count, 6, 48, generator=generator) + 0.5
    context = torch.randn(count, 3, 48, generator=generator) + 0.2
    context_mask = torch.arange(3) < torch.tensor([3, 0, 1, 2, 3])[:count].unsqueeze(1)
    more = (context, context_mask) if prompts else ()
    return Batch(tokens, mask, torch.where(mask.unsqueeze(-1), hidden, 1e3), *more)


def joint(attention=None, config=CONFIG, **recipe):
    model = randomized(config)
    if attention is not None:
        weights, model = model.state_dict(), LDLM(config, attention)
        model.load_state_dict(weights)
    return JointTraining(model, dataclasses.replace(RecipeSettings(), **recipe), bf16=False).train()


def draws(count=5, step=3):
    return draw(7, step, count, 0, count, (6, 40), "cpu")


def noised(module, data, drawn):
    """The standardised latents of a batch, and their noisy ones at TIMES."""
    with torch.no_grad():
        raw = module(data)
        clean = (raw - raw.mean((0, 1))) / (raw.var((0, 1), unbiased=False) + 1e-6).sqrt()
        alpha, sigma = (f(TIMES).float()[:, None, None] for f in (module.schedule.alpha, module.schedule.sigma))
        return clean, alpha * clean + sigma * drawn.noise


TIMES = torch.tensor([0.1, 0.35, 0.6, 0.8, 0.95], dtype=torch.float64)


def gradients(module, loss):
    module.zero_grad()
    loss.backward(retain_graph=True)
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in module.model.named_parameters()}


class TestLosses:
    def test_equal_their_formulas(self):
        module, data, drawn = joint(), batch(), draws()
        losses, model = module(data, drawn, TIMES, ONE), module.model
        with torch.no_grad():
            known = (data.hidden - model.statistics.hidden_mean) / model.statistics.hidden_std
            raw = model.latent_encoder(known, data.mask)
            mean, std = raw.mean((0, 1)), (raw.var((0, 1), unbiased=False) + 1e-6).sqrt()
            clean = (raw - mean) / std
            schedule = NoiseSchedule.from_config(CONFIG)
            diffusion, hidden, words, right, count = [], 0.0, 0.0, 0, int(data.mask.sum())
            for i in range(5):
                alpha, sigma = (f(TIMES[i]).float() for f in (schedule.alpha, schedule.sigma))
                noisy, t = (alpha * clean[i] + sigma * drawn.noise[i]).unsqueeze(0), TIMES[i : i + 1].float()
                length = int(data.context_mask[i].sum())
                prompt = None
                if length and drawn.context_dropped[i] >= 0.1:
                    prompt = (data.context[i : i + 1, :length] - model.statistics.hidden_mean) / model.statistics.hidden_std
                first = model.denoiser(noisy, t, None, prompt)
                previous = first if drawn.self_conditioned[i] < 0.5 else None
                diffusion.append((model.denoiser(noisy, t, previous, prompt)[0] - clean[i]).square().mean().item())
                decoded = model.latent_decoder((clean[i] + 0.7 * drawn.decoder_noise[i]).unsqueeze(0) * std + mean)
                tokens = int(data.mask[i].sum())
                hidden += (decoded[0] - known[i]).square().mean(-1)[:tokens].sum().item() / count
                logits = model.logits(decoded)[0, :tokens]
                words += F.cross_entropy(logits, data.tokens[i, :tokens], reduction="sum").item() / count
                right += int((logits.argmax(-1) == data.tokens[i, :tokens]).sum())
        torch.testing.assert_close(losses.by_sample, torch.tensor(diffusion), rtol=2e-4, atol=1e-5)
        assert losses.diffusion.item() == pytest.approx(sum(diffusion) / 5, rel=1e-4)
        assert losses.hidden.item() == pytest.approx(hidden, rel=1e-4) and losses.words.item() == pytest.approx(words, rel=1e-4)
        assert losses.accuracy.item() == pytest.approx(right / count)
        assert losses.total.item() == pytest.approx(losses.diffusion.item() + hidden + words, rel=1e-4)
        # The draws of this step turn both coins.
        assert 0 < (drawn.self_conditioned < 0.5).sum() < 5

    def test_padding_does_not_matter(self):
        module, data, drawn = joint(), batch(), draws()
        expected = module(data, drawn, TIMES, ONE)
        other = torch.where(data.mask.unsqueeze(-1), data.hidden, -7.0)
        found = module(data._replace(hidden=other, tokens=data.tokens * data.mask), drawn, TIMES, ONE)
        torch.testing.assert_close(torch.stack(found[:4]), torch.stack(expected[:4]), rtol=1e-6, atol=0)

    def test_the_diffusion_loss_cannot_be_lowered_by_the_latents_scale(self):
        """Standardised over the batch, with the gradient of its mean and deviation."""
        module, data, drawn = joint(), batch(), draws()
        expected = module(data, drawn, TIMES, ONE)
        out = module.model.latent_encoder.project_out
        gradient = gradients(module, expected.diffusion)["latent_encoder.project_out.weight"]
        assert abs((gradient * out.weight).sum()) < 1e-4 * gradient.norm() * out.weight.norm() and gradient.norm() > 1e-3
        with torch.no_grad():
            out.weight.mul_(3.0)
            out.bias.mul_(3.0).add_(1.0)
        found = module(data, drawn, TIMES, ONE)
        torch.testing.assert_close(found.by_sample, expected.by_sample, rtol=1e-4, atol=1e-5)

    def test_our_attention_gives_the_same_gradients(self):
        data, drawn = batch(), draws()
        ours, theirs = joint(attention), joint()
        found, expected = (gradients(module, module(data, drawn, TIMES, ONE).total) for module in (ours, theirs))
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=2e-3, atol=2e-4 * gradient.abs().max().item(), msg=name)

    def test_a_step_reads_nothing_back_to_the_host(self):
        """Under fake tensors, which hold no values, reading one raises: so no step waits for a card."""
        with FakeTensorMode(allow_non_fake_inputs=False):
            config = dataclasses.replace(CONFIG, guidance_range=(0.5, 5.0))
            recipe = RecipeSettings(self_conditioning_noise=0.2)
            module = JointTraining(LDLM(config, attention), recipe, bf16=True).train()
            times = AdaptiveTimesteps()
            tokens, mask = torch.zeros(5, 6, dtype=torch.int64), torch.ones(5, 6, dtype=torch.bool)
            data = Batch(tokens, mask, torch.randn(5, 6, 48), torch.randn(5, 3, 48), mask[:, :3])
            drawn = draw(7, 3, 5, 0, 5, (6, 40), "cpu", previous_noise=True)
            t = times.times(drawn.time)
            losses = module(data, drawn, t, torch.full((), 0.5))
            losses.total.backward()
            times.update(times.binned(t, losses.by_sample))
            with pytest.raises(Exception, match="_local_scalar_dense"):
                losses.total.item()


class TestParts:
    def test_mse_decoder_loss(self):
        data, drawn = batch(), draws()
        module = joint()
        losses = module(data, drawn, TIMES, ONE)
        words = gradients(module, losses.words)
        reaches = {name.split(".")[0] for name, gradient in words.items() if gradient.any()}
        assert reaches == {"token_decoder", "lm_head"}
        without = joint(mse_decoder_loss=False)
        plain = without(data, drawn, TIMES, ONE)
        assert plain.total.item() == pytest.approx((plain.diffusion + plain.words).item(), rel=1e-6)
        reaches = {name.split(".")[0] for name, gradient in gradients(without, plain.words).items() if gradient.any()}
        assert reaches == {"latent_encoder", "latent_decoder", "token_decoder", "lm_head"}
        # Without the part the decoder's input is clean, as it is outside of training.
        quiet = module.eval()(data, drawn, TIMES, ONE)
        assert quiet.hidden.item() == pytest.approx(plain.hidden.item(), rel=1e-6)
        assert abs(quiet.hidden.item() - losses.hidden.item()) > 1e-3
        assert quiet.diffusion.item() == pytest.approx(losses.diffusion.item(), rel=1e-6)

    def test_encoder_warmup_scales_the_encoders_gradient_of_the_diffusion_loss_alone(self):
        data, drawn, module = batch(), draws(), joint()
        found = {}
        for share in (1.0, 0.25):
            losses = module(data, drawn, TIMES, torch.tensor(share))
            found[share] = losses, *(gradients(module, loss) for loss in (losses.diffusion, losses.hidden))
        assert torch.equal(found[1.0][0].by_sample, found[0.25][0].by_sample)
        for name, whole in found[1.0][1].items():
            scale = 0.25 if name.startswith("latent_encoder") else 1.0
            torch.testing.assert_close(
                found[0.25][1][name], scale * whole, rtol=1e-3, atol=1e-5 * whole.abs().max().item() + 1e-9
            )
        assert found[1.0][1]["latent_encoder.latents"].any()
        for name, whole in found[1.0][2].items():
            assert torch.equal(found[0.25][2][name], whole)

    def test_encoder_warmup_by_step(self):
        assert encoder_share(0, 100, 0.01) == pytest.approx(0.01) and encoder_share(100, 100, 0.01) == 1
        g = [1 / (1 + math.exp(-10 * (x - 0.8))) for x in (0, 0.8, 1)]
        assert encoder_share(80, 100, 0.01) == pytest.approx(0.01 + 0.99 * (g[1] - g[0]) / (g[2] - g[0]))
        assert encoder_share(80, 100, 0.01, 0.5) == pytest.approx(0.01 + 0.49 * (g[1] - g[0]) / (g[2] - g[0]))
        assert encoder_share(0, 0, 0.01) == 1
        shares = [encoder_share(step, 100, 0.01) for step in range(101)]
        assert shares == sorted(shares)

    def test_self_conditioning(self):
        data, drawn = batch(), draws()
        never, always, half = (joint(self_conditioning=p)(data, drawn, TIMES, ONE).by_sample for p in (0.0, 1.0, 0.5))
        chosen = drawn.self_conditioned < 0.5
        assert ((never - always).abs() > 1e-4).all()
        torch.testing.assert_close(half, torch.where(chosen, always, never))

    def test_self_conditioning_noise(self):
        """It is added to what the denoiser sees of its own prediction, and nowhere else."""
        data = batch(prompts=False)
        drawn = draw(7, 3, 5, 0, 5, (6, 40), "cpu", previous_noise=True)
        module = joint(self_conditioning_noise=0.3)
        plain = joint()(data, drawn._replace(previous_noise=None), TIMES, ONE).by_sample
        found, chosen = module(data, drawn, TIMES, ONE).by_sample, drawn.self_conditioned < 0.5
        torch.testing.assert_close(found[~chosen], plain[~chosen])
        clean, noisy = noised(module, data, drawn)
        first = module.model.denoiser(noisy, TIMES.float())
        expected = module.model.denoiser(noisy, TIMES.float(), first + 0.3 * drawn.previous_noise)
        torch.testing.assert_close(found[chosen], (expected - clean).square().mean((1, 2))[chosen], rtol=1e-4, atol=1e-5)
        assert (found - plain)[chosen].abs().min() > 1e-5

    def test_guidance(self):
        """The prediction c of a sample that self-conditions is drawn to x + (1 - 1/w) (c - u), any other to x."""
        config = dataclasses.replace(CONFIG, guidance_range=(0.5, 4.0))
        data, drawn, module = batch(prompts=False), draws(), joint(config=config)
        losses = module(data, drawn, TIMES, ONE)
        w, t, chosen = 0.5 * 8**drawn.guidance, TIMES.float(), drawn.self_conditioned < 0.5
        clean, noisy = noised(module, data, drawn)
        u = module.model.denoiser(noisy, t, guidance=w)
        c = module.model.denoiser(noisy, t, u * chosen[:, None, None], guidance=w)
        # (c - goal) is ((c - (u + w (x - u))) / w: where the loss is least, c is the guided prediction.
        guided = (c - (u + w[:, None, None] * (clean - u))) / w[:, None, None]
        expected = torch.where(chosen[:, None, None], guided, c - clean).square().mean((1, 2))
        torch.testing.assert_close(losses.by_sample, expected, rtol=1e-4, atol=1e-5)
        # Held-out losses are those of no guidance, so that runs compare.
        module.eval()
        plain = module(data, drawn, TIMES, ONE).by_sample
        u, one = (module.model.denoiser(noisy, t, guidance=torch.ones(5)) for _ in range(2))
        c = module.model.denoiser(noisy, t, u * chosen[:, None, None], guidance=torch.ones(5))
        torch.testing.assert_close(plain, (c - clean).square().mean((1, 2)), rtol=1e-4, atol=1e-5)
        assert torch.equal(module.model.denoiser(noisy, t), one)

    def test_guidance_has_no_gradient_through_its_goal(self):
        config = dataclasses.replace(CONFIG, guidance_range=(0.5, 4.0))
        data, drawn, module = batch(prompts=False), draws(), joint(config=config, self_conditioning=1.0)
        found = gradients(module, module(data, drawn, TIMES, torch.zeros(())).diffusion)
        w, t = (0.5 * 8**drawn.guidance)[:, None, None], TIMES.float()
        clean, noisy = (x.detach() for x in noised(module, data, drawn))
        u = module.model.denoiser(noisy, t, guidance=w[:, 0, 0]).detach()
        c = module.model.denoiser(noisy, t, u, guidance=w[:, 0, 0])
        loss = (c - (clean + (1 - 1 / w) * (c.detach() - u))).square().mean()
        expected = gradients(module, loss)
        for name in ("denoiser.project_out.weight", "denoiser.guidance_embedding.up.weight"):
            assert expected[name].any()
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-6)

    def test_context_dropout(self):
        data, drawn = batch(), draws()
        kept, dropped, some = (joint(context_dropout=p)(data, drawn, TIMES, ONE).by_sample for p in (0.0, 1.0, 0.6))
        alone = joint()(batch(prompts=False), drawn, TIMES, ONE).by_sample
        torch.testing.assert_close(dropped, alone, rtol=1e-4, atol=1e-5)
        # A window without a prompt has the null context in any case.
        assert abs(kept[1] - alone[1]) < 1e-4 and ((kept - alone).abs() > 1e-5)[[0, 2, 3, 4]].all()
        torch.testing.assert_close(some, torch.where(drawn.context_dropped < 0.6, dropped, kept), rtol=1e-4, atol=1e-5)

    def test_bf16_is_close_to_float32(self):
        """The gradients too: the pass of self-conditioning without gradient comes first and reads the same weights."""
        data, drawn, module = batch(), draws(), joint()
        expected = module(data, drawn, TIMES, ONE)
        wanted = gradients(module, expected.total)
        module.bf16 = True
        found = module(data, drawn, TIMES, ONE)
        assert found.total.dtype == torch.float32
        difference = abs(found.total.item() / expected.total.item() - 1)
        assert 1e-7 < difference < 0.02
        for name, gradient in gradients(module, found.total).items():
            assert (gradient - wanted[name]).norm() < 0.2 * wanted[name].norm() + 1e-6, name


class TestDraws:
    def test_depend_on_the_sample_and_not_on_who_computes_it(self):
        whole = draw(5, 11, 8, 0, 8, (3, 4), "cpu", previous_noise=True)
        parts = [draw(5, 11, 8, first, 4, (3, 4), "cpu", previous_noise=True) for first in (0, 4)]
        for name in whole._fields:
            assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts])), name

    def test_differ_by_seed_step_sample_and_use(self):
        base = draw(5, 11, 8, 0, 8, (3, 4), "cpu", previous_noise=True)
        for seed, step in ((6, 11), (5, 12)):
            other = draw(seed, step, 8, 0, 8, (3, 4), "cpu", previous_noise=True)
            assert all((a != b).all() for a, b in zip(base, other, strict=True))
        assert (base.noise != base.decoder_noise).all() and (base.noise != base.previous_noise).all()
        assert len({*base.time.tolist(), *base.self_conditioned.tolist(), *base.guidance.tolist()}) == 24

    def test_are_those_of_the_samplers_noise(self):
        drawn = draw(5, 11, 8, 2, 3, (3, 4), "cpu")
        expected = normals(5 + _KEY, 11 * 8 + 2, 0, 0, 3, 24).view(3, 3, 8).float()
        assert torch.equal(torch.cat((drawn.noise, drawn.decoder_noise), -1), expected)
        assert ((drawn.time > 0) & (drawn.time < 1)).all() and drawn.previous_noise is None


def test_defaults_are_the_published_ones():
    assert OptimizerSettings(1, 1).betas == (0.9, 0.98) and OptimizerSettings(1, 1).ema == 0.9999
    assert OptimizerSettings(1, 1).learning_rate == 2e-4 and OptimizerSettings(1, 1).clip == 1
