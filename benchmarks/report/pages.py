"""What every page is made of: where results lie, tables, pictures, and blocks between marks."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PLOTS = "docs/plots"
BEGIN, END = "<!-- written by python -m benchmarks.report: {} -->", "<!-- end -->"
Read = TypeVar("Read")


def committed(schema: str, read: Callable[[Path], Read]) -> list[Read]:
    """The committed results of a schema, by file name."""
    paths = sorted(RESULTS.glob("*.json"))
    return [read(path) for path in paths if json.loads(path.read_text()).get("schema") == schema]


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    header = list(header)
    lines = [header, ["---"] * len(header), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def picture(name: str, title: str, folder: str = "plots") -> str:
    """A plot in Markdown: GitHub shows the picture that fits the reader's theme."""
    return (
        "<picture>\n"
        f'  <source media="(prefers-color-scheme: dark)" srcset="{folder}/{name}-dark.svg">\n'
        f'  <img alt="{title}" src="{folder}/{name}-light.svg">\n'
        "</picture>"
    )


def within(text: str, name: str, block: str) -> str:
    """`text` with `block` between the marks of that name.

    Raises:
        ValueError: the marks are not there once.
    """
    begin = BEGIN.format(name)
    pattern = f"{re.escape(begin)}.*?{re.escape(END)}"
    text, count = re.subn(pattern, lambda _: f"{begin}\n\n{block}\n\n{END}", text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"the marks {begin} ... {END} stand there {count} times and not once")
    return text
