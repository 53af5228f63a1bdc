"""How numbers and machines are told to people, in the tables of commands and in documents."""

import statistics

from dllm_kernels.bench.results import Result


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
