"""Plots of evaluations: the data of each, and how it is drawn."""

import re
from collections.abc import Iterable
from typing import Any

from matplotlib.figure import Figure

from benchmarks.report.drawing import Label, Theme, canvas, headline, name_ends, plain
from dllm_kernels.evaluation.results import HUMAN, Evaluation

MODELS = "quality-models"
"""The plot of models side by side."""

FEW, BEST = ("dpmpp_2m", 10), ("ddpm", 50)
"""Solvers and steps at which models stand side by side."""

_ROUND = (10, 30, 100, 300, 1000, 3000, 10_000)
_MEASURES = {"perplexity": "generative perplexity", "entropy": "entropy, nats", "mauve": "MAUVE"}


def plots(evaluations: Iterable[Evaluation]) -> dict[str, dict[str, Any]]:
    """By file name, each plot's kind, title and data: a model's measures by solver and steps where there are three numbers of
    steps or more, and several models side by side."""
    evaluations, found = list(evaluations), {}
    for evaluation in evaluations:
        series: dict[str, list] = {}
        for row in evaluation.rows:
            if row.steps is not None and row.perplexity is not None:
                series.setdefault(row.solver, []).append([row.steps, row.perplexity, row.entropy])
        if len({point[0] for points in series.values() for point in points}) > 2:
            found[plot_name(evaluation)] = {
                "kind": "steps",
                "title": f"Quality of {evaluation.title} by steps",
                "judge": evaluation.judge,
                "series": series,
                "beside": {row.source: [row.perplexity, row.entropy] for row in evaluation.rows if row.steps is None},
            }
    models = {evaluation.title: _at_points(evaluation) for evaluation in evaluations}
    if len(models) > 1:
        judges = dict.fromkeys(evaluation.judge for evaluation in evaluations)
        found[MODELS] = {
            "kind": "models",
            "title": "Quality of models side by side",
            "judge": ", ".join(judges),
            "models": models,
        }
    return found


def plot_name(evaluation: Evaluation) -> str:
    """The name of a model's plot."""
    return f"quality-{re.sub(r'[^a-z0-9]+', '-', evaluation.title.lower()).strip('-')}"


def _at_points(evaluation: Evaluation) -> dict[str, dict[str, float | None]]:
    """A model's measures at FEW and BEST, and those of held-out text."""
    rows = {_point(*point): evaluation.row(*point) for point in (FEW, BEST)} | {HUMAN: evaluation.row(source=HUMAN)}
    return {name: {measure: getattr(row, measure) for measure in _MEASURES} for name, row in rows.items() if row is not None}


def _point(solver: str, steps: int) -> str:
    return f"{steps} steps of {solver}"


def draw(plot: dict[str, Any], theme: Theme) -> Figure:
    """The plot's picture."""
    return {"steps": _draw_steps, "models": _draw_models}[plot["kind"]](plot, theme)


def _draw_steps(plot: dict[str, Any], theme: Theme) -> Figure:
    subtitle = f"Judged by {plot['judge']}. Good text comes near the line of held-out text in both panels."
    figure, panels = canvas(theme, plot["title"], subtitle, 300, (46, 44, 112), 2, 146)
    steps = sorted({point[0] for points in plot["series"].values() for point in points})
    for axes, column, name in zip(panels, (1, 2), ("perplexity", "entropy"), strict=True):
        values = [point[column] for points in plot["series"].values() for point in points]
        values += [both[column - 1] for both in plot["beside"].values() if both[column - 1] is not None]
        axes.set(xscale="log", xlim=(steps[0] / 1.15, steps[-1] * 1.1))
        plain(axes.xaxis, steps)
        if column == 1:
            axes.set(yscale="log", ylim=(min(values) / 1.3, max(values) * 1.2))
            plain(axes.yaxis, [value for value in _ROUND if min(values) / 1.3 <= value <= max(values) * 1.2])
        else:
            axes.set_ylim(min(values) - 0.3, max(values) + 0.3)
            plain(axes.yaxis)
        labels = []
        for source, both in plot["beside"].items():
            if both[column - 1] is not None:
                human = source == HUMAN
                color, style = (theme.text, "-") if human else (theme.peers[0], (0, (4, 3)))
                axes.axhline(both[column - 1], color=color, linewidth=1, linestyle=style)
                labels.append(Label(steps[-1] * 1.1, both[column - 1], source if human else "the judge's samples", color))
        # Solvers are all ours: one colour, told apart by their marks and names.
        for (solver, points), marker in zip(plot["series"].items(), "os^Dv", strict=False):
            xs, ys = [point[0] for point in points], [point[column] for point in points]
            axes.plot(xs, ys, marker, linestyle="-", color=theme.ours, markerfacecolor=theme.page, markersize=5, linewidth=1.6)
            labels.append(Label(xs[-1], ys[-1], solver, theme.ours))
        name_ends(axes, labels, 1.0)
        axes.set_xlabel("steps")
        headline(axes, theme, _MEASURES[name])
    return figure


def _draw_models(plot: dict[str, Any], theme: Theme) -> Figure:
    names = list(plot["models"])
    few, best = _point(*FEW), _point(*BEST)
    subtitle = f"Filled: {best}. Hollow: {few}. Bar: {HUMAN} in the same evaluation.\nJudged by {plot['judge']}."
    figure, panels = canvas(theme, plot["title"], subtitle, 128 + 24 * len(names), (178, 24, 22), len(_MEASURES), 26)
    for index, (axes, measure) in enumerate(zip(panels, _MEASURES, strict=True)):
        for row, of in enumerate(plot["models"].values()):
            shown = {name: values[measure] for name, values in of.items() if values[measure] is not None}
            if HUMAN in shown:
                axes.plot([shown[HUMAN]], [row], "|", color=theme.text, markersize=15, markeredgewidth=1.6)
            for name, face in ((few, theme.page), (best, theme.ours)):
                if name in shown:
                    axes.plot([shown[name]], [row], "o", color=theme.ours, markerfacecolor=face, markersize=6.5)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_yticks(range(len(names)), names if index == 0 else [""] * len(names))
        axes.tick_params(axis="y", colors=theme.text)
        if measure == "perplexity":
            values = [values[measure] for of in plot["models"].values() for values in of.values() if values[measure]]
            axes.set(xscale="log", xlim=(min(values) / 1.3, max(values) * 1.3))
            plain(axes.xaxis, [value for value in _ROUND if min(values) / 1.3 <= value <= max(values) * 1.3])
        else:
            highest = max(values[measure] or 0 for of in plot["models"].values() for values in of.values())
            axes.set_xlim(-0.03 * highest, 1.06 * highest)
            plain(axes.xaxis)
        headline(axes, theme, _MEASURES[measure])
    return figure
