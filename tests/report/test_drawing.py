"""How plots look: labels that do not touch, small pictures, the same bytes each time."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.report.drawing import DARK, LIGHT, LINE_HEIGHT, Label, _apart, canvas, files, ink, name_ends, plain, svg


@given(st.lists(st.floats(-50, 250), min_size=1, max_size=9))
def test_labels_stand_apart_in_order_and_within_bounds(wanted):
    wanted.sort()
    found = _apart(wanted, 12, 0, 200)
    assert all(b - a >= 12 - 1e-6 for a, b in itertools.pairwise(found))
    assert found[0] >= 0 and found[-1] <= 200


def test_labels_with_room_stay_and_crowded_ones_part_evenly():
    assert _apart([10, 50, 90], 12, 0, 200) == [10, 50, 90]
    assert _apart([50, 50], 12, 0, 200) == [44, 56]


def drawn(plot, theme):
    figure, (axes,) = canvas(theme, plot["title"], "one\ntwo", 200, (40, 30, 100))
    axes.set(xlim=(1, 1024), ylim=(0, 0.001), xscale="log")
    plain(axes.xaxis, (1, 1024))
    plain(axes.yaxis)
    axes.plot([1, 64], [0, 0.0005], color=theme.ours)
    name_ends(axes, [Label(64, 0.0005, "first", theme.ours), Label(64, 0.00051, "second", theme.ours)])
    return figure


def test_a_picture_is_small_and_keeps_its_words():
    text = svg({"title": "A title"}, drawn, LIGHT)
    told = re.findall(r"<text[^>]*>([^<]*)</text>", text)
    assert {"A title", "first", "second", "1", "1,024", "0.001"} <= set(told)
    assert "<metadata" not in text and "<!--" not in text and "DejaVu" not in text and not re.search(r'[" ]\d+\.\d{3,}', text)
    heights = [float(re.search(rf'y="([^"]*)"[^>]*>{word}<', text)[1]) for word in ("first", "second")]
    assert heights[0] - heights[1] == pytest.approx(LINE_HEIGHT, abs=0.02)


def test_both_themes_are_drawn_and_the_same_each_time():
    made = files("name", {"title": "A title"}, drawn)
    assert list(made) == ["docs/plots/name.json", "docs/plots/name-light.svg", "docs/plots/name-dark.svg"]
    assert files("name", {"title": "A title"}, drawn) == made
    light, dark = made["docs/plots/name-light.svg"], made["docs/plots/name-dark.svg"]
    for theme, text, other in ((LIGHT, light, DARK), (DARK, dark, LIGHT)):
        assert theme.page in text and theme.ours in text and other.page not in text and other.ours not in text


def luminance(color):
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    """As the Web Content Accessibility Guidelines count it; they ask 4.5 of text."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", (LIGHT, DARK), ids=lambda theme: theme.name)
def test_text_can_be_read(theme):
    for color in (theme.text, theme.muted, theme.ours, *theme.peers):
        assert contrast(color, theme.page) >= 4.5, color
    for fill in (theme.bar, *theme.shades):
        assert contrast(ink(fill), fill) >= 4.5, fill
