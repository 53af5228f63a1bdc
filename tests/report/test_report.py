"""`python -m benchmarks.report`: what is in the tree is what it writes, and the command."""

import json
import re
import subprocess
import sys

import matplotlib
import pytest

from benchmarks.report import __main__ as command
from benchmarks.report import harness, pages
from benchmarks.report.pages import PLOTS, ROOT, committed, within
from tests.report.test_benchmarks import measured

RUN = "run python -m benchmarks.report"
(PINNED,) = re.findall(r"^matplotlib==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def written():
    """By page, what it writes."""
    return {page: files() for page, files in command.PAGES.items()}


@pytest.mark.parametrize("page", command.PAGES)
def test_pages_and_data_are_those_of_the_committed_results(written, page):
    for path, text in written[page].items():
        if not path.endswith(".svg"):
            assert (ROOT / path).read_text() == text, f"{path}: {RUN}"


@pytest.mark.skipif(matplotlib.__version__ != PINNED, reason=f"the pictures are those of matplotlib {PINNED}")
@pytest.mark.parametrize("page", command.PAGES)
def test_pictures_are_those_of_the_data(written, page):
    for path, text in written[page].items():
        if path.endswith(".svg"):
            assert (ROOT / path).read_text() == text, f"{path}: {RUN}"


def test_every_plot_has_its_data_both_pictures_and_a_place_in_a_page(written):
    made = {path for files in written.values() for path in files if path.startswith(PLOTS)}
    assert made == {f"{PLOTS}/{path.name}" for path in (ROOT / PLOTS).iterdir()}, RUN
    told = "".join(text for files in written.values() for path, text in files.items() if path.endswith(".md"))
    names = {path.removesuffix(".json") for path in made if path.endswith(".json")}
    assert made == {f"{name}{end}" for name in names for end in (".json", "-light.svg", "-dark.svg")}
    for name in names:
        assert told.count(f"plots/{name.rpartition('/')[2]}-light.svg") == 1, name


def test_the_command_writes_the_pages_that_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "PAGES", {"scale": lambda: {"a.md": "A"}, "training": lambda: {"b.md": "B"}})
    monkeypatch.setattr(sys, "argv", ["report", "training"])
    command.main()
    assert capsys.readouterr().out == "b.md\n" and [path.name for path in tmp_path.iterdir()] == ["b.md"]
    monkeypatch.setattr(sys, "argv", ["report"])
    command.main()
    assert (tmp_path / "a.md").read_text() == "A"
    monkeypatch.setattr(sys, "argv", ["report", "nope"])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert "unknown page 'nope'; known pages: scale, training" in capsys.readouterr().err


def test_without_matplotlib_it_says_what_to_install():
    program = "import runpy, sys; sys.modules['matplotlib'] = None; runpy.run_module('benchmarks.report', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "python -m benchmarks.report needs matplotlib: pip install -e '.[bench]'\n"


def test_results_are_chosen_by_schema(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    for name, schema in (("b", "ours"), ("a", "ours"), ("c", "another")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"schema": schema}))
    (tmp_path / "d.json").write_text("{}")
    assert committed("ours", lambda path: path.name) == ["a.json", "b.json"]


def test_a_block_stands_between_its_marks_once():
    text = "a <!-- written by python -m benchmarks.report: x --> old <!-- end --> b <!-- end -->"
    new = "a <!-- written by python -m benchmarks.report: x -->\n\nnew\n\n<!-- end --> b <!-- end -->"
    assert within(text, "x", "new") == new and within(new, "x", "new") == new
    for wrong in ("", text + text):
        with pytest.raises(ValueError, match="times and not once"):
            within(wrong, "x", "new")


def test_a_file_of_the_bench_command_is_named():
    result = measured()
    result.group = "bench"
    with pytest.raises(ValueError, match="holds the group 'bench'; pages show the harness's: table, autotune, ops"):
        harness.newest([result])
