"""The roofline against figures worked out by hand, and against the matrices that a real plan packs."""

import pytest
import torch

from dllm_kernels import FusedSampler, LDLMConfig
from dllm_kernels.bench.roofline import CARDS, Card, Floor, Work, floor, this_card, work
from dllm_kernels.inference.fold import FoldedLinear
from dllm_kernels.inference.weights import PACKED_MODULES
from dllm_kernels.model.config import open_dllm_config
from dllm_kernels.model.ldlm import build_module
from dllm_kernels.utils.device import measure_bandwidth, measure_product
from tests.models import randomized

VOCAB = 248_320


def work_of(config, num_steps=10, batch_size=1, folded=True):
    with torch.device("meta"):
        parts = {name: build_module(name, config) for name in PACKED_MODULES}
    return {row.part: row for row in work(config, parts, num_steps, batch_size, folded)}


def total(rows, field="weights"):
    return sum(getattr(row, field) for row in rows.values())


@pytest.mark.parametrize("name, d", [("open-dllm-35b-a3b", 2048), ("open-dllm-27b", 5120)])
def test_weights_of_the_published_presets(name, d):
    """A layer of self-attention and MLP has 12 d^2 weights, cross-attention 4 d^2 more; folding spares 5 d^2 and the time."""
    config = LDLMConfig.preset(name)
    folded, written = work_of(config), work_of(config, folded=False)
    assert {part: row.weights for part, row in folded.items()} == {
        "denoiser": 10 * 48 * d**2,
        "latent_decoder": 59 * d**2,
        "token_decoder": 32 * d**2,
        "lm_head": VOCAB * d,
    }
    assert {part: row.weights for part, row in written.items()} == {
        "denoiser": 10 * (49 * d**2 + d),
        "latent_decoder": 64 * d**2,
        "token_decoder": 32 * d**2,
        "lm_head": VOCAB * d,
    }


@pytest.mark.parametrize(
    "name, d, steps, gigabytes, milliseconds",
    [
        ("open-dllm-35b-a3b", 2048, 10, 5.85, 1.29),
        ("open-dllm-35b-a3b", 2048, 4, 3.43, 0.75),
        ("open-dllm-27b", 5120, 10, 32.7, 7.2),
        ("open-dllm-27b", 5120, 4, 17.64, 3.9),
    ],
)
def test_the_known_floor(name, d, steps, gigabytes, milliseconds):
    """The figures of the design count the latent decoder's 64 d^2, of which a plan reads 59."""
    rows = work_of(LDLMConfig.preset(name), steps)
    unfolded = 2 * (total(rows) + 5 * d**2)
    assert unfolded / 1e9 == pytest.approx(gigabytes, rel=2e-3)
    assert unfolded / 4.55e12 * 1e3 == pytest.approx(milliseconds, rel=1e-2)
    found = floor(list(rows.values()), CARDS["h200"], torch.bfloat16)
    assert found.bandwidth == pytest.approx((unfolded - 10 * d**2) / 4.55e12, rel=1e-12)
    assert found.seconds == found.bandwidth > found.arithmetic


def test_operations_of_the_published_preset():
    d, t = 2048, 64
    rows = work_of(LDLMConfig.preset("open-dllm-35b-a3b"))
    attention = 4 * t * t * d
    assert rows["denoiser"].operations == 10 * (2 * t * 48 * d**2 + 4 * attention)
    assert rows["latent_decoder"].operations == 2 * t * 59 * d**2 + (3 + 4) * attention
    assert rows["token_decoder"].operations == 2 * t * 32 * d**2 + 4 * attention
    assert rows["lm_head"].operations == 2 * t * VOCAB * d
    assert total(rows, "operations") == pytest.approx(0.37e12, rel=1e-2)
    written = work_of(LDLMConfig.preset("open-dllm-35b-a3b"), folded=False)
    # The time is one row, not 64.
    assert written["denoiser"].operations - rows["denoiser"].operations == 10 * 2 * (d**2 + d)
    assert written["latent_decoder"].operations - rows["latent_decoder"].operations == 2 * t * 5 * d**2 + attention


def test_a_batch_reads_the_same_weights_and_works_more():
    config = LDLMConfig.preset("ldlm-gpt2")
    for folded in (True, False):
        one, five = work_of(config, folded=folded), work_of(config, batch_size=5, folded=folded)
        assert total(five) == total(one)
        assert total(five, "operations") == 5 * total(one, "operations")


def test_the_first_step_goes_around_the_published_projection():
    plain, projected = (work_of(open_dllm_config(64, 101, proj_in=p), num_steps=7)["denoiser"] for p in (False, True))
    assert projected.weights - plain.weights == 6 * 2 * 64**2
    assert projected.operations - plain.operations == 6 * 2 * 64 * 2 * 64**2


def test_the_written_ldlm_reads_its_modulation_and_its_null_context():
    """Per step and layer: 12 + 4 d^2 of attention and MLP, 6 d^2 of adaLN; then 2 d^2 out, 2 d^2 in, d^2 out, time."""
    d, t, layers = 64, 64, 2
    row = work_of(LDLMConfig.preset("tiny"), num_steps=3, folded=False)["denoiser"]
    one_row = layers * (6 + 2) * d**2 + 2 * d**2 + (256 * d + d**2)
    all_rows = layers * (12 + 2) * d**2 + 2 * d**2 + d**2
    assert row.weights == 3 * (one_row + all_rows)
    attention = layers * (4 * t * t * d + 4 * t * d)
    assert row.operations == 3 * (2 * one_row + 2 * t * all_rows + attention)


@pytest.mark.parametrize(
    "config",
    [
        LDLMConfig.preset("tiny", seq_len=5, hidden_dim=48, latent_dim=24, vocab_size=101),
        LDLMConfig.preset("tiny", seq_len=5, vocab_size=101, context=False, standardize=False),
        LDLMConfig.preset("tiny", seq_len=5, vocab_size=101, guidance_range=(0.5, 5.0)),
        open_dllm_config(64, 101, 5, perceiver_layers=3, denoiser_layers=1),
        open_dllm_config(64, 101, 5, proj_in=True, token_decoder_layers=1),
    ],
    ids=["ldlm", "ldlm without context", "ldlm with guidance", "open-dllm", "open-dllm with proj_in"],
)
def test_folded_work_is_what_a_plan_packs(config):
    steps = 3
    model = FusedSampler(randomized(config), steps, device="cpu", dtype=torch.float32).plan.packed
    rows, latent_decoder, denoiser = work_of(config, steps), model.latent_decoder, model.denoiser
    decoder_parts = (latent_decoder.layers, latent_decoder.key_value, latent_decoder.project_out)
    assert rows["latent_decoder"].weights == packed(*decoder_parts)
    assert rows["token_decoder"].weights == packed(model.token_decoder.layers, model.token_decoder.key_value)
    assert rows["lm_head"].weights == model.lm_head.weight.numel()
    each_step = steps * packed(denoiser.layers, denoiser.project_out)
    skipped = config.first_prediction == "skip"
    assert rows["denoiser"].weights == each_step + (steps - skipped) * packed(denoiser.project_in)


def packed(*parts):
    count = 0
    for part in parts:
        if isinstance(part, FoldedLinear):
            count += part.weight.numel()
        elif isinstance(part, list):
            count += packed(*part)
        elif hasattr(part, "__dict__"):
            count += packed(*vars(part).values())
    return count


def test_the_floor_is_the_larger_of_two():
    card = Card("a card", 100.0, {torch.bfloat16: 10.0}, "made up")
    rows = [Work("one", 300, 20), Work("two", 200, 70)]
    assert floor(rows, card, torch.bfloat16) == Floor(bandwidth=10.0, arithmetic=9.0)
    assert floor(rows, card, torch.float32) == Floor(bandwidth=20.0, arithmetic=None)
    assert Floor(1.0, 2.0).seconds == 2.0 and Floor(3.0, 2.0).seconds == 3.0 and Floor(3.0, None).seconds == 3.0


def test_what_the_cards_reach():
    assert CARDS["h200"].bandwidth == 4.55e12 and CARDS["h200"].rates == {torch.bfloat16: 720e12}
    assert CARDS["rtx5090"].bandwidth == 1.674e12 and CARDS["rtx5090"].rates == {torch.bfloat16: 209.5e12}
    assert CARDS["h200"].provenance.startswith("measured")
    assert CARDS["rtx5090"].provenance.startswith("published, not measured here")


class TestMeasuring:
    cpu = torch.device("cpu")

    def test_bandwidth_counts_both_sides_of_a_copy(self, monkeypatch):
        monkeypatch.setattr("dllm_kernels.utils.device.free_memory", lambda device: 4 * 4000)
        monkeypatch.setattr("dllm_kernels.utils.device.elapsed", lambda call, device: 2.0)
        assert measure_bandwidth(self.cpu) == 2 * 4000 / 2.0

    def test_bandwidth_takes_the_sum_where_it_is_faster(self, monkeypatch):
        seconds = iter([8.0] * 5 + [1.0] * 5)
        monkeypatch.setattr("dllm_kernels.utils.device.free_memory", lambda device: 4 * 4000)
        monkeypatch.setattr("dllm_kernels.utils.device.elapsed", lambda call, device: next(seconds))
        assert measure_bandwidth(self.cpu) == 4000 / 1.0

    def test_the_best_of_several_products(self, monkeypatch):
        seconds = iter([4.0, 3.0, 2.0, 3.0, 4.0])
        monkeypatch.setattr("dllm_kernels.utils.device.elapsed", lambda call, device: next(seconds))
        assert measure_product(self.cpu, torch.float32) == 2 * 2048**3 / 2.0

    def test_a_cpu_is_measured_in_what_it_computes_in(self, monkeypatch):
        asked = []
        monkeypatch.setattr("dllm_kernels.bench.roofline.measure_bandwidth", lambda device: 7.0)
        monkeypatch.setattr("dllm_kernels.bench.roofline.measure_product", lambda device, dtype: asked.append(dtype) or 5.0)
        for dtype in (torch.bfloat16, torch.float64):
            card = this_card(self.cpu, dtype)
            assert (card.bandwidth, card.rates) == (7.0, {dtype: 5.0})
        assert asked == [torch.float32, torch.float64]
