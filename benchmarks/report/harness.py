"""Which of the harness's results a page shows: the newest of each group and machine; the published cases on the newest card."""

from collections.abc import Iterable

from benchmarks.report import published
from dllm_kernels.bench.generation import OUR_NAMES
from dllm_kernels.bench.peers import OURS_TRITON
from dllm_kernels.bench.results import Result, Row, file_name

AXES = {"length": "seq_len", "batch": "batch", "steps": "steps", "prompt": "prompt"}
"""The name of a sweep's axis in its cases, by its name in the group."""

KINDS = ("table", "autotune", "ops", "sweep")
"""Of groups, as a machine's are ordered."""


def kind_of(result: Result) -> str:
    """The kind of its group, one of KINDS.

    Raises:
        ValueError: the harness has no such group.
    """
    kind = result.group.split("-")[0]
    if kind not in KINDS:
        raise ValueError(
            f"{result_file(result)} holds the group {result.group!r}; pages show the harness's: " + ", ".join(KINDS)
        )
    return kind


def newest(results: Iterable[Result]) -> dict[str, list[Result]]:
    """By machine, the newest result of each group: cards before CPUs, then the newest machine first."""
    machines: dict[str, dict[str, Result]] = {}
    for result in sorted(results, key=lambda result: (result.day, KINDS.index(kind_of(result)), result.group)):
        machines.setdefault(result.machine["name"], {})[result.group] = result
    ordered = sorted(machines.values(), key=lambda groups: max(result.day for result in groups.values()), reverse=True)
    ordered.sort(key=lambda groups: next(iter(groups.values())).machine["device"] == "cpu")
    return {next(iter(groups.values())).machine["name"]: list(groups.values()) for groups in ordered}


def case_rows(results: Iterable[Result], entry: published.Published) -> list[Row]:
    """The rows of a published case."""
    case = {"preset": entry.preset, "steps": entry.steps, "batch": published.BATCH, "seq_len": published.SEQ_LEN, "prompt": 0}
    return [row for result in results for row in result.of(**case)]


def card_table(results: Iterable[Result]) -> tuple[str, list[Result]]:
    """The newest card, or CPU where there is no card's, and its table groups with a published case.

    Raises:
        ValueError: no result has one.
    """
    for name, groups in newest(results).items():
        tables = [
            result
            for result in groups
            if kind_of(result) == "table" and any(case_rows([result], entry) for entry in published.TABLE)
        ]
        if tables:
            return name, tables
    raise ValueError("none of the results has a table group: a README's table needs one")


def ours(result: Result) -> list[Row]:
    """Our rows that have a time."""
    return [row for row in result.rows if row.contender in OUR_NAMES and row.ms is not None]


def peers(rows: Iterable[Row]) -> list[Row]:
    """The rows with a speed that are not ours."""
    return [row for row in rows if row.contender not in (*OUR_NAMES, OURS_TRITON) and row.tokens_per_s]


def result_file(result: Result) -> str:
    """Where the result lies in the repository."""
    return f"benchmarks/results/{file_name(result)}"
