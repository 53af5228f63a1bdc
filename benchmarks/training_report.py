"""The table and the plot of training runs in docs/training.md: `python -m benchmarks.training_report` writes them.

A run is a folder benchmarks/results/training/NAME with the settings.json and metrics.jsonl that `dllm-kernels train` left.
tests/test_training_documents.py compares what is written with them, so no number there is typed.
"""

import itertools
import json
import re
from pathlib import Path
from typing import Any

from dllm_kernels.bench.tables import markdown, number

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "benchmarks" / "results" / "training"
DOCUMENT = ROOT / "docs" / "training.md"
PLOT = ROOT / "docs" / "plots" / "training.svg"
MARK = "<!-- written by python -m benchmarks.training_report: {} -->"
CURVES = {"diffusion": "held-out L_diff", "hidden": "held-out L_h", "accuracy": "held-out tokens reconstructed"}


def runs() -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """By name: a run's settings and its lines of metrics."""
    found = {}
    for folder in sorted(path for path in RUNS.iterdir() if path.is_dir()):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found[folder.name] = json.loads((folder / "settings.json").read_text()), lines
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


def table() -> str:
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
    return markdown([*header, "L_diff", "L_h", "L_w", "reconstructed", "where, commit"], rows)


def document(text: str) -> str:
    """docs/training.md with the table between its marks."""
    begin, end = MARK.format("begin"), MARK.format("end")
    block = f"{begin}\n\n{table()}\n\n![{'; '.join(CURVES.values())}, by step](plots/{PLOT.name})\n\n{end}"
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: block, text, flags=re.DOTALL)


def draw(path: Path) -> None:
    """Writes the plot, the same bytes for the same runs and matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "dllm-kernels", "svg.fonttype": "none", "font.size": 8}):
        figure, panels = plt.subplots(1, len(CURVES), figsize=(9.0, 3.2), layout="constrained")
        for axes, (loss, title) in zip(panels, CURVES.items(), strict=True):
            for name, (_, lines) in runs().items():
                points = [(line["step"], line[f"held_out_{loss}"]) for line in lines if f"held_out_{loss}" in line]
                axes.plot(*zip(*points, strict=True), marker="o", markersize=2, linewidth=1, label=name)
            axes.set(xscale="log", xlabel="step", title=title)
        panels[-1].legend(fontsize=6)
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    DOCUMENT.write_text(document(DOCUMENT.read_text()))
    draw(PLOT)
