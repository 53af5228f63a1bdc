"""docs/kernels.md: its tables are generated, and every other figure in it is held here against a committed result."""

import json
import re
import statistics
from pathlib import Path

from benchmarks.report import kernels
from dllm_kernels.ops.attention import op as attention

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
TEXT = (ROOT / "docs" / "kernels.md").read_text()
TILES = json.loads((RESULTS / "2026-11-28-h200-tiles.json").read_text())
PORTABLE = json.loads((RESULTS / "2026-11-24-h200-kernels.json").read_text())
VERSIONS = json.loads((RESULTS / "2026-11-24-h200-streamed.json").read_text())
BUS = kernels.ops("open-dllm-35b-a3b")[1]["reached"]["bytes_per_s"]
FIGURE = re.compile(r"\d(?:[\d,.]*\d)?(?: to [\d.]+)?(?: (?:us|ms|J|mJ|W|MHz|MB|GB/s|TFLOP/s|times|bytes)\b|%)")
"""What looks measured: a number with a unit."""


def the(found: list[dict], /, **wanted) -> dict:
    (row,) = (row for row in found if all(row.get(name) == value for name, value in wanted.items()))
    return row


def section(name: str) -> str:
    return re.split(r"^## ", TEXT.split(f"\n## {name}\n")[1], flags=re.MULTILINE)[0]


def ladder(name: str) -> list[tuple[str, str]]:
    """The last two columns of a section's ladder."""
    table = re.search(r"\| change \| reason \|.*?\n\n", section(name) + "\n", flags=re.DOTALL).group()
    rows = [line.strip("| ").split(" | ") for line in table.strip().split("\n")[2:]]
    assert all(len(row) == 4 for row in rows), rows
    return [(row[2], row[3]) for row in rows]


def of_the_bus(us: float, bytes_moved: float) -> str:
    return f"{bytes_moved / us * 1e6 / BUS:.0%}"


def ours_and_library(op: str) -> tuple[dict, dict]:
    rows = [row for row in kernels.ops("open-dllm-35b-a3b")[1]["rows"] if row["case"]["op"] == op]
    return the(rows, contender="ours"), the(rows, contender="library")


def test_the_page_is_what_its_generator_writes():
    assert kernels.files() == {"docs/kernels.md": TEXT}, "run python -m benchmarks.report kernels"


def test_a_share_says_what_bounds_a_kernel():
    bounds = [kernels.bound(share) for share in (0.49, 0.5, 0.84, 0.85)]
    assert bounds == ["latency", "bus and latency", "bus and latency", "bus"]


def test_linear_skinny():
    up = {"outputs": 8192, "width": 2048}
    before = the(VERSIONS["linear"], row_tiles=1, **up)
    table = the(json.loads(kernels.TABLE.read_text())["entries"], wgmma=True, row_tiles=1, n=8192, k=2048)
    us = [before["library_us"], the(PORTABLE["linear_d2048"], **up)["us"]]
    us += [version[3] for version in VERSIONS["tried_us"]["versions"]] + [before["us"], table["us"]]
    assert ladder("linear_skinny") == [(f"{t:.2f}", of_the_bus(t, 2 * 8192 * 2048)) for t in us]


def test_linear_persistent():
    up = {"rows": 4096, "outputs": 8192, "width": 2048}
    now, first = the(TILES["linear"]["rows"], **up), the(TILES["linear_first_version"]["rows"], **up)
    us = [min(now["library_with_what_follows_us"]), first["tiles_us"]["16 together"], now["tiles_us"]["16 together"]]
    us += [now["tiles_us"]["16 together, a stage's products under way"], now["library_us"]]
    operations = 2 * 4096 * 8192 * 2048
    assert ladder("linear_persistent") == [(f"{t:.1f}", f"{operations / t / 1e6:.0f}") for t in us]


def test_lm_head_skinny():
    row, (ours, _) = the(VERSIONS["lm_head"], width=2048), ours_and_library("lm_head, argmax")
    us = [1000 * row["F.linear, argmax"][1], 1000 * row["streamed"][1]]
    shares = [of_the_bus(t, row["weight_bytes"]) for t in us] + [f"{ours['streaming_share']:.0%}"]
    assert ladder("lm_head_skinny") == [(f"{t:.0f}", s) for t, s in zip([*us, 1000 * ours["ms"]], shares, strict=True)]


def test_lm_head_persistent():
    cold, warm = (the(TILES["lm_head"]["rows"], batch=64, temperature=t, logprobs=False) for t in (0.0, 0.7))
    ms = (cold["triton_ms"], cold["library_product_and_argmax_ms"], cold["tiles_ms"], warm["tiles_ms"])
    assert ladder("lm_head_persistent") == [(f"{t:.2f}", f"{2 * 4096 * 248320 * 2048 / t / 1e9:.0f}") for t in ms]


def test_attention():
    row = the(VERSIONS["attention"], batch=1, length=64, heads=8, head_dim=256)
    us = [20 * row[name][1] for name in ("torch", "triton", "cuda")]
    assert ladder("attention") == [(f"{t:.2f}", of_the_bus(t, 4 * 64 * 2048 * 2)) for t in us]


def test_attention_of_many_heads():
    us = the(TILES["attention"], batch=64, head_dim=256)["us"]
    us = [us[name] for name in ("triton 16, 64, 4, 2", "cuda", "torch", "triton 64, 32, 4, 2")]
    assert ladder("attention in Triton, for many heads") == [(f"{t:.1f}", of_the_bus(t, 64 * 4 * 64 * 2048 * 2)) for t in us]


def test_the_limits_of_attention():
    whole = " ".join(TEXT.split())
    assert (attention.CUDA_LENGTH, attention.CUDA_WORK, attention.CUDA_WORK_NARROW) == (256, 2**23, 2**20)
    assert "for up to 256 queries and keys, and up to 2^23 of work (2^20 below a head dimension of 128)" in whole
    crowd = attention.CROWD, min(attention.CROWD_LENGTHS), max(attention.CROWD_LENGTHS), attention.CROWD_HEAD_DIM
    assert crowd == (128, 33, 128, 256)
    assert "From 128 heads of all samples on, for 33 to 128 queries and head dimensions up to 256" in whole
    assert (attention.TRITON_WORK, attention.TRITON_FAST_HEAD_DIM, attention.TRITON_BACKWARD_HEAD_DIM) == (2**23, 256, 128)


def test_denoise_update():
    ours, library = ours_and_library("denoise_update")
    few = [(f"{1000 * row['ms']:.2f}", f"{row['streaming_share']:.0%}") for row in (library, ours)]
    values, us = 64 * 64 * 2048, TILES["generation_of_64_kernels"]["denoise_update_us"]
    many = [(f"{us[when]:.1f}", of_the_bus(us[when], bytes_ * values)) for when, bytes_ in (("before", 20), ("now", 12))]
    assert ladder("denoise_update") == few + many


def test_power():
    rows, power = TILES["generation_of_64_sustained"]["rows"], " ".join(section("Power").split())
    rested = {}
    for contender, name in (("FusedSampler", "FusedSampler"), ("SDPA graph", "SDPA in a CUDA graph")):
        own = [row for row in rows if row["contender"] == contender]
        ms, joules = (statistics.mean(row[key] for row in own if key in row) for key in ("ms", "J"))
        (rested[contender],) = (row["rested_ms"] for row in own if "rested_ms" in row)
        clock = next(row["sm_mhz"] for row in own if "sm_mhz" in row)
        assert f"| {name} | {ms:.2f} | {joules:.1f} | {clock} | {rested[contender]:.2f} |" in power
    assert f"With rest the sampler is {rested['SDPA graph'] / rested['FusedSampler']:.2f} times as fast" in power
    (path,) = RESULTS.glob("*-nvidia-h200-sweep-batch-*.json")
    ours = [row for row in json.loads(path.read_text())["rows"] if row["contender"] == "FusedSampler"]
    ratio = {row["case"]["batch"]: row.get("ratio") for row in ours}
    few, most = (pick(ratio[batch] for batch in (16, 32, 64, 128)) for pick in (min, max))
    assert f"it is {ratio[64]:.2f} times as fast at 64 samples, and {few:.2f} to {most:.2f} times at 16 to 128" in power


def test_no_other_figure_stands_there():
    """What is neither generated nor in a ladder, nor in the section on power, has no number with a unit."""
    text = re.sub(r"<!-- written by.*?<!-- end -->", "", TEXT, flags=re.DOTALL).replace(section("Power"), "")
    text = re.sub(r"\| change \| reason \|.*?\n\n", "\n", text, flags=re.DOTALL)
    assert FIGURE.findall(text) == []
    assert FIGURE.findall("8.75 us, 12% and 1.01 to 1.33 times") == ["8.75 us", "12%", "1.01 to 1.33 times"]
