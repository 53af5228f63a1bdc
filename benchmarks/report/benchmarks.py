"""docs/benchmarks.md: every committed result of the harness. Every number comes from a result's file."""

from collections.abc import Callable, Iterable

from benchmarks.report import published, readme
from benchmarks.report.drawing import files as plot_files
from benchmarks.report.fit import growth
from benchmarks.report.harness import AXES, KINDS, card_table, case_rows, kind_of, newest, result_file
from benchmarks.report.pages import ROOT, committed, picture, table, within
from benchmarks.report.speed_plots import README, draw, plots, readme_plot
from dllm_kernels.bench.peers import OURS
from dllm_kernels.bench.results import SCHEMA, Result, Row, read
from dllm_kernels.bench.wording import machine_line, number, share

_COMMAND = "pytest benchmarks/ --benchmark-only"
_FULL_CLOCK = 0.97  # of the card's highest: NVML's steps are 15 MHz


def files() -> dict[str, str]:
    """By path: the page, the README with its block, and their plots."""
    results = committed(SCHEMA, read)
    drawn = plots(results)
    texts = {"docs/benchmarks.md": document(results, drawn)}
    texts["README.md"] = within((ROOT / "README.md").read_text(), "begin", readme.block(results))
    for name, plot in (drawn | {README: readme_plot(results)}).items():
        texts |= plot_files(name, plot, draw)
    return texts


def document(results: Iterable[Result], plots: dict[str, dict]) -> str:
    """docs/benchmarks.md."""
    results = list(results)
    parts = [
        "# Benchmarks",
        "`python -m benchmarks.report` writes this page from the files in benchmarks/results. "
        f"`{_COMMAND}` makes such files, on any machine.",
        "## What the columns say",
        table(("column", "meaning"), _COLUMNS),
    ]
    try:
        _, tables = card_table(results)
    except ValueError:
        tables = []
    parts += ["## Beside the published figures", *_published(tables)] if tables else []
    for name, groups in newest(results).items():
        reached = groups[0].reached
        parts += [
            f"## {name}",
            f"{machine_line(groups[0])}. Before the first group began it was measured to read or copy "
            f"{number(reached['bytes_per_s'] / 1e9)} GB/s and to compute {number(reached['flops'] / 1e12)} TFLOP/s in bf16.",
            *(picture(key, plot["title"]) for key, plot in plots.items() if plot["machine"] == name),
        ]
        for result in sorted(groups, key=lambda result: (KINDS.index(kind_of(result)), result.group)):
            parts += _section(result)
    return "\n\n".join(parts) + "\n"


_COLUMNS = (
    ("ms, us", "the median time of a call"),
    ("p20, p80", "a fifth of the calls took less than p20, and a fifth more than p80"),
    ("ratio", "the speed over the baseline's in the same process; none where the machine was not steady"),
    ("GB/s, TFLOP/s", "bytes moved and operations done in the median time"),
    ("streaming", "GB/s over what the machine was measured to read or copy when the group began"),
    ("floor", "the least time that memory and arithmetic allow, over the median time"),
    ("launches", "kernels, copies and fills of one call"),
    ("memory, GB", "the most that was held, from building to the first call"),
    ("J a token, W", "energy and power of the card over a second of calls"),
    ("error", "the largest difference from float64, relative to the largest value"),
    ("tokens", "the share of tokens that equal those of float64"),
    ("build, s; first run, s", "what comes before the second call: building, compiling, capturing"),
    ("N, M, K", "under N the steps of a generation; in a shape M rows, N outputs and K inputs of a linear layer"),
)


def _published(tables: list[Result]) -> list[str]:
    """The published cases: the post's figures, every contender, and ours over the fastest peer."""
    rows = [(entry, case_rows(tables, entry)) for entry in published.TABLE]
    contenders = list(dict.fromkeys(row.contender for _, found in rows for row in found if row.ms is not None))
    lines = []
    for entry, found in rows:
        speeds = {row.contender: row.tokens_per_s for row in found}
        told = f"{number(entry.tokens_per_s, 4)}{' (extrapolated)' if entry.extrapolated else ''}"
        cells = [number(speeds.get(contender)) for contender in contenders] if found else ["awaits a card"] * len(contenders)
        lines.append([entry.preset, str(entry.steps), told, *cells, readme.beside_the_fastest(found)[-1]])
    header = ["preset", "N", f"published, {published.CARD}", *contenders, f"{OURS} / the fastest peer"]
    text = [
        f"Tokens a second, {published.SEQ_LEN} tokens, batch {published.BATCH}, random weights, on {machine_line(tables[0])}. "
        "The contenders of a row ran in turns in one process, on the same weights, each checked against float64. "
        f"The published figures are of a public post and an {published.CARD}: they were not measured here.",
        table(header, lines),
    ]
    reasons = dict.fromkeys(row.unstable for _, found in rows for row in found if row.unstable)
    text += [f"Not steady, though measured up to three times: {reason}. These speeds cannot be compared." for reason in reasons]
    awaits = [f"{entry.preset}, N = {entry.steps}" for entry, found in rows if not found]
    return text + ([f"Not measured on it: {'; '.join(awaits)}."] if awaits else [])


def _section(result: Result) -> list[str]:
    kind = kind_of(result)
    made = {"ops": _ops_table, "sweep": _sweep_table}.get(kind, _generation_table)(result)
    text = [f"### {result.group}"]
    state = "" if result.complete else " **Incomplete.**"
    text.append(f"`{result.command}`, {number(result.took_s)} s; baseline: {result.baseline}; `{result_file(result)}`.{state}")
    text.append(made)
    text += growths(result) if kind == "sweep" else []
    unstable = dict.fromkeys(f"{_short(row.case)}: {row.unstable}" for row in result.rows if row.unstable)
    text += [f"Not steady: {'; '.join(unstable)}."] if unstable else []
    text += _power(result)
    missing = dict.fromkeys(f"{row.contender}: {row.reason}" for row in result.rows if row.reason)
    text += [f"Without a time: {'; '.join(missing)}."] if missing else []
    text += [f"Left out: {sentence}." for sentence in result.left_out]
    return text


def _power(result: Result) -> list[str]:
    """Where the card's power or heat held its clock down: contenders in turns then leave each other more of it, or less."""
    most = result.machine.get("most_sm_mhz")
    slow = [row for row in result.rows if most and row.sm_mhz and row.sm_mhz < _FULL_CLOCK * most]
    if not slow:
        return []
    cases, least = dict.fromkeys(_short(row.case) for row in slow), min(row.sm_mhz for row in slow)
    return [
        f"Power or heat held the SM clock down, to as little as {least:.0f} of {most} MHz, at: {'; '.join(cases)}. "
        "A contender's time there depends on what the card did just before."
    ]


def _short(case: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in case.items() if key != "preset")


_TIMES: dict[str, Callable[[Row], str]] = {
    "ms": lambda row: number(row.ms),
    "p20": lambda row: number(row.p20_ms),
    "p80": lambda row: number(row.p80_ms),
    "ratio": lambda row: number(row.ratio),
}
_RATES: dict[str, Callable[[Row], str]] = {
    "GB/s": lambda row: number(row.gb_per_s),
    "TFLOP/s": lambda row: number(row.tflops),
    "streaming": lambda row: share(row.streaming_share),
    "floor": lambda row: share(row.floor_share),
    "launches": lambda row: "-" if row.launches is None else str(row.launches),
}


def _columns(rows: Iterable[Row], leading: dict[str, Callable[[Row], str]], *more: dict[str, Callable[[Row], str]]) -> str:
    """A table without the columns that hold nothing."""
    rows = [row for row in rows if row.ms is not None]
    columns = leading | {title: cell for part in more for title, cell in part.items() if any(cell(row) != "-" for row in rows)}
    return table(columns, ([cell(row) for cell in columns.values()] for row in rows))


def _generation_table(result: Result) -> str:
    leading = {"N": lambda row: str(row.case["steps"]), "contender": lambda row: row.contender}
    speed = {"tok/s": lambda row: number(row.tokens_per_s)}
    rest = {
        "memory, GB": lambda row: "-" if row.peak_memory_bytes is None else number(row.peak_memory_bytes / 1e9),
        "J a token": lambda row: number(row.joules_per_token),
        "W": lambda row: number(row.watts),
        "error": lambda row: number(row.max_error, 2),
        "tokens": lambda row: share(row.token_agreement),
        "build, s": lambda row: number(row.build_s),
        "first run, s": lambda row: number(row.first_s),
    }
    return _columns(result.rows, leading, speed, _TIMES, _RATES, rest)


def _ops_table(result: Result) -> str:
    leading = {
        "op": lambda row: row.case["op"],
        "shape": lambda row: _shape(row.case),
        "who": lambda row: row.contender,
    }
    # An op's times are told in microseconds.
    times = {
        "us": lambda row: number(1000 * row.ms),
        "p20": lambda row: number(1000 * row.p20_ms),
        "p80": lambda row: number(1000 * row.p80_ms),
        "ratio": lambda row: number(row.ratio),
    }
    rest = {"W": lambda row: number(row.watts), "error": lambda row: number(row.max_error, 2)}
    return _columns(result.rows, leading, times, _RATES, rest)


def _shape(case: dict) -> str:
    """An op's shape, in the field's letters."""
    if "outputs" in case:
        return f"M {case['rows']}, N {case['outputs']}, K {case['width']}"
    if "heads" in case:
        causal = ", causal" if case["causal"] else ""
        return f"{case['rows']} tokens, {case['heads']} heads of {case['head_dim']}{causal}"
    return f"{case['rows']} x {case['width']}"


def _sweep_table(result: Result) -> str:
    axis = AXES[result.group.split("-")[1]]
    leading = {axis: lambda row: str(row.case[axis]), "contender": lambda row: row.contender}
    speed = {"tok/s": lambda row: number(row.tokens_per_s)}
    rest = {"error": lambda row: number(row.max_error, 2), "tokens": lambda row: share(row.token_agreement)}
    return _columns(result.rows, leading, speed, _TIMES, _RATES, rest)


def growths(result: Result) -> list[str]:
    """A sentence a contender: how its time grows with the sweep's axis, over its steady points."""
    axis, sentences = AXES[result.group.split("-")[1]], []
    for contender in dict.fromkeys(row.contender for row in result.rows):
        points = [
            (row.case[axis], row.ms)
            for row in result.rows
            # A law of powers has no point at 0.
            if row.contender == contender and row.ms and not row.unstable and row.case[axis] > 0
        ]
        if len(points) < 4:
            sentences.append(f"Time of {contender}: {len(points)} steady points, too few to fit.")
        else:
            law = growth(*zip(*points, strict=True))
            sentences.append(f"Time of {contender}: {law}, where x is {axis}; fitted to {len(points)} points.")
    return sentences
