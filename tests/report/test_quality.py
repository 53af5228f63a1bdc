"""docs/quality.md: what it says of evaluations, and the plots' data."""

import dataclasses
import re

from benchmarks.report.drawing import LIGHT, svg
from benchmarks.report.pages import committed
from benchmarks.report.quality import chosen, document
from benchmarks.report.quality_plots import MODELS, draw, plots
from dllm_kernels.evaluation.results import HUMAN, SCHEMA, Evaluation, Row, read

COMMITTED = committed(SCHEMA, read)
MACHINE = {"name": "NVIDIA H100", "torch": "2.13", "commit": "abc", "device": "cuda"}
SETTINGS = {"samples": 512, "seq_len": 64, "grid": "auto", "batch": 64, "dtype": "bf16", "temperature": 0.0, "seed": 0}


def row(source, perplexity, solver=None, steps=None, entropy=6.5, mauve=0.9, **fields):
    measured = {"mean_entropy": 3.9, "distinct_1": 0.2, "distinct_2": 0.7, "distinct_3": 0.95, "memorised": 0.004}
    return Row(source, 512, 63.5, entropy, **measured, perplexity=perplexity, mauve=mauve, solver=solver, steps=steps, **fields)


def evaluation(model="ldlm-demo", few=120.0, **fields):
    rows = [
        row(HUMAN, 80.0, entropy=6.6),
        row("SmolLM2", 20.0, tokens_per_s=1234.0),
        row(model, 400.0, "ddim", 4, tokens_per_s=50_000.0),
        row(model, 130.0, "ddim", 25, tokens_per_s=9_000.0, examples=["not shown"]),
        row(model, few, "dpmpp_2m", 10, 6.1, 0.8, tokens_per_s=20_000.0, examples=["and he went\nout", "so be it"]),
    ]
    told = {"rows": rows, "day": "2026-01-02", "took_s": 61.0, "complete": True} | fields
    return Evaluation(model, "dllm-kernels evaluate x", MACHINE, "SmolLM2", SETTINGS, 20_100_000, **told)


def page(evaluations):
    """docs/quality.md of these."""
    return document(chosen(evaluations), plots(chosen(evaluations)))


class TestCommitted:
    def test_they_are_complete(self):
        assert COMMITTED and all(evaluation.complete for evaluation in COMMITTED)

    def test_what_sampling_md_says_of_the_grid(self):
        own, further = (
            next(e for e in COMMITTED if e.title == title) for title in ("ldlm-demo", "ldlm-demo, grid log_snr:-4.5:-2.9")
        )
        human = further.row(source=HUMAN)
        assert further.row("ddpm", 50).perplexity < 3 * human.perplexity < own.row("ddpm", 50).perplexity
        assert further.row("ddpm", 50).entropy > 0.9 * human.entropy
        assert own.row("ddpm", 10).perplexity < further.row("ddpm", 10).perplexity


class TestDocument:
    def test_further_judges_have_columns_beside_the_first(self):
        rows = [row(HUMAN, 80.0, other_perplexities={"Gemma": 40.0, "3-gram": 311.0}), row("SmolLM2", 20.0)]
        text = page([evaluation(rows=rows)])
        assert "| perplexity | perplexity, Gemma | perplexity, 3-gram | entropy |" in text
        assert "| held-out text | - | - | 80 | 40 | 311 | 6.5 |" in text and "| SmolLM2 | - | - | 20 | - | - | 6.5 |" in text
        assert "| perplexity, by another judge | the same by that model. 3-gram is" in text

    def test_table(self):
        text = page([evaluation()])
        assert "| held-out text | - | - | 80 | 6.6 | 3.9 | 0.2 | 0.7 | 0.95 | 0.9 | 0.4% | 63.5 | - |" in text
        assert "| ldlm-demo | dpmpp_2m | 10 | 120 | 6.1 | 3.9 | 0.2 | 0.7 | 0.95 | 0.8 | 0.4% | 63.5 | 20,000 |" in text
        assert "`dllm-kernels evaluate x`, 61 s on NVIDIA H100, torch 2.13, 2026-01-02, commit abc. 20.1 million" in text
        assert "by another judge" not in text
        assert "judge: SmolLM2." in text and "Incomplete" not in text and "## Side by side" not in text

    def test_what_the_table_says(self):
        text = page([evaluation()])
        assert "At 10 steps of dpmpp_2m perplexity is 1.5 times that of held-out text, and entropy 0.924 times." in text
        assert (
            "10 steps of dpmpp_2m against 25 of ddim: perplexity 120 against 130, entropy 6.1 against 6.5, MAUVE 0.8 against "
            "0.9." in text
        )
        assert "They are not as good in entropy and MAUVE." in text
        worse = evaluation(few=140.0)
        worse.rows[3].entropy = worse.rows[3].mauve = 0.1
        assert "MAUVE 0.8 against 0.1. They are not as good in perplexity." in page([worse])
        worse.rows[3].perplexity = 150.0
        assert "MAUVE 0.8 against 0.1. They are at least as good in all three." in page([worse])

    def test_samples_are_shown_of_one_setting(self):
        text = page([evaluation()])
        assert "> and he went out\n\n> so be it" in text and "not shown" not in text

    def test_abilities(self):
        shares = {"continuations": 0.81, "lift": 0.9, "prompts": 0.92, "pairs": 512, "prompt_len": 32}
        text = page([evaluation(reconstruction={"accuracy": 0.98123, "tokens": 32768}, prompts=shares)])
        assert "The autoencoder gives back 98.12% of 32,768 held-out tokens." in text
        assert "compares 512 held-out pairs by the denoising loss, after prompts of 32 tokens." in text
        assert "another's in 81.0% of the pairs." in text and "taken off, that is 90.0%." in text
        assert "after its own prompt than after another's in 92.0%." in text

    def test_what_was_not_measured(self):
        bare = evaluation(left_out=["memorisation: no training text was given"], complete=False)
        bare.rows = [row(HUMAN, None, mauve=None)]
        bare.rows[0].memorised = None
        written = page([bare])
        assert plots([bare]) == {}
        assert "| held-out text | - | - | - | 6.5 | 3.9 | 0.2 | 0.7 | 0.95 | - | - | 63.5 | - |" in written
        assert "**Incomplete.**" in written
        assert "Left out: memorisation: no training text was given." in written

    def test_the_newest_of_a_model_counts(self):
        old = evaluation(few=999.0, day="2025-12-31")
        assert page([evaluation(), old]) == page([old, evaluation()]) == page([evaluation()])

    def test_models_stand_side_by_side(self):
        two = [evaluation(), evaluation("ablation: no warm-up", 240.0, reconstruction={"accuracy": 0.5, "tokens": 10})]
        text = page(two)
        assert "| ablation: no warm-up | 50.00% | 240 | 80 | 6.1 | 6.6 | 0.8 | 0.4% | - |" in text
        assert "| ldlm-demo | - | 120 | 80 | 6.1 | 6.6 | 0.8 | 0.4% | - |" in text
        assert "At 10 steps of dpmpp_2m.\n" in text and "At 50 steps of ddpm.\n" in text
        assert set(plots(two)) == {"quality-ldlm-demo", "quality-ablation-no-warm-up", MODELS}

    def test_another_grid_stands_beside_the_models_own(self):
        other = dataclasses.replace(evaluation(few=90.0), settings=SETTINGS | {"grid": "log_snr:-4.5:-2.9"})
        text = page([evaluation(), other])
        assert "| ldlm-demo, grid log_snr:-4.5:-2.9 | - | 90 | 80 |" in text and "| ldlm-demo | - | 120 | 80 |" in text
        assert "\n## ldlm-demo, grid log_snr:-4.5:-2.9\n" in text
        assert "quality-ldlm-demo-grid-log-snr-4-5-2-9" in plots([other])

    def test_the_most_thorough_comes_first(self):
        other = evaluation("ablation: no warm-up", 240.0)
        other.rows.pop()
        for both in ([evaluation(), other], [other, evaluation()]):
            text = page(both)
            assert text.index("\n## ldlm-demo\n") < text.index("\n## ablation: no warm-up\n")


class TestPlots:
    def test_data(self):
        plot = plots([evaluation()])["quality-ldlm-demo"]
        assert plot["series"] == {"ddim": [[4, 400.0, 6.5], [25, 130.0, 6.5]], "dpmpp_2m": [[10, 120.0, 6.1]]}
        assert plot["beside"] == {HUMAN: [80.0, 6.6], "SmolLM2": [20.0, 6.5]}

    def test_a_model_with_few_numbers_of_steps_stands_beside_others_only(self):
        few = evaluation("few")
        few.rows.pop()
        found = plots([evaluation(), few])
        assert set(found) == {"quality-ldlm-demo", MODELS} and list(found[MODELS]["models"]) == ["ldlm-demo", "few"]
        measures = {"perplexity": 120.0, "entropy": 6.1, "mauve": 0.8}
        human = {"perplexity": 80.0, "entropy": 6.6, "mauve": 0.9}
        assert found[MODELS]["models"]["ldlm-demo"] == {"10 steps of dpmpp_2m": measures, HUMAN: human}

    def test_pictures_name_their_lines(self):
        drawn = {name: svg(plot, draw, LIGHT) for name, plot in plots([evaluation(), evaluation("other")]).items()}
        told = {name: set(re.findall(r"<text[^>]*>([^<]*)</text>", text)) for name, text in drawn.items()}
        assert {"Quality of ldlm-demo by steps", "ddim", "dpmpp_2m", HUMAN, "4", "10", "25"} <= told["quality-ldlm-demo"]
        assert {"ldlm-demo", "other", "MAUVE", "generative perplexity"} <= told[MODELS]
