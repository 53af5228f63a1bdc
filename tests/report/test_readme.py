"""README.md and the pages for newcomers: their figures are measured or derived, their commands and links are there."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks import newcomer
from dllm_kernels import LDLMConfig
from dllm_kernels.bench import roofline
from dllm_kernels.bench.results import read
from dllm_kernels.bench.wording import number
from dllm_kernels.cli.main import app
from dllm_kernels.inference.weights import PACKED_MODULES
from dllm_kernels.model.ldlm import build_module

ROOT = Path(__file__).parents[2]
README, INSTALL, TUTORIAL, CHANGELOG = (
    (ROOT / name).read_text() for name in ("README.md", "docs/install.md", "docs/tutorial.md", "CHANGELOG.md")
)
COMMANDS = {command.name or command.callback.__name__ for command in app.registered_commands}


def floor(preset: str, steps: int) -> tuple[str, str]:
    """The floor of an RTX 5090 in ms, and its tokens a second, as the README rounds them."""
    config = LDLMConfig.preset(preset)
    with torch.device("meta"):
        parts = {name: build_module(name, config) for name in PACKED_MODULES}
    seconds = roofline.floor(roofline.work(config, parts, steps), roofline.CARDS["rtx5090"], torch.bfloat16).seconds
    return number(1000 * seconds), number(config.seq_len / seconds)


def test_the_readme_is_short():
    assert README.count("\n") <= 90


def test_the_floor_of_a_5090_is_the_derived_one():
    (small, small_speed), (large, large_speed) = floor("open-dllm-35b-a3b", 10), floor("open-dllm-27b", 10)
    assert f"10 steps take at least {small} ms (at most {small_speed} tok/s) with `open-dllm-35b-a3b`" in README
    assert f"and {large} ms ({large_speed} tok/s) with `open-dllm-27b`" in README


def test_disk_and_memory_are_the_measured_ones():
    result, tables = newcomer.newest(), [read(path) for path in newcomer.RESULTS.glob("*-h200-table-open-dllm-*.json")]
    for sentence in (newcomer.disk(result), newcomer.memory(result, tables)):
        assert sentence in README and sentence in INSTALL, sentence


def test_the_tutorial_shows_what_was_printed():
    shown = [block.expected and block.expected.text for block in newcomer.blocks(TUTORIAL)]
    assert shown == [step["printed"] for step in newcomer.newest()["tutorial"]]


def test_the_tutorial_takes_as_long_as_it_says():
    minutes = sum(step["seconds"] for step in newcomer.newest()["tutorial"]) / 60
    assert minutes < 10 and f"about {number(minutes, 1)} minutes" in TUTORIAL


def test_the_readme_names_every_command():
    named = set(re.findall(r"dllm-kernels ([a-z][a-z-]+)", README))
    assert named == COMMANDS


@pytest.mark.parametrize("name", ["README.md", "docs/index.md", "docs/install.md", "docs/tutorial.md"])
def test_links_lead_somewhere(name):
    targets = re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text())
    missing = [t for t in targets if not t.startswith("http") and not ((ROOT / name).parent / t).exists()]
    assert targets and not missing


def test_the_index_lists_every_document():
    text = (ROOT / "docs" / "index.md").read_text()
    assert [path.name for path in (ROOT / "docs").glob("*.md") if f"({path.name})" not in text] == ["index.md"]


def test_moved_modules_are_where_the_changelog_says():
    section = CHANGELOG[CHANGELOG.index("Modules, under") : CHANGELOG.index("Ops, as")]
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \| `([a-z0-9_.]+)`", section, re.MULTILINE)
    assert len(rows) > 50
    missing = [now for _, now in rows if not _module(now)]
    # A package in the place of a module may have its name.
    left = [before for before, now in rows if _module(before) and not now.startswith(f"{before}.")]
    assert not missing and not left


def _module(name: str) -> bool:
    path = ROOT.joinpath("" if name.startswith("benchmarks.") else "dllm_kernels", *name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_moved_ops_are_there():
    section = CHANGELOG[CHANGELOG.index("Ops, as") : CHANGELOG.index("Classes and functions")]
    for before, now in re.findall(r"^\| `(\w+)` \| `(\w+)` \|", section, re.MULTILINE):
        sources = "".join(path.read_text() for path in (ROOT / "dllm_kernels" / "ops").rglob("*.py"))
        assert re.search(rf"^def {now}\(", sources, re.MULTILINE) and not re.search(
            rf"^def _?{before}\(", sources, re.MULTILINE
        )


def test_the_changelog_has_this_version():
    import dllm_kernels

    assert f"## [{dllm_kernels.__version__}]" in CHANGELOG
    kept = re.search(r"from dllm_kernels import ([\w, ]+)`", CHANGELOG)[1].split(", ")
    assert set(kept) == set(dllm_kernels.__all__)
