"""Figures in docs/ are those of the committed measurements."""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "2026-11-24-h200-streamed.json").read_text())
KERNELS = (ROOT / "docs" / "kernels.md").read_text()


def test_the_tables_of_the_streamed_linear():
    assert {row["row_tiles"] for row in RESULTS["linear"]} == {1, 2, 4}
    for row in RESULTS["linear"]:
        us, library_us = row["us"], row["library_us"]
        rate = 2 * row["outputs"] * row["width"] / us / 1e3
        few = f"{library_us:.2f} | {us:.2f} | {rate:,.0f} | {library_us / us:.2f} |"
        many = f"{64 * row['row_tiles']} | {library_us:.2f} | {us:.2f} | {library_us / us:.2f} |"
        assert f"| {row['outputs']} x {row['width']} | {few if row['row_tiles'] == 1 else many}\n" in KERNELS


def test_the_range_of_ratios():
    ratios = {width: [] for width in (2048, 5120)}
    for row in RESULTS["linear"]:
        if row["row_tiles"] == 1:
            ratios[min(row["outputs"], row["width"])].append(row["library_us"] / row["us"])
    for name in ("README.md", "CONTRIBUTING.md"):
        for found in ratios.values():
            assert f"{min(found):.2f} to {max(found):.2f}" in (ROOT / name).read_text(), name


def test_the_table_of_versions():
    for _, *times in RESULTS["tried_us"]["versions"]:
        assert f"| {' / '.join(f'{us:.1f}' for us in times)} |" in KERNELS


def test_the_table_of_generations():
    times = {name: spread[1] for name, spread in RESULTS["generation"]["ms"].items()}
    for name, ms in times.items():
        assert f"| {name} | {ms:.2f} | {ms / times['FusedSampler']:.2f} |\n" in KERNELS
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text()
        for ms in times.values():
            assert f"{ms:.2f} ms" in text, (name, ms)
        assert f"{times['torch.compile, CUDA graph'] / times['FusedSampler']:.2f}" in text, name
    assert f"{RESULTS['generation_of_64']['ms']['FusedSampler'][1]:.2f} ms" in KERNELS
    assert f"{RESULTS['generation_portable']['ms']['FusedSampler'][1]:.2f} ms" in KERNELS


def test_the_sum_of_a_generations_launches():
    of = {(row["outputs"], row["width"]): row["us"] for row in RESULTS["linear"] if row["row_tiles"] == 1}
    attention = next(20 * row["cuda"][1] for row in RESULTS["attention"] if (row["batch"], row["head_dim"]) == (1, 256))
    layer = sum(of[shape] for shape in ((6144, 2048), (2048, 2048), (8192, 2048), (2048, 8192))) + attention
    assert f"should take {40 * layer / 1000:.2f} ms by the table" in KERNELS


def test_the_table_of_attention():
    for row in RESULTS["attention"]:
        shape = f"{row['batch']} | {row['length']} | {row['heads']} x {row['head_dim']}{', causal' if row['causal'] else ''}"
        times = " | ".join(f"{20 * row[backend][1]:.2f}" for backend in ("cuda", "triton", "torch"))
        assert f"| {shape} | {times} |\n" in KERNELS


def test_the_table_of_lm_head():
    for row in RESULTS["lm_head"]:
        names = ("streamed", "with log-probabilities", "F.linear, argmax", "F.linear")
        times = " | ".join(f"{1000 * row[name][1]:.0f}" for name in names)
        ratio = row["F.linear, argmax"][1] / row["streamed"][1]
        assert f"| {row['width']} | {times} | {ratio:.2f} |\n" in KERNELS


def test_the_table_of_cuts_is_what_was_measured():
    entries = json.loads((ROOT / "dllm_kernels" / "kernels" / "stream.json").read_text())["entries"]
    keys = RESULTS["linear"][0].keys()
    assert [{key: entry[key] for key in keys} for entry in entries] == RESULTS["linear"]
