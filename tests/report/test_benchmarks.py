"""Documents and plots of results: those in the tree are those of the committed results, byte for byte."""

import json
import re
from pathlib import Path

import pytest

from dllm_kernels.bench import published
from dllm_kernels.bench.documents import documents
from dllm_kernels.bench.peers import EAGER_BF16, GRAPH, OURS, OURS_TRITON, PUBLISHED_FP32
from dllm_kernels.bench.plots import draw, plots
from dllm_kernels.bench.results import SCHEMA, Result, Row, read
from dllm_kernels.bench.tables import BEGIN, END, document, growths, markdown, newest, number, readme

ROOT = Path(__file__).parents[2]
COMMITTED = [path for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")) if SCHEMA in path.read_text()[:100]]
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


def table(machine=H200, day="2026-01-02", preset="open-dllm-35b-a3b", ratio=1.5, unstable=None, published_at=3100.0):
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
        assert {read(path).group.split("-")[0] for path in COMMITTED} >= {"table", "ops", "sweep"}
        assert all(read(path).complete for path in COMMITTED)

    def test_documents(self):
        written = documents(map(read, COMMITTED))
        for name, text in written.items():
            assert (ROOT / "docs" / name).read_text() == text, f"docs/{name}: run dllm-kernels report"
        # Other plots are those of tests/test_quality_documents.py and tests/test_training_documents.py.
        kept = [path for path in (ROOT / "docs" / "plots").iterdir() if not path.name.startswith(("quality-", "training."))]
        data = {path.name for path in kept if path.suffix == ".json"}
        assert data == {name.removeprefix("plots/") for name in written if name.startswith("plots/")}
        assert {path.stem for path in kept if path.suffix == ".svg"} == {name.removesuffix(".json") for name in data}

    def test_the_table_of_the_readme(self):
        text = (ROOT / "README.md").read_text()
        (block,) = re.findall(f"{re.escape(BEGIN)}(.*?){re.escape(END)}", text, re.DOTALL)
        assert block == f"\n\n{readme(map(read, COMMITTED))}\n\n"
        # The README opens with it: before it stands the title and one paragraph.
        assert text.index(BEGIN) < 900

    def test_the_published_figures_are_in_one_place(self):
        figures = [(entry.preset, entry.steps, entry.tokens_per_s, entry.extrapolated) for entry in published.TABLE]
        assert figures == [
            ("open-dllm-35b-a3b", 10, 3238, False),
            ("open-dllm-35b-a3b", 4, 6500, True),
            ("open-dllm-27b", 10, 745, False),
            ("open-dllm-27b", 4, 1500, True),
        ]
        sources = [path for path in (ROOT / "dllm_kernels").rglob("*.py") if re.search(r"\b3_?238\b", path.read_text())]
        assert [path.name for path in sources] == ["published.py"] and "RTX 5090" in published.__doc__


class TestReadme:
    def test_rows(self):
        text = readme([table()])
        assert "| open-dllm-35b-a3b | 10 | 3,238 | 20,100 | 3,100 | 6.49 |" in text
        assert "| open-dllm-35b-a3b | 4 | 6,500 (extrapolated) | 41,000 | 3,100 | 13.2 |" in text
        assert "| open-dllm-27b | 10 | 745 | awaits a card | awaits a card | - |" in text
        assert (
            "on **NVIDIA H200, driver 580, SM at 1975 of 1980 MHz, memory at 3201 MHz, torch 2.11, triton 3.6, CUDA 13.0"
            in text
        )
        assert ", 2026-01-02, commit abc**" in text
        assert "Typed: `pytest x`" in text and "benchmarks/results/2026-01-02-nvidia-h200-table-open-dllm-35b-a3b.json" in text
        assert "Not measured on it: open-dllm-27b N = 10, open-dllm-27b N = 4." in text

    def test_the_ratio_is_to_the_fastest_that_is_not_ours(self):
        result, case = table(), table().rows[0].case
        result.rows += [
            timed(case, OURS_TRITON, 4.0, tokens_per_s=19_000.0),
            timed(case, EAGER_BF16, 5.0, tokens_per_s=10_061.7),
        ]
        assert "| 20,100 | 3,100 | 19,000 | 10,100 | 2 |" in readme([result])
        result.rows[0].tokens_per_s = None
        assert "| - | 3,100 | 19,000 | 10,100 | - |" in readme([result])

    def test_an_unsteady_row_has_no_ratio(self):
        text = readme([table(ratio=None, unstable="throttled")])
        assert "| 20,100 | 3,100 | unstable |" in text and "Unstable, measured up to three times: throttled." in text

    def test_a_card_comes_before_a_newer_cpu_and_a_newer_result_before_an_older(self):
        results = [table(XEON, "2026-03-01"), table(day="2026-01-02"), table(day="2026-02-02", published_at=10_061.7)]
        text = readme(results)
        assert "**NVIDIA H200" in text and "| 2 |" in text and "| 6.49 |" not in text
        assert list(newest(results)) == ["NVIDIA H200", "Xeon"]

    def test_a_cpu_says_that_all_rows_await_a_card(self):
        text = readme([table(XEON)])
        assert "every row awaits a card" in text and "2 cores, 2 threads" in text and "load average 0.1" in text

    def test_no_table(self):
        with pytest.raises(ValueError, match="has a table group"):
            readme([sweep((1, 2), float)])


class TestDocument:
    def test_sections(self):
        results = [table(), sweep((1, 2, 4, 8), lambda x: 1 + 2 * x), table(XEON)]
        text = document(results, plots(results))
        assert (
            text.index("## NVIDIA H200") < text.index("### table-open") < text.index("### sweep-batch") < text.index("## Xeon")
        )
        assert "Measured: 4,200 GB/s, 700 TFLOP/s in bf16" in text
        assert "| 10 | FusedSampler | 20,100 | 3.2 | 2.88 | 3.52 | 1.5 | 2,000 | 80 |" in text
        assert "Without a time: SDPA bf16, CUDA graph: needs a CUDA card." in text and "Left out: a.\n\nLeft out: b." in text
        assert "Growth of FusedSampler: 1 + 2 x^1.00 ms (residual 0.0%), x = batch, 4 points." in text
        assert "![Roofline of NVIDIA H200, and where each kernel and generation stands](plots/nvidia-h200-roofline.svg)" in text

    def test_an_incomplete_or_unsteady_group_says_so(self):
        result = table(unstable="the card was throttled")
        result.complete = False
        text = document([result], {})
        assert "**Incomplete.**" in text
        assert "Not steady: steps 10, batch 1, seq_len 64, prompt 0: the card was throttled; steps 4" in text

    def test_a_clock_that_was_held_down_is_told(self):
        result = sweep((1, 16, 64), float)
        result.rows[0].sm_mhz, result.rows[1].sm_mhz, result.rows[2].sm_mhz = 1965.0, 1815.0, 1650.0
        told = "The SM clock was held down to as little as 1650 of 1980 MHz at: "
        cases = "steps 10, batch 16, seq_len 64, prompt 0; steps 10, batch 64, seq_len 64, prompt 0."
        assert told + cases in document([result], {})
        for row in result.rows:
            row.sm_mhz = 1965.0
        assert "held down" not in document([result], {})

    def test_unsteady_points_are_not_fitted(self):
        result = sweep((1, 2, 4, 8), float)
        result.rows[1].unstable = "throttled"
        assert growths(result) == ["FusedSampler: 3 steady points, too few to fit."]

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            (None, "-"),
            (0, "0"),
            (0.00123456, "0.00123"),
            (1.5, "1.5"),
            (123456.0, "123,000"),
            (0.5, "0.5"),
            (3e-5, "3.0e-05"),
            (99.96, "100"),
        ],
    )
    def test_numbers(self, value, said):
        assert number(value) == said

    def test_markdown(self):
        assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


class TestPlots:
    def test_data(self):
        result = table()
        result.rows.append(timed(result.rows[-1].case, OURS_TRITON, 4.5, phases_ms={"noise": 1.0, "decode": 4.0}))
        found = plots([result, sweep((1, 2), float)])
        assert set(found) == {"nvidia-h200-roofline", "nvidia-h200-batch", "nvidia-h200-phases"}
        assert found["nvidia-h200-roofline"]["series"]["open-dllm-35b-a3b: generation, N = 10"] == [[40.0, 80.0]]
        assert found["nvidia-h200-batch"]["series"] == {"tiny: FusedSampler": [[1, 64.0], [2, 128.0]]}
        assert found["nvidia-h200-phases"]["series"]["open-dllm-35b-a3b, N = 4"] == {"noise": 1.0, "decode": 3.0}

    def test_the_same_data_draws_the_same_file(self, tmp_path):
        for name, plot in plots([table(), sweep((1, 2), float)]).items():
            files = [tmp_path / f"{name}-{number}.svg" for number in range(2)]
            for file in files:
                draw(json.loads(json.dumps(plot)), file)
            first, second = (file.read_bytes() for file in files)
            assert first == second and plot["title"].encode() in first
