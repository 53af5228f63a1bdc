"""Results as Markdown: docs/benchmarks.md and the table that the README opens with. Every number comes from a result's file."""

import statistics
from collections.abc import Callable, Iterable

from dllm_kernels.bench import published
from dllm_kernels.bench.fit import growth
from dllm_kernels.bench.generation import OUR_NAMES
from dllm_kernels.bench.peers import OURS, OURS_TRITON
from dllm_kernels.bench.results import Result, Row, file_name

BEGIN, END = "<!-- written by dllm-kernels report: begin -->", "<!-- end -->"
AXES = {"length": "seq_len", "batch": "batch", "steps": "steps", "prompt": "prompt"}
KINDS = ("table", "autotune", "ops", "sweep")
_COMMAND = "pytest benchmarks/ --benchmark-only"
_FULL_CLOCK = 0.97  # of the card's most: NVML's steps are 15 MHz


def number(value: float | None, digits: int = 3) -> str:
    """Rounded to significant digits, without an exponent, with commas; a dash for None."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    if abs(rounded) < 1e-3:
        return f"{value:.1e}"
    decimals = 0
    while decimals < 6 and round(rounded, decimals) != rounded:
        decimals += 1
    return f"{rounded:,.{decimals}f}"


def share(value: float | None) -> str:
    """In percent; a dash for None."""
    return "-" if value is None else f"{value:.0%}"


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def newest(results: Iterable[Result]) -> dict[str, list[Result]]:
    """By machine, the newest result of each group: cards before CPUs, then the newest machine first."""
    machines: dict[str, dict[str, Result]] = {}
    for result in sorted(results, key=lambda result: (result.day, KINDS.index(kind_of(result)), result.group)):
        machines.setdefault(result.machine["name"], {})[result.group] = result
    ordered = sorted(machines.values(), key=lambda groups: max(result.day for result in groups.values()), reverse=True)
    ordered.sort(key=lambda groups: next(iter(groups.values())).machine["device"] == "cpu")
    return {next(iter(groups.values())).machine["name"]: list(groups.values()) for groups in ordered}


def readme(results: Iterable[Result]) -> str:
    """The published table on the newest card, or on the newest CPU where there is no card's, with what awaits one."""
    for name, groups in newest(results).items():
        tables = [
            result for result in groups if kind_of(result) == "table" and any(_case(result, entry) for entry in published.TABLE)
        ]
        if tables:
            return _published_table(name, tables)
    raise ValueError("none of the results has a table group: a README's table needs one")


def _published_table(name: str, tables: list[Result]) -> str:
    rows = [(entry, [row for result in tables for row in _case(result, entry)]) for entry in published.TABLE]
    contenders = list(dict.fromkeys(row.contender for _, found in rows for row in found if row.ms is not None))
    lines = []
    for entry, found in rows:
        by_name = {row.contender: row for row in found}
        told = f"{number(entry.tokens_per_s, 4)}{' (extrapolated)' if entry.extrapolated else ''}"
        speeds = [_speed(by_name.get(contender)) for contender in contenders] if found else ["awaits a card"] * len(contenders)
        lines.append([entry.preset, str(entry.steps), told, *speeds, _beside_the_fastest(by_name)])
    header = ["preset", "N", f"published, {published.CARD}", *contenders, f"{OURS} / the fastest peer"]
    awaits = [entry for entry, found in rows if not found]
    text = [
        f"Tokens a second, T = {published.SEQ_LEN}, B = {published.BATCH}, random weights, the contenders of a row in turns on "
        f"the same weights in one process, each checked against float64, on **{machine_line(tables[0])}**:",
        markdown(header, lines),
        f"Typed: `{tables[0].command}`; files: {', '.join(f'`{result_file(result)}`' for result in tables)}.",
    ]
    for reason in dict.fromkeys(row.unstable for _, found in rows for row in found if row.unstable):
        text.append(f"Unstable, measured up to three times: {reason}. These speeds cannot be compared.")
    if tables[0].machine["device"] == "cpu":
        text.append("**These are a CPU's figures: every row awaits a card**, where the published ones were taken.")
    elif awaits:
        text.append(f"Not measured on it: {', '.join(f'{entry.preset} N = {entry.steps}' for entry in awaits)}.")
    return "\n\n".join(text)


def _beside_the_fastest(rows: dict[str, Row]) -> str:
    """Our speed over that of the fastest row that is not ours."""
    ours, peers = (
        rows.get(OURS),
        [row for name, row in rows.items() if name not in (*OUR_NAMES, OURS_TRITON) and row.tokens_per_s],
    )
    if ours is None or ours.tokens_per_s is None or not peers:
        return "-"
    if any(row.unstable for row in (ours, *peers)):
        return "unstable"
    return number(ours.tokens_per_s / max(row.tokens_per_s for row in peers))


def result_file(result: Result) -> str:
    """Where the result lies in the repository."""
    return f"benchmarks/results/{file_name(result)}"


def _case(result: Result, entry: published.Published) -> list[Row]:
    return result.of(preset=entry.preset, steps=entry.steps, batch=published.BATCH, seq_len=published.SEQ_LEN, prompt=0)


def _speed(row: Row | None) -> str:
    if row is None or row.tokens_per_s is None:
        return "-"
    return number(row.tokens_per_s)


def machine_line(result: Result) -> str:
    """One line that says what was measured on."""
    m = result.machine
    parts = [m["name"]]
    if m["device"] == "cpu":
        parts += [f"{m['cores']} cores, {m['threads']} threads", f"load average {m['load_average']} at the start"]
    if m.get("driver"):
        parts.append(f"driver {m['driver']}")
    clocks = [row.sm_mhz for row in result.rows if row.sm_mhz]
    if clocks:
        parts.append(f"SM at {statistics.median(clocks):.0f} of {m['most_sm_mhz']} MHz, memory at {m['memory_mhz']} MHz")
    if m.get("power_limit_w"):
        parts.append(f"{m['power_limit_w']:.0f} W")
    parts += [f"torch {m['torch']}", f"triton {m['triton']}", f"CUDA {m['cuda']}", result.day, f"commit {m['commit']}"]
    return ", ".join(part for part in parts if not part.endswith(" None"))


def document(results: Iterable[Result], plots: dict[str, dict]) -> str:
    """docs/benchmarks.md."""
    parts = [
        "# Benchmarks",
        "Written by `dllm-kernels report` from the files under benchmarks/results. "
        f"`{_COMMAND}` makes such files on any machine.",
        "ms is the median, p20 and p80 stand beside it; ratio is the speed relative to the baseline in the same process, and "
        "is absent where the machine was not steady. Streaming is the share of the rate at which the machine was measured to "
        "read or copy memory when the group began; floor is the least time of the case over its time. An error is the largest "
        "difference from float64 relative to the largest value; tokens are the share that are float64's. What a contender "
        "needs before its first run is under build, captures and compilation included.",
    ]
    for name, groups in newest(results).items():
        first = groups[0]
        parts.append(f"## {name}")
        reached = first.reached
        parts.append(
            f"{machine_line(first)}. Measured: {number(reached['bytes_per_s'] / 1e9)} GB/s, "
            f"{number(reached['flops'] / 1e12)} TFLOP/s in bf16, when the first group began."
        )
        for result in sorted(groups, key=lambda result: (KINDS.index(kind_of(result)), result.group)):
            parts += _section(result)
        parts += [f"![{plot['title']}](plots/{key}.svg)" for key, plot in plots.items() if plot["machine"] == name]
    return "\n\n".join(parts) + "\n"


def kind_of(result: Result) -> str:
    """The kind of its group, one of KINDS where the harness wrote it."""
    return result.group.split("-")[0]


def _section(result: Result) -> list[str]:
    kind = kind_of(result)
    table = {"ops": _ops_table, "sweep": _sweep_table}.get(kind, _generation_table)
    text = [f"### {result.group}"]
    state = "" if result.complete else " **Incomplete.**"
    text.append(f"`{result.command}`, {number(result.took_s)} s; baseline: {result.baseline}; `{result_file(result)}`.{state}")
    text.append(table(result))
    text += [f"Growth of {line}" for line in growths(result)] if kind == "sweep" else []
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
        f"The SM clock was held down to as little as {least:.0f} of {most} MHz at: {'; '.join(cases)}. "
        "A contender's time there depends on what the card did just before ([kernels.md](kernels.md), Power)."
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
    return markdown(columns, ([cell(row) for cell in columns.values()] for row in rows))


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
    shape = ("rows", "outputs", "width", "heads", "head_dim", "causal")
    leading = {
        "op": lambda row: row.case["op"],
        "shape": lambda row: " ".join(f"{key} {row.case[key]}" for key in shape if key in row.case),
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
            sentences.append(f"{contender}: {len(points)} steady points, too few to fit.")
        else:
            sentences.append(f"{contender}: {growth(*zip(*points, strict=True))}, x = {axis}, {len(points)} points.")
    return sentences


def ours(result: Result) -> list[Row]:
    """Our rows that have a time."""
    return [row for row in result.rows if row.contender in OUR_NAMES and row.ms is not None]
