"""The block of README.md: a plot, ours beside the fastest peer on the same card, and what was typed."""

from collections.abc import Iterable

from benchmarks.report import published
from benchmarks.report.harness import card_table, case_rows, peers
from benchmarks.report.pages import PLOTS, picture, table
from benchmarks.report.speed_plots import README
from dllm_kernels.bench.peers import OURS
from dllm_kernels.bench.results import Result, Row
from dllm_kernels.bench.wording import number


def block(results: Iterable[Result]) -> str:
    """The plot, a row a published case, and one line on what was measured.

    Raises:
        ValueError: no result has a published case.
    """
    name, tables = card_table(results)
    lines = [
        [f"{entry.preset}, {entry.steps} steps", *beside_the_fastest(case_rows(tables, entry))] for entry in published.TABLE
    ]
    header = ["preset and steps", f"{OURS}, tok/s", "fastest peer on the same card, tok/s", "ratio"]
    groups = ",".join(result.group for result in tables)
    days, commits = ([*dict.fromkeys(found)] for found in zip(*((r.day, r.machine["commit"]) for r in tables), strict=True))
    measured = (
        f"One {name}, {published.SEQ_LEN} tokens, batch {published.BATCH}, random weights; {' and '.join(days)}, "
        f"commit {' and '.join(commits)}. Measure it: `pytest benchmarks/ --benchmark-only --groups {groups}`. "
        "Every row: [docs/benchmarks.md](docs/benchmarks.md)."
    )
    parts = [picture(README, f"Tokens a second beside peers on one {name}", PLOTS), table(header, lines), measured]
    if tables[0].machine["device"] == "cpu":
        parts.append("**These are a CPU's figures: every row awaits a card.**")
    return "\n\n".join(parts)


def beside_the_fastest(rows: list[Row]) -> list[str]:
    """Of a case: our speed, the fastest row that is not ours, and the ratio of both."""
    if not rows:
        return ["awaits a card", "-", "-"]
    mine = next((row for row in rows if row.contender == OURS and row.tokens_per_s), None)
    others = peers(rows)
    speed = number(mine and mine.tokens_per_s)
    if not others:
        return [speed, "-", "-"]
    fastest = max(others, key=lambda row: row.tokens_per_s)
    if any(row.unstable for row in (mine, *others) if row):
        ratio = "unstable"
    else:
        ratio = f"{mine.tokens_per_s / fastest.tokens_per_s:.2f}" if mine else number(None)
    return [speed, f"{fastest.contender}: {number(fastest.tokens_per_s)}", ratio]
