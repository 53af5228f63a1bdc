"""docs/benchmarks.md and the README's block: what they say of results, and the plots' data."""

import re

import pytest

from benchmarks.report import published
from benchmarks.report.benchmarks import document, growths
from benchmarks.report.drawing import LIGHT, svg
from benchmarks.report.harness import newest
from benchmarks.report.pages import BEGIN, ROOT, committed, table
from benchmarks.report.readme import block
from benchmarks.report.speed_plots import draw, plots, readme_plot
from dllm_kernels.bench.peers import COMPILED, EAGER_BF16, GRAPH, OURS, OURS_TRITON, PUBLISHED_FP32
from dllm_kernels.bench.results import SCHEMA, Result, Row, read

COMMITTED = committed(SCHEMA, read)
H200 = {
    "name": "NVIDIA H200",
    "device": "cuda",
    "torch": "2.11",
    "triton": "3.6",
    "cuda": "13.0",
    "commit": "abc",
    "driver": "580",
    "most_sm_mhz": 1980,
    "memory_mhz": 3201,
}
XEON = {"name": "Xeon", "device": "cpu", "cores": 2, "threads": 2, "load_average": 0.1, "torch": "2.13", "triton": "3.9"}
XEON |= {"cuda": None, "commit": "abc"}
REACHED = {"bytes_per_s": 4.2e12, "flops": 7e14}


def timed(case, contender, ms, **fields):
    return Row(case, contender, ms, ms * 0.9, ms * 1.1, 9, **fields)


def measured(machine=H200, day="2026-01-02", preset="open-dllm-35b-a3b", ratio=1.5, unstable=None, published_at=3100.0):
    rows = []
    for steps, tokens in ((10, 20_123.4), (4, 41_000.0)):
        case = {"preset": preset, "steps": steps, "batch": 1, "seq_len": 64, "prompt": 0}
        rates = {"gb_per_s": 2000.0, "tflops": 80.0}
        ours = timed(case, OURS, 3.2, tokens_per_s=tokens, ratio=ratio, phases_ms={"noise": 1.0, "decode": 3.0}, **rates)
        clock = 1975.0 if machine["device"] == "cuda" else None
        theirs = timed(case, PUBLISHED_FP32, 20.0, tokens_per_s=published_at, sm_mhz=clock)
        rows += [ours, theirs, Row(case, GRAPH, reason="needs a CUDA card")]
    for row in rows:
        row.unstable = unstable if row.ms else None
    return Result(f"table-{preset}", "pytest x", machine, REACHED, day, EAGER_BF16, ["a", "b"], True, 61.0, rows)


def sweep(values, law):
    cases = [{"preset": "tiny", "steps": 10, "batch": value, "seq_len": 64, "prompt": 0} for value in values]
    rows = [timed(case, OURS, law(case["batch"]), tokens_per_s=64.0 * case["batch"]) for case in cases]
    return Result("sweep-batch-tiny", "pytest y", H200, REACHED, "2026-01-02", GRAPH, complete=True, rows=rows)


class TestCommitted:
    def test_there_is_one_of_each_kind(self):
        assert {result.group.split("-")[0] for result in COMMITTED} >= {"table", "ops", "sweep"}
        assert all(result.complete for result in COMMITTED)

    def test_the_readme_opens_with_its_block(self):
        assert (ROOT / "README.md").read_text().index(BEGIN.format("begin")) < 900

    def test_the_published_figures_are_in_one_place(self):
        figures = [(entry.preset, entry.steps, entry.tokens_per_s, entry.extrapolated) for entry in published.TABLE]
        assert figures == [
            ("open-dllm-35b-a3b", 10, 3238, False),
            ("open-dllm-35b-a3b", 4, 6500, True),
            ("open-dllm-27b", 10, 745, False),
            ("open-dllm-27b", 4, 1500, True),
        ]
        sources = [path for name in ("dllm_kernels", "benchmarks") for path in (ROOT / name).rglob("*.py")]
        sources = [path for path in sources if re.search(r"\b3_?238\b", path.read_text())]
        assert [path.name for path in sources] == ["published.py"] and "RTX 5090" in published.__doc__


class TestReadme:
    def test_rows(self):
        text = block([measured()])
        assert f"| open-dllm-35b-a3b, 10 steps | 20,100 | {PUBLISHED_FP32}: 3,100 | 6.49 |" in text
        assert f"| open-dllm-35b-a3b, 4 steps | 41,000 | {PUBLISHED_FP32}: 3,100 | 13.23 |" in text
        assert "| open-dllm-27b, 10 steps | awaits a card | - | - |" in text

    def test_what_was_measured_is_one_line(self):
        said = (
            "One NVIDIA H200, 64 tokens, batch 1, random weights; 2026-01-02, commit abc. Measure it: "
            "`pytest benchmarks/ --benchmark-only --groups table-open-dllm-27b,table-open-dllm-35b-a3b`. "
            "Every row: [docs/benchmarks.md](docs/benchmarks.md)."
        )
        assert block([measured(preset="open-dllm-27b"), measured()]).splitlines()[-1] == said

    def test_it_shows_the_plot(self):
        text = block([measured()])
        assert text.startswith("<picture>\n") and 'srcset="docs/plots/readme-dark.svg"' in text
        assert '<img alt="Tokens a second beside peers on one NVIDIA H200" src="docs/plots/readme-light.svg">' in text

    def test_the_ratio_is_to_the_fastest_that_is_not_ours(self):
        result, case = measured(), measured().rows[0].case
        result.rows += [
            timed(case, OURS_TRITON, 4.0, tokens_per_s=19_000.0),
            timed(case, EAGER_BF16, 5.0, tokens_per_s=10_061.7),
        ]
        assert f"| 20,100 | {EAGER_BF16}: 10,100 | 2.00 |" in block([result])
        result.rows[0].tokens_per_s = None
        assert f"| - | {EAGER_BF16}: 10,100 | - |" in block([result])
        result.rows = result.rows[:1]
        assert "| open-dllm-35b-a3b, 10 steps | - | - | - |" in block([result])

    def test_an_unsteady_row_has_no_ratio(self):
        assert f"| 20,100 | {PUBLISHED_FP32}: 3,100 | unstable |" in block([measured(ratio=None, unstable="throttled")])

    def test_a_card_comes_before_a_newer_cpu_and_a_newer_result_before_an_older(self):
        results = [measured(XEON, "2026-03-01"), measured(day="2026-01-02"), measured(day="2026-02-02", published_at=10_061.7)]
        text = block(results)
        assert "One NVIDIA H200" in text and "| 2.00 |" in text and "| 6.49 |" not in text
        assert list(newest(results)) == ["NVIDIA H200", "Xeon"]

    def test_a_cpu_says_that_all_rows_await_a_card(self):
        assert "every row awaits a card" in block([measured(XEON)])

    def test_no_table(self):
        with pytest.raises(ValueError, match="has a table group"):
            block([sweep((1, 2), float)])


class TestDocument:
    def test_sections(self):
        results = [measured(), sweep((1, 2, 4, 8), lambda x: 1 + 2 * x), measured(XEON)]
        text = document(results, plots(results))
        assert (
            text.index("## NVIDIA H200") < text.index("### table-open") < text.index("### sweep-batch") < text.index("## Xeon")
        )
        assert "measured to read or copy 4,200 GB/s and to compute 700 TFLOP/s in bf16." in text
        assert "| 10 | FusedSampler | 20,100 | 3.2 | 2.88 | 3.52 | 1.5 | 2,000 | 80 |" in text
        assert "Without a time: SDPA bf16, CUDA graph: needs a CUDA card." in text and "Left out: a.\n\nLeft out: b." in text
        assert "Time of FusedSampler: 1 + 2 x^1.00 ms (residual 0.0%), where x is batch; fitted to 4 points." in text
        assert '<img alt="Roofline of NVIDIA H200" src="plots/nvidia-h200-roofline-light.svg">' in text

    def test_the_published_figures_stand_beside_every_contender(self):
        text = document([measured()], {})
        assert "| open-dllm-35b-a3b | 10 | 3,238 | 20,100 | 3,100 | 6.49 |" in text
        assert "| open-dllm-35b-a3b | 4 | 6,500 (extrapolated) | 41,000 | 3,100 | 13.23 |" in text
        assert "| open-dllm-27b | 10 | 745 | awaits a card | awaits a card | - |" in text
        assert "on NVIDIA H200, driver 580, SM at 1975 of 1980 MHz, memory at 3201 MHz, torch 2.11, triton 3.6" in text
        assert ", 2026-01-02, commit abc. The contenders" in text
        assert "Not measured on it: open-dllm-27b, N = 10; open-dllm-27b, N = 4." in text
        unsteady = document([measured(ratio=None, unstable="throttled")], {})
        assert (
            "| 20,100 | 3,100 | unstable |" in unsteady
            and "Not steady, though measured up to three times: throttled." in unsteady
        )
        assert "Beside the published figures" not in document([sweep((1, 2), float)], {})

    def test_shapes_are_told_in_the_fields_letters(self):
        result = measured()
        result.group = "ops-tiny"
        shapes = [
            {"op": "linear up", "rows": 64, "outputs": 8192, "width": 2048},
            {"op": "attention", "rows": 64, "heads": 8, "head_dim": 256, "causal": 1},
            {"op": "LayerNorm", "rows": 64, "width": 2048},
        ]
        result.rows = [timed({"preset": "tiny"} | shape, "ours", 0.01) for shape in shapes]
        text = document([result], {})
        for shape in ("M 64, N 8192, K 2048", "64 tokens, 8 heads of 256, causal", "64 x 2048"):
            assert f"| {shape} | ours | 10 |" in text

    def test_an_incomplete_or_unsteady_group_says_so(self):
        result = measured(unstable="the card was throttled")
        result.complete = False
        text = document([result], {})
        assert "**Incomplete.**" in text
        assert "Not steady: steps 10, batch 1, seq_len 64, prompt 0: the card was throttled; steps 4" in text

    def test_a_clock_that_was_held_down_is_told(self):
        result = sweep((1, 16, 64), float)
        result.rows[0].sm_mhz, result.rows[1].sm_mhz, result.rows[2].sm_mhz = 1965.0, 1815.0, 1650.0
        told = "Power or heat held the SM clock down, to as little as 1650 of 1980 MHz, at: "
        cases = "steps 10, batch 16, seq_len 64, prompt 0; steps 10, batch 64, seq_len 64, prompt 0."
        assert told + cases in document([result], {})
        for row in result.rows:
            row.sm_mhz = 1965.0
        assert "held the SM clock" not in document([result], {})

    def test_unsteady_points_are_not_fitted(self):
        result = sweep((1, 2, 4, 8), float)
        result.rows[1].unstable = "throttled"
        assert growths(result) == ["Time of FusedSampler: 3 steady points, too few to fit."]

    def test_a_table(self):
        assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


class TestPlots:
    def test_data(self):
        result = measured()
        result.rows.append(timed(result.rows[-1].case, OURS_TRITON, 4.5, phases_ms={"noise": 1.0, "decode": 4.0}))
        found = plots([result, sweep((1, 2), float)])
        assert set(found) == {"nvidia-h200-roofline", "nvidia-h200-batch", "nvidia-h200-phases"}
        assert found["nvidia-h200-roofline"]["series"]["open-dllm-35b-a3b: generation, N = 10"] == [40.0, 80.0]
        assert found["nvidia-h200-batch"]["series"] == {"tiny: FusedSampler": [[1, 64.0], [2, 128.0]]}
        assert found["nvidia-h200-phases"]["series"]["open-dllm-35b-a3b, N = 4"] == {"noise": 1.0, "decode": 3.0}

    def test_the_limit_of_a_sweep_is_the_floors_and_unsteady_points_are_known(self):
        result = sweep((1, 2), lambda batch: 10.0)
        result.rows[0].floor_ms, result.rows[1].floor_ms, result.rows[1].unstable = 4.0, 8.0, "throttled"
        plot = plots([result])["nvidia-h200-batch"]
        assert plot["floors"] == {"tiny": [[1, 16_000.0], [2, 16_000.0]]} and plot["unsteady"] == {"tiny: FusedSampler": [2]}
        assert plot["fixed"] == {"steps": 10, "seq_len": 64}

    def test_the_readmes_data(self):
        result = measured()
        result.rows[0].floor_ms = 2.0
        result.rows.append(timed(result.rows[0].case, COMPILED, 4.0, tokens_per_s=16_000.0))
        plot = readme_plot([result, measured(XEON)])
        assert plot["title"] == "Tokens a second on one NVIDIA H200"
        (panel,) = plot["panels"]
        assert (panel["preset"], panel["steps"], panel["published"], panel["floor"]) == ("open-dllm-35b-a3b", 10, 3238, 32_000)
        names = ["FusedSampler", "torch.compile, CUDA graph", "published code, fp32"]
        assert list(panel["tokens_per_s"]) == names and panel["tokens_per_s"]["FusedSampler"] == 20_123.4

    def test_every_kind_is_drawn_and_names_its_machine_and_lines(self):
        result = measured()
        result.rows[0].floor_ms = 2.0
        found = plots([result, sweep((1, 2, 64), float)])
        texts = {name: words(svg(plot, draw, LIGHT)) for name, plot in found.items()}
        for name, plot in found.items():
            assert plot["title"] in texts[name] and "NVIDIA H200" in plot["title"]
        assert {"memory, measured: 4,200 GB/s", "bf16 products, measured: 700 TFLOP/s"} <= texts["nvidia-h200-roofline"]
        assert {"generation, N = 10", "TFLOP/s"} <= texts["nvidia-h200-roofline"]
        assert {"1", "2", "64", "FusedSampler", "samples in a batch", "tokens a second"} <= texts["nvidia-h200-batch"]
        assert {"noise", "decode", "25%", "75%", "4 ms"} <= texts["nvidia-h200-phases"]
        told = words(svg(readme_plot([result]), draw, LIGHT))
        assert {"20,100", "3,100", "3,238", "not measured here", "roofline limit of this card: 32,000"} <= told

    def test_a_roofline_names_ten_points_at_most(self):
        result = measured()
        result.group, rates = "ops-x", {"tflops": 80.0, "gb_per_s": 2000.0}
        cases = [{"preset": "open-dllm-35b-a3b", "op": f"op {number}"} for number in range(14)]
        result.rows = [timed(case, "ours", 0.01, **rates) for case in cases]
        (plot,) = plots([result]).values()
        told = words(svg(plot, draw, LIGHT))
        assert len(plot["series"]) == 14 and len([word for word in told if word.startswith("op ")]) == 10


def words(picture):
    """The texts of a picture."""
    return set(re.findall(r"<text[^>]*>([^<]*)</text>", picture)) | set(re.findall(r"<tspan[^>]*>([^<]*)</tspan>", picture))
