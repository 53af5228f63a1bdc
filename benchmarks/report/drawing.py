"""How every plot looks: a theme for light and one for dark pages, labels at the ends of lines, and small SVGs.

Ours has one colour in every plot, peers have muted ones. Text stays text, in the reader's own font. The same data and
matplotlib give the same bytes.
"""

import io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from benchmarks.report.pages import PLOTS
from dllm_kernels.bench.wording import number

WIDTH = 600.0
"""Points, which are 800 pixels: the width of a README."""

FONT_SIZE, TITLE_SIZE, LINE_HEIGHT = 9, 12, 12.5
_FONTS = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
_SETTINGS = {
    "svg.hashsalt": "dllm-kernels",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": FONT_SIZE,
    "axes.linewidth": 0.8,
    "path.simplify": False,
}


@dataclass(frozen=True)
class Theme:
    """Colours: of the page, of text and of lines that only guide, of ours and its shades, of peers, of a peer's bar."""

    name: str
    page: str
    text: str
    muted: str
    grid: str
    ours: str
    shades: tuple[str, str, str]
    peers: tuple[str, str, str, str, str]
    bar: str


LIGHT = Theme(
    "light",
    page="#ffffff",
    text="#1f2328",
    muted="#59636e",
    grid="#e3e7eb",
    ours="#0b5fd9",
    shades=("#0b5fd9", "#6ba3ee", "#b5d1f7"),
    peers=("#6e7781", "#8a6d3b", "#3f7a63", "#7d5f92", "#9a5b5b"),
    bar="#b3b9c0",
)
DARK = Theme(
    "dark",
    page="#0d1117",
    text="#e6edf3",
    muted="#9198a1",
    grid="#262c34",
    ours="#58a6ff",
    shades=("#58a6ff", "#2f6bb8", "#1c3f6e"),
    peers=("#9aa4af", "#c9a66b", "#7fb69e", "#b99fce", "#d19a9a"),
    bar="#4a525c",
)
Draw = Callable[[dict[str, Any], Theme], Figure]


def files(name: str, plot: dict[str, Any], draw: Draw) -> dict[str, str]:
    """By path: a plot's data, and its picture in both themes."""
    made = {f"{PLOTS}/{name}.json": json.dumps(plot, indent=1) + "\n"}
    return made | {f"{PLOTS}/{name}-{theme.name}.svg": svg(plot, draw, theme) for theme in (LIGHT, DARK)}


def svg(plot: dict[str, Any], draw: Draw, theme: Theme) -> str:
    """A plot's picture."""
    written = io.StringIO()
    with matplotlib.rc_context(_SETTINGS):
        draw(plot, theme).savefig(written, format="svg", metadata={"Date": None}, facecolor=theme.page)
    return _slim(written.getvalue())


def _slim(text: str) -> str:
    """Without comments, metadata and digits that nobody sees, an element a line, in the fonts of the reader's system."""
    text = re.sub(r"<!--.*?-->|<!DOCTYPE.*?>|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", lambda tag: _rounded(re.sub(r"\s+", " ", tag[0])), text)
    return re.sub(r"\n\s+", "\n", text).replace("'DejaVu Sans'", _FONTS)


def _rounded(tag: str) -> str:
    """With at most two decimals, which are 1/72 inch / 100."""
    return re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), tag)


def canvas(
    theme: Theme, title: str, subtitle: str, height: float, margins: tuple[float, float, float], panels: int = 1, gap: float = 0
) -> tuple[Figure, list[Axes]]:
    """A figure with its title, and panels side by side.

    Args:
        theme: of its colours.
        title: what is shown, on which card.
        subtitle: under which conditions.
        height: points.
        margins: points to the left, below and to the right of the panels.
        panels: how many.
        gap: points between two of them.
    """
    left, bottom, right = margins
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    figure.text(12 / WIDTH, 1 - 12 / height, title, color=theme.text, size=TITLE_SIZE, weight="bold", va="top")
    figure.text(12 / WIDTH, 1 - 31 / height, subtitle, color=theme.muted, va="top", linespacing=1.35)
    top = 66 + LINE_HEIGHT * subtitle.count("\n")
    width = (WIDTH - left - right - gap * (panels - 1)) / panels
    boxes = ((left + index * (width + gap), width) for index in range(panels))
    made = [figure.add_axes((x / WIDTH, bottom / height, w / WIDTH, (height - top - bottom) / height)) for x, w in boxes]
    for axes in made:
        axes.set_facecolor("none")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(theme.muted)
        axes.tick_params(colors=theme.muted, length=0, which="both", pad=5)
        axes.xaxis.label.set_color(theme.muted)
        axes.grid(axis="y", color=theme.grid, linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, made


def ink(fill: str) -> str:
    """Black or white, whichever is read better on that colour."""
    red, green, blue = to_rgb(fill)
    return "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "#10151c"


def headline(axes: Axes, theme: Theme, text: str) -> None:
    """What a panel's vertical axis shows, above it at the left, where it is read without turning the head."""
    axes.annotate(text, (0, 1), xytext=(0, 6), xycoords="axes fraction", textcoords="offset points", color=theme.text)


def plain(axis, at: Iterable[float] | None = None) -> None:
    """Ticks as plain numbers with commas: at these values, or at a few round ones."""
    axis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)) if at is None else FixedLocator(sorted(set(at))))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value, 6)))


@dataclass(frozen=True)
class Label:
    """A name for the point (x, y), in data coordinates."""

    x: float
    y: float
    text: str
    color: str
    weight: str = "normal"


def name_ends(axes: Axes, labels: list[Label], column: float | None = None) -> None:
    """Writes labels to the right of their points, apart from each other and as near as that goes, with a line to the point
    where one stands elsewhere. Limits and scales of the axes must be set before.

    Args:
        axes: where.
        labels: any number.
        column: the x of all labels, as a share of the axes' width; 6 points right of each point where not given.
    """
    labels = sorted(labels, key=lambda label: (label.y, label.text))
    points = 72 / axes.figure.dpi
    places = axes.transData.transform([(label.x, label.y) for label in labels]) * points
    box = axes.bbox
    low, high = (edge * points for edge in (box.y0, box.y1))
    heights = _apart([y for _, y in places], LINE_HEIGHT, low, high)
    for label, (x, y), height in zip(labels, places, heights, strict=True):
        at = x + 6 if column is None else (box.x0 + column * box.width) * points + 6
        line = None
        if at - x > 12 or abs(height - y) > 3:
            line = {"arrowstyle": "-", "color": label.color, "linewidth": 0.6, "alpha": 0.6, "shrinkA": 1, "shrinkB": 3}
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(at - x, height - y),
            textcoords="offset points",
            color=label.color,
            weight=label.weight,
            va="center",
            arrowprops=line and line | {"relpos": (0, 0.5)},
            annotation_clip=False,
        )


def _apart(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Rising positions at least `gap` apart that are nearest to those wanted by least squares, within the bounds."""
    pools: list[tuple[float, int]] = []
    for index, value in enumerate(wanted):
        mean, count = value - index * gap, 1
        while pools and pools[-1][0] > mean:
            before, many = pools.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        pools.append((mean, count))
    shifted = [mean for mean, count in pools for _ in range(count)]
    most = max(low, high - (len(wanted) - 1) * gap)
    return [min(max(value, low), most) + index * gap for index, value in enumerate(shifted)]
