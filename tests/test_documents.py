"""Figures in docs/ are those of the committed measurements."""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "2026-11-24-h200-kernels.json").read_text())
KERNELS = (ROOT / "docs" / "kernels.md").read_text()


def test_the_table_of_the_streamed_linear():
    rows = RESULTS["linear_d2048"] + RESULTS["linear_d5120_with_a_block_barrier_replaced_by_mbarriers"]
    assert len(rows) == 9
    for r in rows:
        ratio = r["library_us"] / r["us"]
        figures = f"{r['library_us']:.2f} | {r['us']:.2f} | {r['gb_per_s']:,} | {ratio:.2f}"
        assert f"| {r['outputs']} x {r['width']} | {figures} |" in KERNELS


def test_the_generation():
    graph, streamed = (row["ms_p20_p50_p80"][1] for row in RESULTS["generation"])
    for name in ("docs/kernels.md", "README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text()
        assert f"{graph:.2f} ms" in text and f"{streamed:.2f} ms" in text and f"{graph / streamed:.2f}" in text, name


def test_the_table_of_attention():
    best = {}
    for row in RESULTS["attention"]:
        best[row["shape"]] = min(best.get(row["shape"], 1e9), row["us"])
    shapes = ("B1 T64 H8 D256", "B1 T64 H8 D640", "B4 T64 H8 D256", "B16 T64 H8 D256", "B1 T256 H8 D256", "B1 T256 H8 D640")
    for shape in (*shapes, "B1 T64 H16 D128 causal"):
        assert f"| {best[shape]:.2f} |" in KERNELS, shape


def test_the_table_of_cuts_is_what_was_measured():
    measured = {(r["outputs"], r["width"]): r for r in RESULTS["linear_d2048"]}
    for entry in json.loads((ROOT / "dllm_kernels" / "kernels" / "stream.json").read_text())["entries"]:
        row = measured[entry["outputs"], entry["width"]]
        assert {k: entry[k] for k in ("tile", "slices", "stages", "us", "library_us")} == {
            k: row[k] for k in ("tile", "slices", "stages", "us", "library_us")
        }
