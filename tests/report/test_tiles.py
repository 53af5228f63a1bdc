"""What docs/log says of every kernel, of persistent GEMMs, and of what was tried around a layer, is what was measured."""

import json
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
TILES = json.loads((RESULTS / "2026-11-28-h200-tiles.json").read_text())
COUNTERS = json.loads((RESULTS / "2026-11-28-h200-counters.json").read_text())
FURTHER = json.loads((RESULTS / "2026-11-28-h200-two-samples-and-carve-out.json").read_text())
LAYERS = json.loads((RESULTS / "2026-11-28-h200-layer-experiments.json").read_text())
LOG = "\n".join(path.read_text() for path in sorted((ROOT / "docs" / "log").glob("2*.md")))
WHOLE = " ".join(LOG.split())
NOW = "16 together, a stage's products under way"


def by_shape(rows: list[dict]) -> dict[tuple, dict]:
    return {(row["rows"], row["outputs"], row["width"]): row for row in rows}


def test_the_table_of_the_linear():
    for (rows, outputs, width), row in by_shape(TILES["linear"]["rows"]).items():
        both, us = row["library_with_what_follows_us"], row["tiles_us"][NOW]
        times = f"{row['library_us']:.1f} | {min(both):.1f} - {max(both):.1f} | {us:.1f} | {min(both) / us:.2f}"
        assert f"| {rows:,} | {outputs} x {width} | {times} |\n" in LOG


def test_the_table_of_the_lm_head():
    for row in TILES["lm_head"]["rows"]:
        library = row.get("library_product_and_argmax_ms")
        times = f"{'-' if library is None else f'{library:.2f}'} | {row['triton_ms']:.2f} | {row['tiles_ms']:.2f}"
        asked = f"{row['batch']} | {row['temperature']:g} | {'yes' if row['logprobs'] else 'no'}"
        assert f"| {asked} | {times} |\n" in LOG
        assert row["tokens_equal_triton"] == 1


def test_what_the_linear_took():
    first, now = by_shape(TILES["linear_first_version"]["rows"]), by_shape(TILES["linear"]["rows"])
    up, many, timed = (4096, 8192, 2048), (16384, 8192, 2048), "tiles_us"
    older, newer, large = first[up][timed], now[up][timed], first[many][timed]
    triton = by_shape(TILES["linear_in_triton"]["rows"])[up]
    for sentence in (
        f"took {older['16 together']:.1f} us for 8192 x 2048 with GELU and "
        f"{older['only the last tile finished, under way']:.1f} where",
        f"asked for at once made it {newer['16 together']:.1f}, and",
        f"is waited for {newer[NOW]:.1f}.",
        f"two blocks ({newer['multicast, under way, 32 together']:.1f}:",
        f"32 columns ({older['stages of 32 columns, under way']:.1f} beside {older[NOW]:.1f})",
        f"({older['8 together, under way']:.1f} and {older['32 together, under way']:.1f}; 16,384 rows "
        f"{large['8 together, under way']:.0f} and {large['32 together, under way']:.0f} beside {large[NOW]:.0f})",
        f"with the same tile ({triton['us']:.1f})",
    ):
        assert sentence in WHOLE, sentence
    assert triton["tile"] == [128, 256] and triton["persistent"]


def test_the_energy():
    for row in TILES["energy_of_a_launch"]["rows"]:
        spent = (f"{row[name]['us']:.0f} us, {row[name]['mJ']:.0f} mJ" for name in ("library_alone", "library", "tiles"))
        assert f"| {row['outputs']} x {row['width']} | {row['what_follows']} | {' | '.join(spent)} |\n" in LOG
    up = TILES["energy_of_a_launch"]["rows"][0]
    assert f"saves {1 - up['tiles']['mJ'] / up['library']['mJ']:.0%} of the energy" in WHOLE


def test_generations_at_the_power_limit():
    rows = TILES["generation_of_64_sustained"]["rows"]

    def of(contender: str, key: str) -> list[float]:
        return [row[key] for row in rows if row["contender"] == contender and key in row]

    ours, graph = "FusedSampler", "SDPA graph"
    mean = {(who, key): statistics.mean(of(who, key)) for who in (ours, graph) for key in ("ms", "J")}
    rested = {who: of(who, "rested_ms")[0] for who in (ours, graph)}
    for sentence in (
        f"took {mean[ours, 'ms']:.2f} ms and {mean[ours, 'J']:.1f} J a generation at an SM clock of "
        f"{of(ours, 'sm_mhz')[0]} MHz",
        f"in a graph {mean[graph, 'ms']:.2f} ms and {mean[graph, 'J']:.1f} J at {of(graph, 'sm_mhz')[0]}",
        f"{rested[ours]:.2f} and {rested[graph]:.2f} ms, {rested[graph] / rested[ours]:.2f} times as fast",
    ):
        assert sentence in WHOLE, sentence
    (path,) = RESULTS.glob("*-h200-sweep-batch-*.json")
    turns = {row["case"]["batch"]: row.get("ratio") for row in json.loads(path.read_text())["rows"] if row["contender"] == ours}
    assert f"both at one clock, {turns[64]:.2f} times" in WHOLE


def test_attention_with_more_queries_a_tile():
    for row in TILES["attention"]:
        us = row["us"]
        if "triton 64, 32, 4, 2" in us:
            few = next(value for name, value in us.items() if name.startswith("triton 16"))
            times = f"{us['cuda']:.1f} | {us['torch']:.1f} | {few:.1f} | {us['triton 64, 32, 4, 2']:.1f}"
            shape = f"{row['heads']} x {row['head_dim']}{', causal' if row['causal'] else ''}"
            assert f"| {row['batch']} | {shape} | {times} |\n" in LOG


def test_attention_of_256_and_of_crowds():
    for row in TILES["attention_of_256"]["rows"]:
        us, tiles = row["us"], ("64, 32, 4, 2", "64, 16, 4, 1", "64, 16, 4, 2", "64, 16, 4, 3")
        times = " | ".join(f"{us[name]:.2f}" for name in ("cuda", "torch", *(f"triton {tile}" for tile in tiles)))
        assert f"| {row['batch']} | {times} |\n" in LOG
    for row in TILES["attention_of_a_crowd"]["rows"]:
        times = " | ".join(f"{row['us'][name]:.2f}" for name in ("cuda", "torch", "triton few", "triton crowd"))
        shape = f"{row['heads']} x {row['head_dim']}{', causal' if row['causal'] else ''}"
        assert f"| {row['batch']} | {shape} | {times} |\n" in LOG
    us = TILES["generation_of_64_kernels"]["denoise_update_us"]
    assert f"took {us['before']} us of each step of 64 samples, and takes {us['now']}:" in WHOLE


def ops_of(preset: str) -> tuple[float, list[dict]]:
    """Bytes a second that the bus moved, and our rows, on an H200."""
    (path,) = RESULTS.glob(f"*-nvidia-h200-ops-open-dllm-{preset}.json")
    result = json.loads(path.read_text())
    return result["reached"]["bytes_per_s"], [row for row in result["rows"] if row["contender"] == "ours"]


def test_every_kernel_and_its_share_of_the_bus():
    for preset in ("35b-a3b", "27b"):
        bus, rows = ops_of(preset)
        assert f"{bus / 1e9:,.0f}" in WHOLE and len(rows) == 9
        for row in rows:
            case, rate = row["case"], row["gb_per_s"]
            shape = f"{case['outputs']} x {case['width']}" if "outputs" in case else f"{case.get('width')}"
            if "heads" in case:
                shape = f"{case['heads']} x {case['head_dim']}{', causal' if case['causal'] else ''}"
            times = f"{rate * row['ms']:,.1f} | {row['ms'] * 1e3:,.2f} | {rate:,.0f} | {rate * 1e9 / bus:.0%}"
            assert f"| {case['op']} | {shape} | {times} |" in LOG
    linear = by_shape(TILES["linear"]["rows"])[4096, 8192, 2048]
    head = next(
        row for row in TILES["lm_head"]["rows"] if (row["batch"], row["temperature"], row["logprobs"]) == (64, 0, False)
    )
    ours, library = (2 * 4096 * 8192 * 2048 / us / 1e6 for us in (linear["tiles_us"][NOW], linear["library_us"]))
    of_head = 2 * 4096 * 248320 * 2048 / head["tiles_ms"] / 1e9
    assert f"does {ours:.0f} TFLOP/s where the library's product alone does {library:.0f}," in WHOLE
    assert f"of as many rows {of_head:.0f} (" in WHOLE


def test_the_counters():
    assert [len(COUNTERS[key]) for key in ("2048", "5120", "2048, 64 samples")] == [7, 6, 9]
    for key in ("2048", "5120", "2048, 64 samples"):
        for row in COUNTERS[key]:
            shares = " | ".join(f"{row[unit]:.0f}%" for unit in ("dram_percent", "l2_percent", "l1_percent"))
            first = list(row["stalls_percent"].items())[:2]
            stalls = ", ".join(f"{name.replace('_', ' ')} {part:.0f}%" for name, part in first)
            times = f"{row['blocks']} | {row['us']:,.1f} | {row['dram_gb_per_s']:,} | {shares}"
            room = f"{row['registers']} | {row['blocks_an_sm']}"
            assert f"| {key} | {row['name']} | {times} | {room} | {stalls} |\n" in LOG
    busy = {row["name"]: max(row["dram_percent"], row["l2_percent"], row["l1_percent"]) for row in COUNTERS["2048"]}
    assert all(busy[name] < 50 for name in ("qkv", "out", "down")) and 50 < busy["up"] < 60


def test_linears_with_what_surrounds_them():
    means = []
    for preset in ("35b-a3b", "27b"):
        _, rows = ops_of(preset)
        ratios = [row["ratio"] for row in rows if row["case"]["op"].startswith("linear")]
        assert len(ratios) == 4
        means.append(f"{statistics.geometric_mean(ratios):.2f}")
    assert f"it is {means[0]} and {means[1]} ([docs/benchmarks.md]" in WHOLE


def test_attention_within_the_layer_after_it():
    apart, *within, again = (row["ms"] for row in LAYERS["attention_within_out_2048"]["rows"])
    first, *others = within
    sentence = f"took {first:.3f} ms with it, {apart:.3f} and {again:.3f} without (open-dllm-35b-a3b, N = 10), and "
    assert sentence + f"{min(others):.3f} to {max(others):.3f} with twelve other cuts" in WHOLE and len(others) == 12


def test_two_samples_and_more_rows():
    ms, rows = FURTHER["generation_of_two_samples_ms"], FURTHER["more_rows"]
    wide, many = (rows[name]["layer"] for name in ("128 rows at 5120", "256 rows at 2048"))
    for sentence in (
        f"A generation of two samples takes {ms['streamed']:.2f} ms so, and took {ms['library']:.2f} with the library's GEMMs",
        f"{wide['us']:.2f} us beside {wide['library_us']:.2f} and {many['us']:.2f} beside {many['library_us']:.2f}",
    ):
        assert sentence in WHOLE, sentence


def test_the_largest_carve_out():
    found = FURTHER["largest_carve_out"]
    ms = {
        width: {kernels: statistics.median(found["generation_ms"][width][kernels]) for kernels in ("none", "all")}
        for width in ("2048", "5120")
    }
    us = {kernels: found["ops_us_and_ratio"][kernels]["5120"]["attention"][0] for kernels in ("none", "all")}
    for sentence in (
        f"took {ms['2048']['all']:.3f} ms beside {ms['2048']['none']:.3f} without",
        f"at width 5120 {ms['5120']['all']:.3f} beside {ms['5120']['none']:.3f}",
        f"alone {us['all']:.2f} us beside {us['none']:.2f}",
    ):
        assert sentence in WHOLE, sentence


def test_what_was_tried_around_a_layer():
    resident = {width: LAYERS["resident_in_l2"][width] for width in ("2048", "5120")}
    deep = LAYERS["stages_of_32_columns"]["2048"]
    without = {width: next(row["us"] for row in rows if row["more"] == "loop=4") for width, rows in resident.items()}
    within = {width: min(row["us"] for row in rows if "res=" in row["more"]) for width, rows in resident.items()}
    wanted = {"qkv": "L128,1", "out": "L80,2", "up": "L160,1", "down": "L80,2"}
    alone = min(
        row["us"]
        for rows in LAYERS["one_block_an_sm_at_5120"].values()
        for row in rows
        if all(row["cuts"][name].startswith(cut) for name, cut in wanted.items())
    )
    middle = {name: statistics.median(us) for name, us in LAYERS["peers_in_rotated_order_2048"].items()}
    rows = LAYERS["row_statistics_of_16_outputs"]
    small, large = (
        {how: statistics.median(rows[how][width]) for how in ("now", "of 16 outputs")} for width in ("2048", "5120")
    )
    for sentence in (
        f"where the layers took {resident['2048'][0]['us']:.2f} and {resident['5120'][0]['us']:.2f}:",
        f"{without['2048']:.2f} without, at best {within['2048']:.2f} with ({without['5120']:.2f} and {within['5120']:.2f})",
        f"at best {alone:.2f}, since",
        f"{deep[0]['us']:.2f}, and {min(row['us'] for row in deep):.2f} with the best of 2,093 cuts",
        f"{middle['rotated']:.2f} beside {middle['usual']:.2f}",
        f"{small['of 16 outputs']:.2f} beside {small['now']:.2f} ({large['of 16 outputs']:.2f} beside {large['now']:.2f})",
    ):
        assert sentence in WHOLE, sentence
