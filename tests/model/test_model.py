"""The model against the restatement of the published architecture, and what the paper's architecture must satisfy."""

import dataclasses

import pytest
import torch

from dllm_kernels.model.config import PRESETS, LDLMConfig
from dllm_kernels.model.ldlm import LDLM
from tests.models import randomized
from tests.published import Published


def published_pair(dim, proj_in, dtype):
    torch.manual_seed(dim + proj_in)
    published = Published(dim, vocab_size=97, seq_len=13, proj_in=proj_in, depth=2, diffusion_head_depth=3).to(dtype)
    return published, LDLM.from_open_dllm(published.checkpoint())


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("proj_in", [False, True])
@torch.no_grad()
def test_open_dllm_equals_the_published_architecture(proj_in, dtype, tolerance):
    published, model = published_pair(64, proj_in, dtype)
    z, previous = (torch.randn(3, 13, 64, dtype=dtype) + 0.5 for _ in range(2))
    t = torch.tensor([1.0, 0.7, 0.1], dtype=dtype)
    expected = [published.diffusion_head(z, t), *published.decode(z), published.latent_encoder(previous)]
    hidden = model.decode(z)
    actual = [model.denoise(z, t), hidden, model.logits(hidden), model.encode(previous)]
    if proj_in:
        expected.append(published.diffusion_head(z, t, previous))
        actual.append(model.denoise(z, t, previous))
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@torch.no_grad()
def test_published_width_of_2048(dtype, tolerance):
    """One layer of each part at the published width: head_dim 256 in the Perceiver and the denoiser, 128 in the decoder."""
    torch.manual_seed(0)
    published = Published(2048, vocab_size=31, seq_len=5, depth=1, decoder_num_layers=1, diffusion_head_depth=1).to(dtype)
    model = LDLM.from_open_dllm(published.checkpoint())
    z, t = torch.randn(1, 5, 2048, dtype=dtype) + 0.5, torch.tensor([0.3], dtype=dtype)
    hidden = model.decode(z)
    for ours, theirs in zip(
        (model.denoise(z, t), hidden, model.logits(hidden)), (published.diffusion_head(z, t), *published.decode(z)), strict=True
    ):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_shorter_sequences_use_the_first_queries():
    _, model = published_pair(64, False, torch.float64)
    shorter = LDLM.from_open_dllm(_first_queries(published_pair(64, False, torch.float64)[0].checkpoint(), 7))
    z = torch.randn(2, 7, 64, dtype=torch.float64)
    assert torch.equal(model.decode(z), shorter.decode(z))


def _first_queries(checkpoint, length):
    for name in ("latent_encoder", "latent_decoder"):
        checkpoint[name]["latents"] = checkpoint[name]["latents"][:, :length].clone()
    checkpoint["config"] = checkpoint["config"] | {"seq_len": length}
    return checkpoint


@pytest.mark.parametrize("preset, published", [("open-dllm-35b-a3b", 1.385e9), ("open-dllm-27b", 6.75e9)])
def test_parameter_counts_of_the_published_presets(preset, published):
    """Exact against the sum by hand; the published figures are given to three or four digits."""
    with torch.device("meta"):
        model = LDLM(PRESETS[preset])
    d, v, t = PRESETS[preset].dim, PRESETS[preset].vocab_size, 64
    perceiver = 4 * (16 * d * d + 13 * d) + t * d
    token_decoder = 2 * (16 * d * d + 19 * d) + 2 * d
    denoiser = 4 * (12 * d * d + 10 * d) + (d * d + 3 * d) + 2 * d
    assert sum(p.numel() for p in model.parameters()) == 2 * perceiver + token_decoder + denoiser + v * d + v
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds(preset):
    with torch.device("meta"):
        model = LDLM(PRESETS[preset])
    t = PRESETS[preset].seq_len
    z = torch.empty(2, t, PRESETS[preset].latent_dim, device="meta")
    assert model.logits(model.decode(model.denoise(z, torch.empty(2, device="meta")))).shape == (
        2,
        t,
        PRESETS[preset].vocab_size,
    )


class TestLdlm:
    config = LDLMConfig.preset("tiny", hidden_dim=48, latent_dim=24, seq_len=11)

    @pytest.fixture
    def model(self):
        return randomized(self.config, torch.float64)

    def test_widths_may_differ(self, model):
        z0 = model.encode(torch.randn(2, 7, 48, dtype=torch.float64))
        assert z0.shape == (2, 11, 24)
        assert model.decode(z0).shape == (2, 11, 48)

    def test_input_positions_tell_the_order_of_the_hidden_states(self, model):
        hidden = torch.randn(2, 11, 48, dtype=torch.float64)
        without = randomized(dataclasses.replace(self.config, input_positions=False), torch.float64)
        assert not torch.allclose(model.encode(hidden), model.encode(hidden.flip(1)), rtol=0, atol=1e-3)
        assert torch.allclose(without.encode(hidden), without.encode(hidden.flip(1)), rtol=0, atol=1e-12)
        known, positions = model.encode(hidden), model.latent_encoder.positions
        model.latent_encoder.positions = None
        moved = hidden + positions * model.statistics.hidden_std
        assert torch.allclose(model.encode(moved), known, rtol=0, atol=1e-12)

    def test_hidden_states_without_a_position_are_refused(self, model):
        with pytest.raises(ValueError, match="the context has 12 rows and there are 11 positions"):
            model.encode(torch.randn(1, 12, 48, dtype=torch.float64))

    def test_encoder_mask_hides_padding(self, model):
        hidden = torch.randn(2, 9, 48, dtype=torch.float64)
        mask = torch.arange(9) < torch.tensor([[5], [9]])
        changed = torch.where(mask[..., None], hidden, 100.0)
        assert torch.equal(model.encode(hidden, mask), model.encode(changed, mask))
        assert torch.allclose(model.encode(hidden, mask)[:1], model.encode(hidden[:1, :5]), rtol=0, atol=1e-12)

    def test_adaln_zero_starts_as_zero(self):
        model = LDLM(self.config)
        assert torch.equal(model.denoise(torch.randn(2, 11, 24), torch.rand(2)), torch.zeros(2, 11, 24))

    def test_first_prediction_is_zeros(self, model):
        z, t = torch.randn(2, 11, 24, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
        assert torch.equal(model.denoise(z, t), model.denoise(z, t, torch.zeros_like(z)))
        assert not torch.allclose(model.denoise(z, t), model.denoise(z, t, z))

    def test_prompt_padding_is_hidden_and_an_empty_prompt_is_finite(self, model):
        z, t = torch.randn(2, 11, 24, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
        context = torch.randn(2, 6, 48, dtype=torch.float64) + 1
        mask = torch.arange(6) < torch.tensor([[4], [0]])
        out = model.denoise(z, t, None, context, mask)
        assert torch.isfinite(out).all()
        for garbage in (-50.0, float("nan")):
            assert torch.equal(out, model.denoise(z, t, None, torch.where(mask[..., None], context, garbage), mask))
        assert torch.allclose(out[:1], model.denoise(z[:1], t[:1], None, context[:1, :4]), rtol=0, atol=1e-12)
        assert not torch.allclose(out[1], model.denoise(z, t)[1])

    def test_statistics_standardise_both_sides(self, model):
        hidden = torch.randn(2, 11, 48, dtype=torch.float64) * 3 + 2
        plain = randomized(self.config, torch.float64)
        plain.statistics.enabled = False
        s = model.statistics
        raw = plain.encode((hidden - s.hidden_mean) / s.hidden_std)
        assert torch.allclose(model.encode(hidden), (raw - s.latent_mean) / s.latent_std, rtol=0, atol=1e-12)
        assert torch.allclose(model.decode(model.encode(hidden)), plain.decode(raw), rtol=0, atol=1e-9)

    def test_latents_are_not_exchangeable(self, model):
        """Positions make order learnable: permuting the latents does not merely permute the prediction."""
        z, t, order = torch.randn(1, 11, 24, dtype=torch.float64), torch.rand(1, dtype=torch.float64), torch.randperm(11)
        assert not torch.allclose(model.denoise(z[:, order], t), model.denoise(z, t)[:, order])

    def test_bad_context_is_refused(self, model):
        z, t = torch.randn(1, 11, 24, dtype=torch.float64), torch.rand(1, dtype=torch.float64)
        with pytest.raises(ValueError, match="a context_mask needs a context"):
            model.denoise(z, t, context_mask=torch.ones(1, 3, dtype=torch.bool))
        with pytest.raises(ValueError, match="takes no context"):
            LDLM(LDLMConfig.preset("tiny", context=False)).denoise(
                torch.randn(1, 3, 64), torch.rand(1), context=torch.ones(1, 2, 64)
            )


def test_time_is_not_rounded_to_bf16():
    """0.9 and 0.902 are one number in bf16; the time embedding tells them apart."""
    model = LDLM(PRESETS["tiny"]).bfloat16()
    a, b = (model.denoiser.time_embedding(torch.tensor([t])) for t in (0.9, 0.902))
    assert not torch.equal(a, b)
