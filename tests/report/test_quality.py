"""docs/quality.md: what is in the tree is what the committed evaluations say, byte for byte; and what such a document holds."""

import dataclasses
import json
from pathlib import Path

from dllm_kernels.evaluation.documents import documents, draw, plots
from dllm_kernels.evaluation.results import HUMAN, SCHEMA, Evaluation, Row, read
from tests.cli.command import run

ROOT = Path(__file__).parents[2]
COMMITTED = [path for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")) if SCHEMA in path.read_text()[:100]]
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


class TestCommitted:
    def test_documents(self):
        written = documents(map(read, COMMITTED)) if COMMITTED else {}
        for name, text in written.items():
            assert (ROOT / "docs" / name).read_text() == text, f"docs/{name}: run dllm-kernels report-quality"
        assert (ROOT / "docs" / "quality.md").exists() == bool(COMMITTED)
        data = {f"plots/{path.name}" for path in (ROOT / "docs" / "plots").glob("quality-*.json")}
        assert data == {name for name in written if name.startswith("plots/")}
        drawn = {f"plots/{path.stem}.json" for path in (ROOT / "docs" / "plots").glob("quality-*.svg")}
        assert drawn == data

    def test_they_are_complete(self):
        assert all(read(path).complete for path in COMMITTED)

    def test_what_sampling_md_says_of_the_grid(self):
        own, further = (
            next(e for e in map(read, COMMITTED) if e.title == title)
            for title in ("ldlm-demo", "ldlm-demo, grid log_snr:-4.5:-2.9")
        )
        human = further.row(source=HUMAN)
        assert further.row("ddpm", 50).perplexity < 3 * human.perplexity < own.row("ddpm", 50).perplexity
        assert further.row("ddpm", 50).entropy > 0.9 * human.entropy
        assert own.row("ddpm", 10).perplexity < further.row("ddpm", 10).perplexity


class TestDocument:
    def test_table(self):
        text = documents([evaluation()])["quality.md"]
        assert "| held-out text | - | - | 80 | 6.6 | 3.9 | 0.2 | 0.7 | 0.95 | 0.9 | 0.4% | 63.5 | - |" in text
        assert "| ldlm-demo | dpmpp_2m | 10 | 120 | 6.1 | 3.9 | 0.2 | 0.7 | 0.95 | 0.8 | 0.4% | 63.5 | 20,000 |" in text
        assert "`dllm-kernels evaluate x`, 61 s on NVIDIA H100, torch 2.13, 2026-01-02, commit abc. 20.1 million" in text
        assert "judge: SmolLM2." in text and "Incomplete" not in text and "## Side by side" not in text

    def test_what_the_table_says(self):
        text = documents([evaluation()])["quality.md"]
        assert "At 10 steps of dpmpp_2m perplexity is 1.5 times held-out text's and entropy 0.924 times." in text
        assert "perplexity 120 and 130, entropy 6.1 and 6.5, MAUVE 0.8 and 0.9; not as good in entropy and MAUVE." in text
        worse = evaluation(few=140.0)
        worse.rows[3].entropy = worse.rows[3].mauve = 0.1
        assert "MAUVE 0.8 and 0.1; not as good in perplexity." in documents([worse])["quality.md"]
        worse.rows[3].perplexity = 150.0
        assert "MAUVE 0.8 and 0.1; at least as good in all three." in documents([worse])["quality.md"]

    def test_samples_are_shown_of_one_setting(self):
        text = documents([evaluation()])["quality.md"]
        assert "> and he went out\n\n> so be it" in text and "not shown" not in text

    def test_abilities(self):
        shares = {"continuations": 0.81, "lift": 0.9, "prompts": 0.92, "pairs": 512, "prompt_len": 32}
        text = documents([evaluation(reconstruction={"accuracy": 0.98123, "tokens": 32768}, prompts=shares)])["quality.md"]
        assert "The autoencoder gives back 98.12% of 32,768 held-out tokens." in text
        assert "Prompts of 32 tokens, 512 held-out pairs" in text
        assert "another's in 81.0% of them, in 90.0% after" in text and "after another's in 92.0%." in text

    def test_what_was_not_measured(self):
        bare = evaluation(left_out=["memorisation: no training text was given"], complete=False)
        bare.rows = [row(HUMAN, None, mauve=None)]
        bare.rows[0].memorised = None
        written = documents([bare])
        assert list(written) == ["quality.md"]
        assert "| held-out text | - | - | - | 6.5 | 3.9 | 0.2 | 0.7 | 0.95 | - | - | 63.5 | - |" in written["quality.md"]
        assert "**Incomplete.**" in written["quality.md"]
        assert "Left out: memorisation: no training text was given." in written["quality.md"]

    def test_the_newest_of_a_model_counts(self):
        old = evaluation(few=999.0, day="2025-12-31")
        assert documents([evaluation(), old]) == documents([old, evaluation()]) == documents([evaluation()])

    def test_models_stand_side_by_side(self):
        two = [evaluation(), evaluation("ablation: no warm-up", 240.0, reconstruction={"accuracy": 0.5, "tokens": 10})]
        text = documents(two)["quality.md"]
        assert "| ablation: no warm-up | 50.00% | 240 | 80 | 6.1 | 6.6 | 0.8 | 0.4% | - |" in text
        assert "| ldlm-demo | - | 120 | 80 | 6.1 | 6.6 | 0.8 | 0.4% | - |" in text
        assert "At 10 steps of dpmpp_2m.\n" in text and "At 50 steps of ddpm.\n" in text
        assert set(plots(two)) == {"quality-ldlm-demo", "quality-ablation-no-warm-up"}

    def test_another_grid_stands_beside_the_models_own(self):
        other = dataclasses.replace(evaluation(few=90.0), settings=SETTINGS | {"grid": "log_snr:-4.5:-2.9"})
        text = documents([evaluation(), other])["quality.md"]
        assert "| ldlm-demo, grid log_snr:-4.5:-2.9 | - | 90 | 80 |" in text and "| ldlm-demo | - | 120 | 80 |" in text
        assert "\n## ldlm-demo, grid log_snr:-4.5:-2.9\n" in text
        assert "quality-ldlm-demo-grid-log-snr-4-5-2-9" in plots([other])

    def test_the_most_thorough_comes_first(self):
        other = evaluation("ablation: no warm-up", 240.0)
        other.rows.pop()
        for both in ([evaluation(), other], [other, evaluation()]):
            text = documents(both)["quality.md"]
            assert text.index("\n## ldlm-demo\n") < text.index("\n## ablation: no warm-up\n")


class TestPlots:
    def test_data(self):
        plot = plots([evaluation()])["quality-ldlm-demo"]
        assert plot["series"] == {"ddim": [[4, 400.0, 6.5], [25, 130.0, 6.5]], "dpmpp_2m": [[10, 120.0, 6.1]]}
        assert plot["beside"] == {HUMAN: [80.0, 6.6], "SmolLM2": [20.0, 6.5]}

    def test_the_command_writes_the_document_and_the_same_plot_each_time(self, tmp_path):
        evaluation().write(tmp_path / "a.json")
        assert read(tmp_path / "a.json") == evaluation()
        run("report-quality", tmp_path / "a.json", "--docs", tmp_path)
        for name, text in documents([evaluation()]).items():
            assert (tmp_path / name).read_text() == text
        first = (tmp_path / "plots" / "quality-ldlm-demo.svg").read_bytes()
        draw(json.loads((tmp_path / "plots" / "quality-ldlm-demo.json").read_text()), tmp_path / "again.svg")
        assert (tmp_path / "again.svg").read_bytes() == first and b"ldlm-demo, judged by SmolLM2" in first
