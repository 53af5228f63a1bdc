"""The blocks of docs/scale.md: what a trillion tokens cost, what breaks first, and what was run."""

import json
from typing import Any

from benchmarks.report.pages import RESULTS, ROOT, table, within

PAGE = "docs/scale.md"
TRILLION, SEQ_LEN = 10**12, 64


def files() -> dict[str, str]:
    """By path: the page with its blocks."""
    text = (ROOT / PAGE).read_text()
    for name, block in BLOCKS.items():
        text = within(text, name, block())
    return {PAGE: text}


def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def rates() -> list[dict[str, Any]]:
    """Tokens a second of a FusedSampler on a card, as measured: of its own results, the harness's tables and its sweep
    of the batch."""
    found = []
    for path in sorted(RESULTS.glob("*.json")):
        data = json.loads(path.read_text())
        if "card" in data:
            for key in ("generation", "generation_of_64"):
                run = data.get(key)
                if isinstance(run, dict) and "FusedSampler" in run.get("ms", {}):
                    ms = run["ms"]["FusedSampler"][1]
                    rate = 1000 * run["batch"] * SEQ_LEN / ms
                    found.append(_rate(data["card"], run["preset"], run["steps"], run["batch"], rate, None, path.name))
        elif str(data.get("group", "")).startswith(("table-", "sweep-batch-")) and data["machine"]["device"] == "cuda":
            for row in data["rows"]:
                case = row["case"]
                if row["contender"] == "FusedSampler" and row["tokens_per_s"] and case.get("seq_len") == SEQ_LEN:
                    what = case["preset"], case["steps"], case["batch"], row["tokens_per_s"], row.get("joules_per_token")
                    found.append(_rate(data["machine"]["name"], *what, path.name))
    return found


def _rate(card, preset, steps, batch, tokens_per_s, joules_per_token, source) -> dict[str, Any]:
    names = "card", "preset", "steps", "batch", "tokens_per_s", "joules_per_token", "source"
    return dict(zip(names, (card, preset, steps, batch, tokens_per_s, joules_per_token, source), strict=True))


def cost() -> str:
    """What a trillion tokens cost, without Ray and with what it added to a batch here."""
    rows, added = [], _read("scale-batch")["overhead"]["added"]
    for r in rates():
        seconds, joules = TRILLION / r["tokens_per_s"], r["joules_per_token"]
        energy = (
            "not measured" if joules is None else f"{joules * TRILLION / 1e9:,.2f} GJ ({joules * TRILLION / 3.6e9:,.1f} MWh)"
        )
        what = f"{r['preset']}, N = {r['steps']}, B = {r['batch']}", r["card"], f"{r['tokens_per_s']:,.0f}"
        with_ray = seconds * (1 + added)
        hours = f"{seconds / 3600:,.0f}", f"{with_ray / 3600:,.0f}", f"{with_ray / 3.6e6:,.2f}"
        rows.append((*what, *hours, energy, r["source"]))
    ray = f"with Ray, +{added:.1%}"
    titles = "what", "card", "tok/s of a card", "card-hours", ray, "hours on 1,000 cards", "joules", "measured in"
    return table(titles, rows)


def _best() -> dict[str, Any]:
    return max(rates(), key=lambda r: r["tokens_per_s"])


def breaks() -> str:
    """What each part can do, and how many cards that feeds at the highest measured rate."""
    limits, simulated, best = _read("scale-batch")["limits"], _read("scale-simulation"), _best()
    samples_per_s = best["tokens_per_s"] / SEQ_LEN
    rows = []
    for size in (32 * best["batch"], simulated["samples_a_shard"]):
        cards = limits["shards_per_s_of_a_driver"] * size / samples_per_s
        rate = f"{limits['shards_per_s_of_a_driver']:,.0f} shards/s"
        rows.append((f"the driver, shards of {size:,} samples", rate, f"{cards:,.0f} cards"))
    written = limits["sink_samples"] / limits["sink_s"]
    rows.append(("one process that writes Parquet", f"{written:,.0f} samples/s", f"{written / samples_per_s:,.0f} cards"))
    a_card = best["tokens_per_s"] * limits["sink_bytes_a_token"]
    volume = f"{a_card / 1e6:,.2f} MB/s a card"
    total = limits["sink_bytes_a_token"] * TRILLION / 1e12
    rows.append(
        ("the file system", volume, f"{a_card * 1000 / 1e9:,.2f} GB/s of 1,000 cards, {total:,.1f} TB a trillion tokens")
    )
    per_s = limits["listed_names"] / limits["listing_s"]
    shards = simulated["shards"]
    listing = f"{shards / per_s:,.0f} s and {shards * limits['bytes_a_shard'] / 1e6:,.0f} MB for {shards:,} shards"
    rows.append(("the driver's list at a start", f"{per_s:,.0f} names/s", listing))
    packing = simulated["measured"]["packing_s"]
    rows.append(("a worker's start: packing the weights", f"{packing:,.1f} s", "read once from the file system by each card"))
    return table(("part", "measured", "enough for"), rows)


def simulation() -> str:
    """The simulated run."""
    s = _read("scale-simulation")
    between, failures = s["assumed"]["hours_between_failures"], s["failures"]
    rows = [
        ("cards, of which eight to a node", f"{s['assumed']['workers']:,}"),
        ("tokens; shards; samples a shard", f"{s['tokens']:,}; {s['shards']:,}; {s['samples_a_shard']:,}"),
        *(
            (f"{kind} failures, one every {between[kind]:g} h each", f"{failures[kind]:,}")
            for kind in ("worker", "node", "driver")
        ),
        ("shards half made when their worker died", f"{s['half_made_and_lost']:,}"),
        ("shards whole, their worker dead before anyone heard", f"{s['renamed_and_unheard']:,}"),
        ("shards finished by a worker taken for dead", f"{s['finished_though_taken_for_dead']:,}"),
        ("shards made twice, under one name", f"{s['made_twice']:,}"),
        (
            "samples lost; names listed twice; shards pending",
            f"{s['samples_lost']}; {s['names_listed_twice']}; {s['pending_at_the_end']}",
        ),
        ("hours, and without failures", f"{s['hours']:.2f}; {s['hours_without_failures']:.2f}"),
    ]
    return table(("simulated", ""), rows)


def batch() -> str:
    """The experiments on Ray Data."""
    b = _read("scale-batch")
    equality, kills = b["equality"], b["kills"]
    kinds = [kill["what"] for kill in kills["kills"]]
    each = ", ".join(f"{kinds.count(kind)} {kind}s" for kind in ("worker", "node", "driver"))
    aside = max(kill["half_written"] for kill in kills["kills"])
    rows_equal, files_equal = _yes(equality["rows_equal"]), _yes(equality["files_equal"])
    rows = [
        (
            f"{equality['workers']} workers against one, {equality['samples']:,} samples, "
            f"{equality['distinct_samples']:,} of them distinct",
            f"rows equal: {rows_equal}; bytes of all {equality['files']} files equal: {files_equal}",
        ),
        (
            f"{len(kinds)} kills at random moments ({each})",
            f"samples {kills['samples']:,}, lost {kills['lost']}, twice {kills['twice']}; bytes equal: "
            f"{_yes(kills['files_equal_to_one_worker'])}; up to {aside} half-written files lay aside",
        ),
        *(
            (
                f"{what}, shards of {o['batches_a_shard']}: time a batch on Ray and without, in turns",
                f"{o['median_ms']['ray']:.1f} and {o['median_ms']['here']:.1f} ms, {o['added']:+.1%}; "
                f"between shards a worker on Ray waits {o['waiting']['ray']:.2%} of the time in them",
            )
            for what, o in (
                ("batches of 100 ms in which the host waits", b["overhead"]),
                ("batches that compute on the cores that Ray's processes use too", b["overhead_on_shared_cores"]),
            )
        ),
    ]
    return table(("experiment", "result"), rows) + f"\n\n{_machine(b)}"


def serving() -> str:
    """The server under load."""
    s = _read("scale-serve")
    titles = (
        "offered, of the capacity",
        "sent/s",
        "answered/s",
        "refused with 429",
        "p50 ms",
        "p99 ms",
        "429's p99 ms",
        "samples a call",
    )
    rows = [
        (
            f"{p['share']:g}",
            f"{p['sent_per_s']:.1f}",
            f"{p['answered_per_s']:.1f}",
            f"{p['statuses'].get('429', 0) / sum(p['statuses'].values()):.0%}",
            f"{p['p50_ms']:,.0f}",
            f"{p['p99_ms']:,.0f}",
            "-" if p["refusal_p99_ms"] is None else f"{p['refusal_p99_ms']:,.0f}",
            f"{p['samples_a_call']:.1f}",
        )
        for p in s["curve"]
    ]
    o, k, m = s["overload"], s["killed"], s["malformed"]
    more = [
        (
            f"{o['seconds'] / 60:.1f} minutes at three times the capacity",
            f"statuses {_statuses(o['statuses'])}; memory at the end {o['memory_last_over_first']:.3f} of that after half a "
            f"minute, at most {_most_memory(o):.3f}",
        ),
        (
            f"one of {k['replicas_before']} replicas killed under load",
            f"statuses {_statuses(k['statuses'])}; {k['replicas_after']} replicas afterwards, {k['new_replicas']} of them new",
        ),
        (
            "schemathesis over the OpenAPI document",
            f"{m['generated']:,} cases, {m['statuses_since_start']['500']:.0f} answers with 500; exit code {m['exit_code']}",
        ),
    ]
    server = s["server"]
    capacity = f"capacity {s['capacity_per_s']:.1f} requests a second, measured by as many users as the queue holds"
    opening = f"`{server['command']}`: {capacity}."
    return "\n\n".join((opening, table(titles, rows), table(("experiment", "result"), more), _machine(s)))


def _most_memory(overload: dict[str, Any]) -> float:
    totals = [sum(sample["bytes"].values()) for sample in overload["memory"]]
    return max(totals) / totals[0]


def _statuses(counts: dict[str, int]) -> str:
    return ", ".join(f"{code}: {counts[code]:,}" for code in sorted(counts))


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _machine(result: dict[str, Any]) -> str:
    m = result["machine"]
    return (
        f"{m['name']}, {m['cores']} cores, load average {m['load_average']} at the start, torch {m['torch']}, "
        f"{result['date']}, commit {m['commit']}; `{result['command']}`."
    )


BLOCKS = {"cost": cost, "breaks": breaks, "simulation": simulation, "batch": batch, "serving": serving}
