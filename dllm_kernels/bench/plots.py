"""Plots of results as data, which CI compares, and as SVG, which people look at."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dllm_kernels.bench.results import Result
from dllm_kernels.bench.tables import AXES, newest, ours

_SIZE = (7.0, 4.2)


def plots(results: Iterable[Result]) -> dict[str, dict[str, Any]]:
    """By file name, each plot's title, kind and data."""
    found = {}
    for name, groups in newest(results).items():
        word = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        data = {
            "roofline": _roofline(groups),
            "batch": _sweep(groups, "batch"),
            "length": _sweep(groups, "length"),
            "phases": _phases(groups),
        }
        titles = {
            "roofline": f"Roofline of {name}, and where each kernel and generation stands",
            "batch": f"Tokens a second against the batch, {name}",
            "length": f"Tokens a second against the length, {name}",
            "phases": f"Where a generation's time goes, {name}",
        }
        for kind, content in data.items():
            if content["series"]:
                found[f"{word}-{kind}"] = {"kind": kind, "title": titles[kind], "machine": name} | content
    return found


def _roofline(groups: list[Result]) -> dict[str, Any]:
    series = {}
    for result in groups:
        if result.group.startswith(("ops-", "table-")):
            for row in ours(result):
                # The small preset's kernels are launches and nothing else.
                if row.tflops and row.gb_per_s and row.case["preset"] != "tiny":
                    name = row.case.get("op", f"generation, N = {row.case.get('steps')}")
                    series[f"{row.case['preset']}: {name}"] = [[1000 * row.tflops / row.gb_per_s, row.tflops]]
    reached = groups[0].reached
    return {"series": series, "bytes_per_s": reached["bytes_per_s"], "flops": reached["flops"]}


def _sweep(groups: list[Result], axis: str) -> dict[str, Any]:
    series: dict[str, list] = {}
    for result in groups:
        if result.group.startswith(f"sweep-{axis}-"):
            for row in result.rows:
                if row.tokens_per_s:
                    key = f"{row.case['preset']}: {row.contender}"
                    series.setdefault(key, []).append([row.case[AXES[axis]], row.tokens_per_s])
    return {"series": series, "axis": AXES[axis]}


def _phases(groups: list[Result]) -> dict[str, Any]:
    series = {}
    for result in groups:
        if result.group.startswith("table-"):
            for row in ours(result):
                if row.phases_ms:
                    series[f"{row.case['preset']}, N = {row.case['steps']}"] = row.phases_ms
    return {"series": series}


def draw(plot: dict[str, Any], path: Path) -> None:
    """Writes a plot's SVG, the same bytes for the same data and matplotlib.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "dllm-kernels", "svg.fonttype": "none", "font.size": 8}):
        figure, axes = plt.subplots(figsize=_SIZE, layout="constrained")
        {"roofline": _draw_roofline, "phases": _draw_phases}.get(plot["kind"], _draw_sweep)(axes, plot)
        axes.set_title(plot["title"])
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def _draw_roofline(axes, plot) -> None:
    peak, bandwidth = plot["flops"] / 1e12, plot["bytes_per_s"] / 1e12
    points = [point for series in plot["series"].values() for point in series]
    left = min([x for x, _ in points] + [peak / bandwidth]) / 4
    right = max([x for x, _ in points] + [peak / bandwidth]) * 4
    axes.plot([left, peak / bandwidth, right], [left * bandwidth, peak, peak], color="black", label="measured limit")
    for index, (name, series) in enumerate(plot["series"].items()):
        axes.plot(*zip(*series, strict=True), "osD^vPX*"[index % 8], label=name, markersize=5)
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="TFLOP/s")
    axes.legend(fontsize=6)


def _draw_sweep(axes, plot) -> None:
    for name, series in plot["series"].items():
        axes.plot(*zip(*series, strict=True), marker="o", markersize=3, label=name)
    axes.set(xscale="log", yscale="log", xlabel=plot["axis"], ylabel="tok/s")
    axes.legend()


def _draw_phases(axes, plot) -> None:
    names = list(plot["series"])
    left = [0.0] * len(names)
    for phase in next(iter(plot["series"].values())):
        shares = [phases[phase] / sum(phases.values()) for phases in plot["series"].values()]
        axes.barh(names, shares, left=left, label=phase)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.set(xlabel="share of the generation's time", xlim=(0, 1))
    axes.legend(ncols=4)
