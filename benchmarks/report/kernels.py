"""The tables of docs/kernels.md that change when something is measured again: every kernel, and what `tune` chose."""

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.report.pages import RESULTS, ROOT, table, within

DOCUMENT = "docs/kernels.md"
PRESETS = ("open-dllm-35b-a3b", "open-dllm-27b")
TABLE = ROOT / "dllm_kernels" / "ops" / "linear" / "table.json"
BUS_BOUND, LATENCY_BOUND = 0.85, 0.5
"""Shares of the bus from which on, and below which, the table names one bound alone."""


def ops(preset: str) -> tuple[Path, dict[str, Any]]:
    """The newest result of a preset's ops on an H200."""
    path = sorted(RESULTS.glob(f"*-nvidia-h200-ops-{preset}.json"))[-1]
    return path, json.loads(path.read_text())


def bound(share: float) -> str:
    """What bounds a kernel that uses so much of the bus."""
    if share >= BUS_BOUND:
        return "bus"
    return "latency" if share < LATENCY_BOUND else "bus and latency"


def shape(case: dict[str, Any]) -> str:
    """A case of an op as a reader names it."""
    if "heads" in case:
        return f"{case['heads']} x {case['head_dim']}{', causal' if case['causal'] else ''}"
    return f"{case['outputs']} x {case['width']}" if "outputs" in case else f"{case['width']}"


def every_kernel() -> str:
    """A row for each op of a plan at B = 1 and T = 64; what bounds it; who measured it."""
    rows, sources, means = [], [], []
    for preset in PRESETS:
        path, result = ops(preset)
        bus, machine = result["reached"]["bytes_per_s"], result["machine"]
        library = {r["case"]["op"]: r["ms"] for r in result["rows"] if r["contender"] == "library"}
        ours = [r for r in result["rows"] if r["contender"] == "ours"]
        for row in ours:
            op, us, rate = row["case"]["op"], row["ms"] * 1e3, row["gb_per_s"]
            share = rate * 1e9 / bus
            times = f"{rate * row['ms']:,.1f}", f"{us:,.2f}", f"{1e3 * library[op]:,.2f}", f"{rate:,.0f}"
            rows.append((op, shape(row["case"]), *times, f"{share:.0%}", bound(share)))
        ratios_of_linears = [r["ratio"] for r in ours if r["case"]["op"].startswith("linear")]
        means.append(f"{statistics.geometric_mean(ratios_of_linears):.2f} times as fast as PyTorch for {preset}")
        sources.append(
            f"- {preset}: `{result['command']}`, {machine['name']}, {result['day']}, commit {machine['commit']}, "
            f"bus {bus / 1e9:,.0f} GB/s, [{path.name}](../benchmarks/results/{path.name})."
        )
    titles = ("kernel", "shape", "MB", "us", "PyTorch, us", "GB/s", "share of the bus", "bound")
    legend = (
        f"- Bound *bus*: the share is at least {BUS_BOUND:.0%}. Bound *latency*: it is below {LATENCY_BOUND:.0%}. The time "
        "then goes to the launch, the first load, the reduction of sums and the last store, one after the other.\n"
        f"- The four linear layers with what surrounds them are {' and '.join(means)} (geometric mean)."
    )
    return "\n\n".join((table(titles, rows), "Who measured it:", "\n".join(sources), "How to read it:", legend))


def config(entry: dict[str, Any]) -> str:
    """A chosen GemmConfig in four numbers: tile_n, split_k, num_stages, input_stages."""
    return ", ".join(str(entry[name]) for name in ("tile_n", "split_k", "num_stages", "input_stages"))


def way(entry: dict[str, Any]) -> str:
    """How an entry of the table multiplies; `mma.sync` was timed under the proxy for sm_120 (docs/design.md)."""
    return "wgmma" if entry["wgmma"] else "mma.sync"


def shapes() -> str:
    """Each GEMM that `tune` timed, beside the library's."""
    bus, rows = ops(PRESETS[0])[1]["reached"]["bytes_per_s"], []
    for e in json.loads(TABLE.read_text())["entries"]:
        n, k, us, library, least = e["n"], e["k"], e["us"], e["library_us"], e["fastest_us"]
        rate = 2 * n * k / us * 1e6
        shared = f"{us:.2f}", f"{rate / 1e9:,.0f}", f"{rate / bus:.0%}", f"{library / us:.2f}"
        alone = f"{least:.2f}", f"{library / least:.2f}"
        rows.append((way(e), f"{64 * e['row_tiles']}", f"{n} x {k}", config(e), f"{library:.2f}", *shared, *alone))
    titles = (
        "by",
        "M",
        "N x K",
        "tile_n, split_k, stages, input stages",
        "library, us",
        "us",
        "GB/s",
        "share of the bus",
        "ratio",
    )
    return table((*titles, "fastest alone, us", "ratio"), rows) + "\n\n" + ratios()


def ratios() -> str:
    """The range of the kernel's speed beside the library's GEMM, by width, of 64 rows."""
    found: dict[int, list[float]] = {}
    for e in json.loads(TABLE.read_text())["entries"]:
        if e["row_tiles"] == 1 and e["wgmma"]:
            found.setdefault(min(e["n"], e["k"]), []).append(e["library_us"] / e["us"])
    ranges = " and ".join(f"{min(r):.2f} to {max(r):.2f} times as fast at width {width}" for width, r in found.items())
    return f"The library computes the GEMM alone. Beside it the kernel by wgmma is {ranges} (M = 64)."


def layers() -> str:
    """Each whole layer that `tune` timed, beside the library's GEMMs."""
    rows = []
    for e in json.loads(TABLE.read_text())["layers"]:
        us, library = e["us"], e["library_us"]
        rows.append((way(e), f"{e['dim']}", f"{64 * e['row_tiles']}", f"{library:.2f}", f"{us:.2f}", f"{library / us:.2f}"))
    return table(("by", "width", "M", "with the library's GEMMs, us", "linear_skinny, us", "ratio"), rows)


def files() -> dict[str, str]:
    """docs/kernels.md with its tables between their marks."""
    text = (ROOT / DOCUMENT).read_text()
    for name, block in (("every kernel", every_kernel()), ("shapes", shapes()), ("layers", layers())):
        text = within(text, f"kernels: {name}", block)
    return {DOCUMENT: text}
