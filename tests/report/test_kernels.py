"""Figures in docs/log are those of the committed measurements."""

import json
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "2026-11-24-h200-streamed.json").read_text())
LAYERS = json.loads((ROOT / "benchmarks" / "results" / "2026-11-24-h200-layers.json").read_text())
LARGE = json.loads((ROOT / "benchmarks" / "results" / "2026-11-28-h100-large-batches.json").read_text())
WARPGROUPS = json.loads((ROOT / "benchmarks" / "results" / "2026-11-28-h200-warpgroups.json").read_text())
CLUSTERS = json.loads((ROOT / "benchmarks" / "results" / "2026-11-28-h200-clusters.json").read_text())
TABLE = json.loads((ROOT / "dllm_kernels" / "ops" / "linear" / "table.json").read_text())
RINGS = json.loads((ROOT / "benchmarks" / "results" / "2026-11-28-h100-rings.json").read_text())["rows"]
LOG = "\n".join(path.read_text() for path in sorted((ROOT / "docs" / "log").glob("2*.md")))


def test_the_tables_of_the_streamed_linear():
    assert {row["row_tiles"] for row in RESULTS["linear"]} == {1, 2, 4}
    for row in RESULTS["linear"]:
        us, library_us = row["us"], row["library_us"]
        rate = 2 * row["outputs"] * row["width"] / us / 1e3
        few = f"{library_us:.2f} | {us:.2f} | {rate:,.0f} | {library_us / us:.2f} |"
        many = f"{64 * row['row_tiles']} | {library_us:.2f} | {us:.2f} | {library_us / us:.2f} |"
        assert f"| {row['outputs']} x {row['width']} | {few if row['row_tiles'] == 1 else many}\n" in LOG


def test_the_range_of_ratios():
    ratios = {width: [] for width in (2048, 5120)}
    for row in RESULTS["linear"]:
        if row["row_tiles"] == 1:
            ratios[min(row["outputs"], row["width"])].append(row["library_us"] / row["us"])
    for found in ratios.values():
        assert f"{min(found):.2f} to {max(found):.2f}" in " ".join(LOG.split())


def test_the_table_of_versions():
    for _, *times in RESULTS["tried_us"]["versions"]:
        assert f"| {' / '.join(f'{us:.1f}' for us in times)} |" in LOG


def test_the_times_of_generations():
    times = RESULTS["generation"]["ms"]
    assert f"took {times['FusedSampler'][1]:.2f} ms, and with the\nlibrary's GEMMs " in LOG
    for ms in (times["FusedSampler, the library's GEMMs"], RESULTS["generation_of_64"]["ms"]["FusedSampler"]):
        assert f"{ms[1]:.2f} ms" in LOG
    assert f"{RESULTS['generation_portable']['ms']['FusedSampler'][1]:.2f} ms" in LOG


def test_the_times_of_a_layer():
    chosen, up, together = LAYERS["chosen_us"], LAYERS["persistent_up_us"], LAYERS["together_us"]["plain"]
    for sentence in (
        f"{sum(LAYERS['apart_us'].values()):.2f} by the chains of single shapes, {together:.2f} for the same",
        f"slower alone, {LAYERS['other_cuts_us']['down in 8 slices']:.2f}.",
        f"({chosen['before']:.2f} us before, {chosen['113 KB']:.2f} after; blocks of 99 KB in place of 113 KB reach "
        f"{chosen['99 KB']:.2f}, launches that do not overlap {chosen['without overlapping launches']:.2f})",
        f"{min(LAYERS['persistent_us'][key] for key in ('8, 8, 4', '8, 8, 3', '8, 8, 2')):.2f} us at best, and "
        f"{LAYERS['persistent_us']['8, 8, 3, sums not exchanged']:.2f} without the exchange of sums",
        f"of the {up['the next phase']:.2f} us of `up` the products end at {up['products done']:.2f}",
        f"are there at {up['sums of all slices taken']:.2f}, the rows are written at {up['rows written']:.2f} and the next "
        f"phase begins {up['the next phase'] - up['rows written']:.2f} us later",
        f"went from {LAYERS['tail_before_us'][0]:.2f} to {statistics.median(LAYERS['lead_us']['4']):.2f} us",
    ):
        assert sentence in LOG.replace("\n", " "), sentence
    leads = {stages: f"{statistics.median(us):.2f}" for stages, us in LAYERS["lead_us"].items()}
    assert f"| stages | {' | '.join(leads)} |\n" in LOG and f"| us | {' | '.join(leads.values())} |\n" in LOG


def test_the_tables_of_shapes_and_layers_are_what_plans_read():
    assert len(TABLE["entries"]) == 27 and len(TABLE["layers"]) == 6
    for row in TABLE["entries"]:
        us, library_us = row["us"], row["library_us"]
        rate = 2 * row["n"] * row["k"] / us / 1e3
        times = f"{library_us:.2f} | {us:.2f} | {rate:,.0f} | {library_us / us:.2f}"
        least = row.get("fastest_us")
        alone = "- | -" if least is None else f"{least:.2f} | {library_us / least:.2f}"
        line = f"| {64 * row['row_tiles']} | {row['n']} x {row['k']} | {times} | {alone} |\n"
        assert row["date"] != "2026-11-28" or line in LOG
    for row in TABLE["layers"]:
        numbers = f"{row['dim']} | {64 * row['row_tiles']} | {row['library_us']:.2f} | {row['us']:.2f}"
        assert row["date"] != "2026-11-28" or f"| {numbers} |\n" in LOG


def test_where_the_blocks_of_a_layer_are():
    whole = " ".join(LOG.split())
    for when in ("before", "now"):
        assert f"{WARPGROUPS[when]['us']:.2f} us" in whole
        for kernel, found in WARPGROUPS[when]["timeline"].items():
            stages = ("predecessors complete", "first input", "products", "exchange", "rows written")
            times = " | ".join(f"{found[stage][1]:.2f}" for stage in stages)
            assert f"| {kernel} | {found['blocks']} | {times} | {found['end'][2]:.2f} |\n" in LOG
    cycles = [found["cycles"] for found in WARPGROUPS["before"]["timeline"].values() if "cycles" in found]
    assert f"{min(c[1] for c in cycles):,} to {max(c[1] for c in cycles):,} cycles" in whole
    early = {row["early"]: row["us"][0] for row in WARPGROUPS["trigger_and_turn_us"]["2048"] if row["turn"] == 0}
    assert f"took {early[0]:.2f}, {early[1]:.2f}, {early[2]:.2f}, {early[3]:.2f} and {early[4]:.2f} us" in whole


def test_the_exchange_of_sums_between_sms():
    cycles = {(row["bytes"], row["cluster"], row["how"]): row["cycles"] for row in WARPGROUPS["exchange"]}
    ways = ("pull", "bulk whole", "st.async", "push st")
    for size, cluster in ((16384, 2), (16384, 4), (16384, 8), (32768, 2), (32768, 4), (32768, 8)):
        times = " | ".join(f"{cycles[size, cluster, way]:,}" for way in ways)
        assert f"| {size // 1024} KB | {cluster} | {times} |\n" in LOG


def test_what_became_of_multicast():
    def cycles(kind: str, blocks: int, turn: int) -> int:
        wanted = {"blocks_of_a_multicast": blocks, "copies": "tensor 64B", "weights_beside": True, "ring": 4, "turn": turn}
        return next(row["cycles"] for row in WARPGROUPS["feeding"][kind] if wanted.items() <= row.items())

    whole, parts = " ".join(LOG.split()), WARPGROUPS["up_without_us"]
    alone, shared, turned = cycles("without", 1, 0), cycles("without", 4, 0), cycles("without", 4, 1)
    four, one = "four blocks share it", "one block reads its input"
    for sentence in (
        f"takes {alone} cycles alone and {shared} where four blocks share the input ({turned} if",
        f"with it a stage took {cycles('arrivals at peers with .release.cluster', 1, 0):,} cycles",
        f"it lost: {WARPGROUPS['multicast_us'][0]['us']:.2f} us a layer",
        f"took {parts['all'][four]:.2f} us, {parts['nomma'][four]:.2f} without products",
        f"own input took {parts['all'][one]:.2f} and {parts['nomma'][one]:.2f}",
        "{:.2f} us a layer beside {:.2f}, each".format(*list(WARPGROUPS["products_under_way_us"].values())[:2]),
    ):
        assert sentence in whole, sentence


def test_where_clusters_find_room():
    whole = " ".join(LOG.split())
    most = {(row["blocks"], row["kb"]): row["clusters"] for row in CLUSTERS["clusters_that_run_at_once"]}
    assert most[2, 210] == 66
    assert f"only {most[4, 210]} clusters of four and 15 of eight run at once" in whole and most[8, 210] == 15
    assert f"with two blocks an SM {most[4, 100]} and {most[8, 100]}" in whole

    def chain(run: int, gemm: str, cut: str, width: int = 2048) -> dict:
        wanted = {"run": run, "gemm": gemm, "cut": cut, "width": width}
        return next(row for row in CLUSTERS["chains_of_one_gemm"] if wanted.items() <= row.items())

    assert f"takes {chain(7, 'down', '144 8 3 4')['us']} us in a chain of its like" in whole
    assert f"where 128 outputs a block take {chain(7, 'down', '128 8 4 4')['us']:.2f}" in whole
    layers = {(row["of"]["up"], row["of"]["down"]): row for row in CLUSTERS["products_under_way"] if row["cut"] == "layer"}
    usual = layers["64 2 6 6", "128 8 4 4"]
    assert f"In a layer it lost, {layers['64 2 6 6', '144 8 3 4']['waiting_us']:.2f} beside {usual['waiting_us']} us" in whole
    assert f"{usual['one_stage_under_way_us']} where waiting takes {usual['waiting_us']}" in whole
    for shape, gemm, cut, width in (
        ("6144 x 2048", "qkv", "64 2 8 4", 2048),
        ("2048 x 2048", "out", "128 4 4 4", 2048),
        ("8192 x 2048", "up", "64 2 6 6", 2048),
        ("2048 x 8192", "down", "128 8 4 4", 2048),
        ("20480 x 5120", "up", "160 2 3 3", 5120),
        ("5120 x 20480", "down", "64 4 5 2", 5120),
    ):
        row = chain(6, gemm, cut, width)
        times = [row[name] for name in ("us", "without_products_us", "without_input_us", "without_both_us")]
        outputs, slices = cut.split()[:2]
        line = " | ".join(f"{us:.2f}" for us in times)
        assert f"| {shape} | {outputs} outputs, {slices} slices | {line} |\n" in LOG
    library = {(row["n"], row["k"]): row["library_us"] for row in TABLE["entries"] if row["wgmma"] and row["row_tiles"] == 1}
    qkv, up = library[6144, 2048] / 1.4, library[8192, 2048] / 1.4
    assert f"6144 x 2048 would take {qkv:.2f} us and 8192 x 2048 {up:.2f}: less than these chains" in whole
    assert qkv < chain(6, "qkv", "64 2 8 4")["without_both_us"] and up < chain(6, "up", "64 2 6 6")["without_both_us"]


def test_what_was_tried_around_the_clusters():
    whole, l2 = " ".join(LOG.split()), CLUSTERS["prefetch_into_l2_us_a_layer"]

    def least(width: int, with_prefetch: bool) -> float:
        used = [any(kb for kb, _ in row["kb_of_each_block_of_the_next"].values()) for row in l2]
        # The card warms up: what is compared comes first.
        found = [row["us"] for row, it in zip(l2, used, strict=True) if row["width"] == width and it == with_prefetch]
        return min(found) if with_prefetch else found[0]

    assert (
        f"{least(2048, False)} ({least(5120, False)}) without, at best {least(2048, True):.2f} ({least(5120, True)}) with"
        in whole
    )
    most = next(r["us"] for r in l2 if r["kb_of_each_block_of_the_next"] == {"out": [84, "at the start"]})
    assert f"{most} with 84 KB" in whole
    small, large = CLUSTERS["search_of_cuts_of_a_layer"]
    assert f"{small['tried']:,} changes" in whole and f"brought {small['first_us']} to {small['last_us']:.2f};" in whole
    assert f"{large['tried']:,} brought nothing" in whole and large["last_us"] > large["first_us"]
    attention = CLUSTERS["a_layer_with_attention_us"]
    mean = {(width, how): statistics.mean(us) for width, found in attention.items() for how, us in found.items()}
    two, one = (f"{mean['2048', how]:.2f}" for how in ("clusters of two", "one block"))
    assert f"{two} in clusters of two where one block takes {one}" in whole, (two, one)
    four, blocks = (f"{mean['5120', how]:.2f}" for how in ("clusters of four", "two blocks"))
    assert f"in clusters of four, {four} where two blocks take {blocks}" in whole, (four, blocks)


def test_the_table_of_attention():
    for row in RESULTS["attention"]:
        shape = f"{row['batch']} | {row['length']} | {row['heads']} x {row['head_dim']}{', causal' if row['causal'] else ''}"
        times = " | ".join(f"{20 * row[backend][1]:.2f}" for backend in ("cuda", "triton", "torch"))
        assert f"| {shape} | {times} |\n" in LOG


def test_the_table_of_lm_head():
    for row in RESULTS["lm_head"]:
        names = ("streamed", "with log-probabilities", "F.linear, argmax", "F.linear")
        times = " | ".join(f"{1000 * row[name][1]:.0f}" for name in names)
        ratio = row["F.linear, argmax"][1] / row["streamed"][1]
        assert f"| {row['width']} | {times} | {ratio:.2f} |\n" in LOG


def _least(found: list[dict], key: str, **wanted) -> float:
    return min(row[key] for row in found if all(row.get(name) == value for name, value in wanted.items()))


def test_the_tables_of_large_batches():
    for row in LARGE["attention"]:
        shape = f"{row['batch']} | {row['length']} | {row['heads']} x {row['head_dim']}{', causal' if row['causal'] else ''}"
        times = " | ".join(f"{row['us'][name]:.2f}" for name in ("cuda", "triton", "torch"))
        assert f"| {shape} | {times} |\n" in LOG
    ways = ("Triton, pointers", "Triton, descriptors (a prototype without noise)")
    for library in LARGE["lm_head_library"]:
        batch = library["batch"]
        tried = [row for row in LARGE["lm_head"] if row["batch"] == batch]
        if tried:
            chunks = [row["ms"] for row in tried if "chunk" in row] + [library["cuda_chunks_ms"]]
            tiles = [_least(tried, "ms", how=way, rows=128, vocab=vocab) for way in ways for vocab in (128, 256)]
            times = (library["product_ms"], library["product_and_argmax_ms"], min(chunks), *tiles)
            assert f"| {batch} | {' | '.join(f'{ms:.2f}' for ms in times)} |\n" in LOG


def test_what_large_batches_consist_of():
    parts = {(run["batch"], run["contender"]): run for run in LARGE["profile"]}
    ours = [parts[batch, "FusedSampler"] for batch in (64, 256)]
    graph = [parts[batch, "SDPA bf16, CUDA graph"] for batch in (64, 256)]
    head = [next(k["ms"] for k in run["kernels"] if k["name"] == "lm_head_tile_kernel") for run in ours]
    for few, many in ([run["kernels_ms"] for run in ours], [run["kernels_ms"] for run in graph], head):
        assert f"{few:.2f}" in LOG and f"{many:.2f}" in LOG
    left = [kernel["ms"] for kernel in ours[0]["kernels"] if not kernel["name"].startswith(("lm_head", "attention"))][:5]
    names = ("GEMMs", "GELU", "residuals", "LayerNorm", "`denoise_update`")
    assert all(f"{name} {ms:.2f}" in LOG for name, ms in zip(names, left, strict=True))


def test_generations_of_large_batches_before_and_now():
    before, now = [], []
    for key, value in (("batch", 64), ("batch", 256), ("seq_len", 1024)):
        name = {"batch": "batch", "seq_len": "length"}[key]
        (path,) = (ROOT / "benchmarks" / "results").glob(f"*-h100-*-sweep-{name}-*.json")
        row = next(
            r for r in json.loads(path.read_text())["rows"] if r["case"][key] == value and r["contender"] == "FusedSampler"
        )
        now.append((row["ms"], row["ratio"]))
        row = next(r for r in LARGE["sweeps_before"] if r.get(key) == value and r["contender"] == "FusedSampler")
        before.append((row["ms"], row["ratio"]))
    for (then, _), (ms, _) in zip(before, now, strict=True):
        assert f"from {then:.3g} to {ms:.3g}" in LOG
    assert "{:.2f}, {:.2f} and {:.2f} times as fast".format(*(ratio for _, ratio in now)) in LOG
    assert "it was {:.2f}, {:.2f} and {:.2f} times".format(*(ratio for _, ratio in before)) in LOG


def test_the_times_of_other_rings():
    plain = {"kind": "pace", "pace": 99}
    stages = [_least([r for r in RINGS if r["weight_stages"][0] == n], "us", input_stages=4, pace=99) for n in (2, 3, 4)]
    assert "{:.2f}, {:.2f} and {:.2f}; with six".format(*stages) in LOG
    deeper = [_least(RINGS, "us", input_stages=n, **plain) for n in (6, 8)]
    paced = [_least(RINGS, "us", kind="pace", pace=n, input_stages=4, budget=115712) for n in (2, 3)]
    ahead = [_least(RINGS, "us", kind="ahead", pace=99, ahead=n, input_stages=4) for n in (2, 4, 8, 16)]
    for sentence in ("{:.2f} and {:.2f}; at most".format(*deeper), "{:.2f} and {:.2f}; 2, 4".format(*paced)):
        assert sentence in LOG
    assert "{:.2f}, {:.2f}, {:.2f} and {:.2f}. What".format(*ahead) in LOG


def test_the_times_before_and_after_the_restructuring():
    page = (ROOT / "docs" / "log" / "2026-11-30-restructuring.md").read_text()
    result = json.loads((ROOT / "benchmarks" / "results" / "2026-11-30-h200-restructuring.json").read_text())
    for path in ("hopper (sm_90a)", "portable (sm_90)"):
        for case, rows in result[path].items():
            preset, _, batch = case.split(":")
            before, after = rows["before"], rows["after"]
            ratio = after["median"] / before["median"]
            values = "equal" if before["digests"] == after["digests"] else "other"
            times = f"{before['median']:.3f} | {after['median']:.3f} | {ratio:.3f}"
            assert f"| {path} | {preset} | {batch} | {times} | {values} |\n" in page
            assert ratio < 1.01 and (path.startswith("portable") or values == "equal")


def test_the_times_under_the_proxy():
    page = (ROOT / "docs" / "log" / "2026-12-01-one-skinny-linear.md").read_text()
    result = json.loads((ROOT / "benchmarks" / "results" / "2026-12-01-h200-proxy.json").read_text())

    def ms(time: float | None) -> str:
        return "-" if time is None else f"{time:.3f}"

    for version in result["versions"]:
        name = version["name"]
        for row in version["layers"]:
            assert f"| {name} | {row['preset']} | {row['rows']} | {row['us']:.2f} | {row['library_us']:.2f} |\n" in page
        for row in version["generations"]:
            peers = f"{ms(row.get('sdpa_graph_ms'))} | {ms(row.get('compiled_graph_ms'))}"
            assert f"| {name} | {row['preset']} | {row['batch']} | {ms(row['ms'])} | {peers} |\n" in page
    for row in result["fastest_alone"]:
        by_stage = row["us_by_tile_k"]
        times = f"{by_stage['32']:.2f} | {by_stage['64']:.2f} | {row['library_us']:.2f}"
        assert f"| {row['n']} x {row['k']} | {times} |\n" in page
    for row in result["hopper_path_of_the_last_version"]:
        assert f"| {row['preset']} | {row['batch']} | {ms(row['ms'])} | {ms(row['sdpa_graph_ms'])} |\n" in page
    before = result["before"]
    assert f"{before['layer_us']:.1f} us a layer and {before['generation_ms']['open-dllm-35b-a3b, 1']:.2f} ms" in page
