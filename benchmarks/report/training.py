"""The block of docs/training.md: a table and a plot of training runs.

A run is a folder benchmarks/results/training/NAME with the settings.json and metrics.jsonl that `dllm-kernels train` left.
"""

import itertools
import json
from typing import Any

from matplotlib.figure import Figure

from benchmarks.report.drawing import Label, Theme, canvas, headline, name_ends, plain
from benchmarks.report.drawing import files as plot_files
from benchmarks.report.pages import RESULTS, ROOT, picture, table, within
from dllm_kernels.bench.wording import number
from dllm_kernels.training.settings import Settings

RUNS = RESULTS / "training"
PAGE, PLOT = "docs/training.md", "training"
BUNDLED = "ldlm-demo"
CURVES = {"diffusion": "L_diff", "hidden": "L_h", "accuracy": "tokens reconstructed"}
"""The held-out measures that are drawn, and their names."""


def files() -> dict[str, str]:
    """By path: the page with its block, and the plot."""
    page = within((ROOT / PAGE).read_text(), "runs", block())
    return {PAGE: page} | plot_files(PLOT, plot(), draw)


def runs() -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """By name: a run's settings and its lines of metrics."""
    found = {}
    for folder in sorted(path for path in RUNS.iterdir() if path.is_dir()):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        settings = json.loads((folder / "settings.json").read_text())
        found[folder.name] = settings | Settings.recorded(settings), lines
    return found


def changed(settings: dict[str, Any], base: dict[str, Any]) -> str:
    """What a run was told otherwise than `base`, of its model, recipe and optimizer."""
    told = []
    for section in ("model", "recipe", "optimizer"):
        for name, value in settings[section].items():
            if value != base[section].get(name):
                told.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(told) or "-"


def seconds(lines: list[dict[str, Any]]) -> float:
    """Of the run and of those that it was resumed from, whose clocks each begin at nothing."""
    clocks = [line["seconds"] for line in lines]
    return clocks[-1] + sum(now for now, then in itertools.pairwise(clocks) if then < now)


def summary() -> str:
    """A row a run: its last line, and what it was told otherwise than the first of its length."""
    rows, bases = [], {}
    for name, (settings, lines) in runs().items():
        last, steps, batch = lines[-1], settings["optimizer"]["steps"], settings["optimizer"]["batch_size"]
        base, machine = bases.setdefault((steps, batch), settings), settings["machine"]
        held_out = [number(last[f"held_out_{loss}"]) for loss in ("diffusion", "hidden", "words")]
        where = f"{machine['name']}, {machine['commit']}"
        spent = number(seconds(lines)), number(last["windows_per_s"])
        accuracy = f"{last['held_out_accuracy']:.2%}"
        rows.append([name, changed(settings, base), f"{steps:,} x {batch}", *spent, *held_out, accuracy, where])
    header = ["run", "otherwise than the first of its length", "steps x windows", "s", "windows/s"]
    return table([*header, "L_diff", "L_h", "L_w", "reconstructed", "where, commit"], rows)


def block() -> str:
    """What stands between the marks of docs/training.md."""
    return "\n\n".join((summary(), picture(PLOT, "; ".join(CURVES.values()) + ", by step")))


def plot() -> dict[str, Any]:
    """The held-out measures of every run by step."""
    series = {
        loss: {
            name: [[line["step"], line[f"held_out_{loss}"]] for line in lines if f"held_out_{loss}" in line]
            for name, (_, lines) in runs().items()
        }
        for loss in CURVES
    }
    cards = dict.fromkeys(settings["machine"]["name"] for settings, _ in runs().values())
    return {"title": f"Training runs on one {' and '.join(cards)}", "series": series}


def draw(plot: dict[str, Any], theme: Theme) -> Figure:
    """The plot's picture."""
    subtitle = "Measured on held-out windows. The bundled model is in blue, ablations are in other colours."
    figure, panels = canvas(theme, plot["title"], subtitle, 290, (36, 44, 72), len(CURVES), 102)
    for axes, (loss, title) in zip(panels, CURVES.items(), strict=True):
        series = plot["series"][loss]
        steps = [step for points in series.values() for step, _ in points]
        axes.set(
            xscale="log", xlim=(min(steps), max(steps) * 1.1), ylim=(0, 1.05 * max(y for p in series.values() for _, y in p))
        )
        plain(axes.xaxis, [step for step in (10, 100, 1000, 10_000) if min(steps) <= step <= max(steps)])
        plain(axes.yaxis)
        labels, others = [], iter(theme.peers)
        for name, points in series.items():
            mine = name == BUNDLED
            color = theme.ours if mine else next(others)
            axes.plot(*zip(*points, strict=True), color=color, linewidth=2.2 if mine else 1.3, zorder=2 + mine)
            labels.append(Label(*points[-1], name.removeprefix("ablation-"), color, "bold" if mine else "normal"))
        name_ends(axes, labels, 1.0)
        axes.set_xlabel("step")
        headline(axes, theme, title)
    return figure
