"""Plots of the harness's results: the data of each, and how it is drawn."""

import math
import re
from collections.abc import Iterable
from typing import Any

from matplotlib.figure import Figure

from benchmarks.report import published
from benchmarks.report.drawing import Label, Theme, canvas, headline, ink, name_ends, plain
from benchmarks.report.harness import AXES, card_table, case_rows, newest, ours
from dllm_kernels.bench.peers import COMPILED, GRAPH, OURS, OURS_TRITON, PUBLISHED_BF16, PUBLISHED_FP32
from dllm_kernels.bench.results import Result
from dllm_kernels.bench.wording import number, share

README = "readme"
"""The plot that the README opens with."""

_NAMED_PRESET, _MAX_NAMES = published.TABLE[0].preset, 10
_PHASES = ("noise", "denoise", "decode", "lm_head")
_BARS = {
    OURS: "FusedSampler",
    COMPILED: "torch.compile, CUDA graph",
    GRAPH: "SDPA, CUDA graph",
    PUBLISHED_BF16: "published code, bf16",
    PUBLISHED_FP32: "published code, fp32",
}


def plots(results: Iterable[Result]) -> dict[str, dict[str, Any]]:
    """By file name, each plot's kind, title, machine and data."""
    results = list(results)
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
            "roofline": f"Roofline of {name}",
            "batch": f"Tokens a second by batch size, {name}",
            "length": f"Tokens a second by length, {name}",
            "phases": f"Where a generation's time goes, {name}",
        }
        for kind, content in data.items():
            if content["series"]:
                found[f"{word}-{kind}"] = {"kind": kind, "title": titles[kind], "machine": name} | content
    return found


def readme_plot(results: Iterable[Result]) -> dict[str, Any]:
    """The published cases that the post measured: ours, its peers, the floor, and the post's own figure.

    Raises:
        ValueError: no result has a published case.
    """
    name, tables = card_table(results)
    panels = []
    for entry in published.TABLE:
        rows = case_rows(tables, entry)
        if entry.extrapolated or not rows:
            continue
        speeds = {_BARS[row.contender]: row.tokens_per_s for row in rows if row.contender in _BARS and row.tokens_per_s}
        floor = next((_floor(row.case, row.floor_ms) for row in rows if row.contender == OURS and row.floor_ms), None)
        panels.append({"preset": entry.preset, "steps": entry.steps, "published": entry.tokens_per_s, "floor": floor})
        panels[-1]["tokens_per_s"] = {label: speeds[label] for label in _BARS.values() if label in speeds}
    return {"kind": README, "title": f"Tokens a second on one {name}", "machine": name, "panels": panels}


def _roofline(groups: list[Result]) -> dict[str, Any]:
    series = {}
    for result in groups:
        if result.group.startswith(("ops-", "table-")):
            for row in ours(result):
                # The small preset's kernels are launches and nothing else.
                if row.tflops and row.gb_per_s and row.case["preset"] != "tiny":
                    name = row.case.get("op", f"generation, N = {row.case.get('steps')}")
                    series[f"{row.case['preset']}: {name}"] = [1000 * row.tflops / row.gb_per_s, row.tflops]
    reached = groups[0].reached
    return {"series": series, "bytes_per_s": reached["bytes_per_s"], "flops": reached["flops"]}


def _floor(case: dict[str, Any], floor_ms: float) -> float:
    """In tokens a second."""
    return 1000 * case["batch"] * case["seq_len"] / floor_ms


def _sweep(groups: list[Result], axis: str) -> dict[str, Any]:
    series: dict[str, list] = {}
    floors: dict[str, dict[int, float]] = {}
    unsteady: dict[str, list] = {}
    for result in groups:
        if not result.group.startswith(f"sweep-{axis}-"):
            continue
        for row in result.rows:
            if row.tokens_per_s:
                key, x = f"{row.case['preset']}: {row.contender}", row.case[AXES[axis]]
                series.setdefault(key, []).append([x, row.tokens_per_s])
                if row.unstable:
                    unsteady.setdefault(key, []).append(x)
                if row.contender == OURS and row.floor_ms:
                    floors.setdefault(row.case["preset"], {})[x] = _floor(row.case, row.floor_ms)
    return {
        "series": series,
        "unsteady": unsteady,
        "floors": {preset: [list(point) for point in floor.items()] for preset, floor in floors.items()},
        "fixed": _fixed(groups, axis),
        "axis": AXES[axis],
    }


def _fixed(groups: list[Result], axis: str) -> dict[str, int]:
    """What the cases of a sweep have in common, beside its axis."""
    rows = [row.case for result in groups if result.group.startswith(f"sweep-{axis}-") for row in result.rows]
    return {name: rows[0][name] for name in ("steps", "batch", "seq_len") if rows and name != AXES[axis]}


def _phases(groups: list[Result]) -> dict[str, Any]:
    series = {}
    for result in groups:
        if result.group.startswith("table-"):
            for row in ours(result):
                if row.phases_ms and row.contender == OURS:
                    series[f"{row.case['preset']}, N = {row.case['steps']}"] = row.phases_ms
    return {"series": series}


def draw(plot: dict[str, Any], theme: Theme) -> Figure:
    """The plot's picture."""
    return {README: _draw_readme, "roofline": _draw_roofline, "phases": _draw_phases}.get(plot["kind"], _draw_sweep)(
        plot, theme
    )


def _draw_readme(plot: dict[str, Any], theme: Theme) -> Figure:
    names = [name for name in _BARS.values() if any(name in panel["tokens_per_s"] for panel in plot["panels"])]
    steps = plot["panels"][0]["steps"]
    subtitle = (
        f"{steps} steps, {published.SEQ_LEN} tokens, batch {published.BATCH}, bf16 weights unless named fp32, random weights. "
        "A longer bar is faster."
    )
    figure, panels = canvas(theme, plot["title"], subtitle, 292, (152, 14, 14), len(plot["panels"]), 40)
    labels = [*names, f"published on an {published.CARD},\nnot measured here"]
    for index, (axes, panel) in enumerate(zip(panels, plot["panels"], strict=True)):
        speeds, floor, last = panel["tokens_per_s"], panel["floor"], len(names)
        for row, name in enumerate(names):
            if name == _BARS[OURS]:
                axes.barh(row, speeds[name], height=0.66, color=theme.ours)
                _value(axes, number(speeds[name]), row, speeds[name], -6, ha="right", color=theme.page, weight="bold")
            elif name in speeds:
                axes.barh(row, speeds[name], height=0.66, color=theme.bar)
                _value(axes, number(speeds[name]), row, speeds[name], 5, color=theme.text)
        outline = {"facecolor": "none", "edgecolor": theme.muted, "linestyle": (0, (3, 2)), "linewidth": 1}
        axes.barh(last, panel["published"], height=0.66, **outline)
        _value(axes, number(panel["published"], 4), last, panel["published"], 5, color=theme.text)
        if floor:
            axes.plot([floor, floor], [-0.5, last + 1.1], color=theme.text, linestyle=(0, (4, 3)), linewidth=1)
            told, at = f"roofline limit of this card: {number(floor)}", (floor, last + 1.0)
            axes.annotate(told, at, xytext=(-5, 0), textcoords="offset points", ha="right", va="center", color=theme.text)
        axes.plot([0, 0], [-0.5, last + 0.5], color=theme.muted, linewidth=0.8)
        highest = max([*speeds.values(), panel["published"], floor or 0])
        axes.set(xlim=(0, 1.02 * highest), ylim=(last + 1.3, -0.6), xticks=[])
        axes.spines["bottom"].set_visible(False)
        axes.grid(False)
        headline(axes, theme, panel["preset"])
        axes.set_yticks(range(len(labels)), labels if index == 0 else [""] * len(labels))
        for label in axes.get_yticklabels():
            mine = label.get_text() == _BARS[OURS]
            label.set(color=theme.ours if mine else theme.text, weight="bold" if mine else "normal")
    return figure


def _value(axes, text: str, row: int, x: float, offset: float, **style) -> None:
    """A bar's value, `offset` points right of its end at x."""
    axes.annotate(text, (x, row), xytext=(offset, 0), textcoords="offset points", va="center", **style)


def _draw_roofline(plot: dict[str, Any], theme: Theme) -> Figure:
    peak, bandwidth = plot["flops"] / 1e12, plot["bytes_per_s"] / 1e12
    ridge, points = peak / bandwidth, list(plot["series"].values())
    presets = list(dict.fromkeys(key.split(": ")[0] for key in plot["series"]))
    named_preset = _NAMED_PRESET if _NAMED_PRESET in presets else presets[0]
    left, right = min([x for x, _ in points] + [ridge]) / 1.5, ridge * 7
    low, high = min([y for _, y in points] + [peak]) / 2, peak * 2.2
    others = [preset for preset in presets if preset != named_preset]
    hollow = f" Hollow: the same of {', '.join(others)}." if others else ""
    subtitle = f"Our kernels and whole generations. Filled and named: {named_preset}.{hollow}"
    figure, (axes,) = canvas(theme, plot["title"], subtitle, 350, (48, 44, 40))
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low, high))
    plain(axes.xaxis, [2.0**power for power in range(math.ceil(math.log2(left)), math.floor(math.log2(right)) + 1)])
    plain(axes.yaxis, [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)])
    axes.plot([left, ridge, right], [left * bandwidth, peak, peak], color=theme.text, linewidth=1.2)
    slope = math.degrees(math.atan2(*_pixels(axes, (left, left * bandwidth), (ridge, peak))[::-1]))
    at = math.sqrt(left * ridge)
    axes.annotate(
        f"memory, measured: {number(plot['bytes_per_s'] / 1e9)} GB/s",
        (at, at * bandwidth),
        xytext=(-4, 5),
        textcoords="offset points",
        rotation=slope,
        rotation_mode="anchor",
        ha="center",
        color=theme.text,
    )
    axes.annotate(
        f"bf16 products, measured: {number(peak)} TFLOP/s",
        (right, peak),
        xytext=(0, 5),
        textcoords="offset points",
        ha="right",
        color=theme.text,
    )
    labels = []
    for key, (x, y) in plot["series"].items():
        preset, name = key.split(": ")
        mine, generation = preset == named_preset, name.startswith("generation")
        first = not generation or not any(label.text.startswith("generation") for label in labels)
        face = theme.ours if mine else theme.page
        shape = {"marker": "D" if generation else "o", "markersize": 6 if mine else 5, "zorder": 3 + mine + generation}
        axes.plot([x], [y], color=theme.ours, markerfacecolor=face, **shape)
        if mine and first and len(labels) < _MAX_NAMES:
            labels.append(Label(x, y, name, theme.text, "bold" if generation else "normal"))
    name_ends(axes, [label for label in labels if label.x <= ridge / 16])
    # Near the ridge points are many: their names stand in a column where the roof is flat, so that none lies on it.
    crowd = [label for label in labels if label.x > ridge / 16]
    rightmost = max([ridge, *(label.x for label in crowd)])
    name_ends(axes, crowd, math.log(rightmost / left) / math.log(right / left))
    axes.set_xlabel("operations a byte of weights and activations")
    headline(axes, theme, "TFLOP/s")
    return figure


def _pixels(axes, start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    """How far apart two points are on the paper, across and up."""
    (x, y), (u, v) = axes.transData.transform([start, end])
    return u - x, v - y


def _draw_sweep(plot: dict[str, Any], theme: Theme) -> Figure:
    presets = list(dict.fromkeys(key.split(": ")[0] for key in plot["series"]))
    words = {"steps": "{} steps", "batch": "batch {}", "seq_len": "{} tokens"}
    told = ", ".join(words[name].format(value) for name, value in plot["fixed"].items())
    highest = max(y for series in plot["series"].values() for _, y in series)
    floors = {preset: floor for preset, floor in plot["floors"].items() if max(y for _, y in floor) < 3 * highest}
    more = "" if floors or not plot["floors"] else " The roofline limit lies far above."
    unsteady = " Hollow: the machine was not steady." if plot["unsteady"] else ""
    subtitle = f"{', '.join(presets)}, {told}, random weights.{unsteady}{more}"
    figure, (axes,) = canvas(theme, plot["title"], subtitle, 300, (58, 44, 150))
    xs = sorted({x for series in plot["series"].values() for x, _ in series})
    top = max([highest] + [y for floor in floors.values() for _, y in floor])
    axes.set(xscale="log", xlim=(xs[0] / 1.15, xs[-1] * 1.1), ylim=(0, 1.08 * top))
    plain(axes.xaxis, xs)
    plain(axes.yaxis)
    labels, peers = [], iter(theme.peers)
    for preset, floor in floors.items():
        axes.plot(*zip(*floor, strict=True), color=theme.text, linewidth=1, linestyle=(0, (4, 3)))
        labels.append(Label(*floor[-1], _named("roofline limit", preset, presets), theme.text))
    for key, series in plot["series"].items():
        preset, contender = key.split(": ")
        mine = contender in (OURS, OURS_TRITON)
        color = theme.ours if mine else next(peers)
        axes.plot(*zip(*series, strict=True), color=color, linewidth=2.4 if mine else 1.6, zorder=2 + mine)
        for x, y in series:
            face = theme.page if x in plot["unsteady"].get(key, ()) else color
            axes.plot([x], [y], "o", color=color, markerfacecolor=face, markersize=5, zorder=3 + mine)
        labels.append(Label(*series[-1], _named(contender, preset, presets), color, "bold" if mine else "normal"))
    name_ends(axes, labels)
    axes.set_xlabel({"batch": "samples in a batch", "seq_len": "tokens generated at once"}[plot["axis"]])
    headline(axes, theme, "tokens a second")
    return figure


def _named(name: str, preset: str, presets: list[str]) -> str:
    """A line's name, with its preset where a plot has several."""
    return name if len(presets) == 1 else f"{name}, {preset}"


def _draw_phases(plot: dict[str, Any], theme: Theme) -> Figure:
    series = plot["series"]
    phases = list(next(iter(series.values())))
    shares = {name: {phase: parts[phase] / sum(parts.values()) for phase in phases} for name, parts in series.items()}
    # A phase that is nowhere wide enough for its name is told in the subtitle.
    thin = [phase for phase in phases if max(of[phase] for of in shares.values()) < 0.04]
    unseen = "".join(f" Not to be seen: {phase}, at most {max(of[phase] for of in shares.values()):.1%}." for phase in thin)
    subtitle = f"{OURS}, {published.SEQ_LEN} tokens, batch {published.BATCH}; at the right the whole time.{unseen}"
    figure, (axes,) = canvas(theme, plot["title"], subtitle, 88 + 32 * len(series), (152, 12, 70))
    colors = dict(zip(_PHASES, (theme.bar, *theme.shades), strict=True))
    for row, (name, of) in enumerate(shares.items()):
        left = 0.0
        for phase in phases:
            axes.barh(row, of[phase], left=left, height=0.7, color=colors[phase], edgecolor=theme.page, linewidth=1)
            if of[phase] > 0.05:
                axes.text(left + of[phase] / 2, row, share(of[phase]), ha="center", va="center", color=ink(colors[phase]))
            if row == 0 and phase not in thin:
                axes.annotate(
                    phase,
                    (left + of[phase] / 2, -0.4),
                    xytext=(0, 4),
                    textcoords="offset points",
                    ha="center",
                    color=theme.text,
                )
            left += of[phase]
        whole = f"{number(sum(series[name].values()))} ms"
        axes.annotate(whole, (1, row), xytext=(8, 0), textcoords="offset points", va="center", color=theme.text)
    axes.set(xlim=(0, 1), ylim=(len(series) - 0.5, -0.75), xticks=[])
    axes.spines["bottom"].set_visible(False)
    axes.grid(False)
    axes.set_yticks(range(len(series)), list(series))
    axes.tick_params(axis="y", colors=theme.text)
    return figure
