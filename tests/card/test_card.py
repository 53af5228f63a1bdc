"""The run on a card, with stand-ins for its commands: what it chooses, what it tells, its exit codes."""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.card import __main__ as command
from tests.card.report import Reached, exit_code, left_out, reached, summary, text
from tests.card.steps import SANITIZED, TESTS, Outcome, Step, card_files, read_record, run, sanitizer_step, tenth, whole_step

SOURCE = """
import time

import pytest


@pytest.mark.parametrize("case", range(3))
def test_passes(case):
    pass


def test_fails():
    assert 1 + 1 == 3


@pytest.mark.skip(reason="needs two CUDA cards")
def test_elsewhere():
    pass


@pytest.fixture
def broken():
    yield
    raise RuntimeError("the teardown broke")


def test_whose_teardown_fails(broken):
    pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of the commands' outputs; the commands run the tests in it."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stand_in(folder, source, seconds=20.0):
    return Step("memcheck", [sys.executable, "-c", source], seconds, folder / "log", folder / "record.jsonl")


def test_every_outcome_is_told(folder):
    (folder / "test_some.py").write_text(SOURCE)
    (folder / "test_extra.py").write_text('import pytest\n\npytest.importorskip("no_such_package")\n')
    (folder / "test_broken.py").write_text("import no_such_package\n")
    step = whole_step(["test_some.py", "test_extra.py", "test_broken.py"], 4, 60, folder)
    found = reached(run(step))
    assert sorted(found.passed) == [f"test_some.py::test_passes[{i}]" for i in range(3)]
    assert found.failed == {
        "test_broken.py": "ModuleNotFoundError: No module named 'no_such_package'",
        "test_some.py::test_fails": "assert (1 + 1) == 3",
        "test_some.py::test_whose_teardown_fails": "RuntimeError: the teardown broke",
    }
    assert found.skipped == {"needs two CUDA cards": 1}
    assert found.not_reached == {"test_extra.py": "could not import 'no_such_package': No module named 'no_such_package'"}
    assert found.exit_code == 1


def test_one_process_tells_the_same(folder):
    (folder / "test_some.py").write_text(SOURCE)
    step = sanitizer_step("memcheck", "compute-sanitizer", ["test_some.py::test_passes"], 60, folder)
    step.command = step.command[step.command.index(sys.executable) :]
    assert reached(run(step)).passed == [f"test_some.py::test_passes[{i}]" for i in range(3)]


def test_what_the_time_did_not_reach_is_named(folder):
    lines = [{"collected": ["a", "b"]}, {"collected": ["b", "c"]}, {"test": "a", "outcome": "passed"}]
    (folder / "record.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = reached(run(stand_in(folder, "import time; time.sleep(60)", 0.5)))
    assert found.passed == ["a"] and found.failed == {} and found.exit_code is None
    assert found.not_reached == {"b": "the time was over", "c": "the time was over"}
    assert 0.5 <= found.seconds < 5
    assert "NOT REACHED memcheck 2: the time was over: b and others" in text([found])


def test_a_step_ends_with_what_it_started(folder):
    child = "import os, time\nopen('child', 'w').write(str(os.getpid()))\ntime.sleep(60)"
    outcome = run(stand_in(folder, f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])", 2))
    assert outcome.exit_code is None
    state = Path(f"/proc/{(folder / 'child').read_text()}/stat")
    until = time.monotonic() + 10
    while state.exists() and state.read_text().split()[2] != "Z":
        assert time.monotonic() < until, "the child outlived its step"
        time.sleep(0.01)


def test_a_command_that_dies_before_its_tests_is_a_failure(folder):
    found = reached(run(stand_in(folder, "print('no such option'); raise SystemExit(4)")), ["a::b"])
    assert found.failed == {"memcheck": "exit code 4: no such option"}
    assert found.not_reached == {"a::b": "the command ended with exit code 4"}
    assert exit_code([found]) == 1


def test_what_the_sanitizer_found_is_a_failure_though_every_test_passed(folder):
    source = "print('========= ERROR SUMMARY: 2 errors'); raise SystemExit(86)"
    (folder / "record.jsonl").write_text('{"collected": ["a::b"]}\n{"test": "a::b", "outcome": "passed"}\n{"test": "a:')
    found = reached(run(stand_in(folder, source)), ["a::b"])
    assert found.findings == ["========= ERROR SUMMARY: 2 errors"]
    assert found.passed == ["a::b"] and found.failed == {} and found.not_reached == {}
    assert exit_code([found]) == 1


def test_a_step_that_ended_well_and_ran_nothing_is_not_green(folder):
    found = reached(run(stand_in(folder, "")), ["a::b"])
    assert found.not_reached == {"a::b": "the command ended with exit code 0"}
    assert exit_code([found]) == 3


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([Reached("tests", passed=["a"], skipped={"needs two CUDA cards": 1})], 0),
        ([Reached("tests", passed=["a"]), left_out("memcheck", "absent")], 3),
        ([Reached("tests", failed={"a": "b"}), left_out("memcheck", "absent")], 1),
    ],
)
def test_exit_codes(steps, expected):
    assert exit_code(steps) == expected
    assert summary({}, steps)["exit_code"] == expected


def test_a_tenth_begins_with_a_case_of_every_kernel():
    passed = [f"a::f[{i}]" for i in range(25)] + ["a::f2[0]", "a::g", "a::h[1]", "a::h[2]"]
    assert tenth(passed, ["a::f", "a::g", "a::h", "a::absent"]) == ["a::f[0]", "a::g", "a::h[1]", "a::f[8]", "a::f[16]"]
    assert tenth([], ["a::f"]) == []


def test_the_tests_that_the_sanitizer_runs_exist():
    for one in SANITIZED:
        file, function = one.split("::")
        assert f"\ndef {function}(" in (TESTS.parent / file).read_text(), one
        assert file in card_files(), file


def test_every_kernel_is_run_by_the_sanitizer():
    rooms = {Path(one.split("::")[0]).parent.name for one in SANITIZED}
    kernels = {path.stem for path in (TESTS.parent / "csrc" / "kernels").glob("*.cu")}
    # denoise_update's raw call is tested beside the module's own tests.
    assert {kernel for kernel in kernels if not any(kernel.startswith(room) for room in rooms)} == {"denoise_update"}


def test_the_files_are_those_that_ask_for_a_card():
    files = card_files()
    for one in ("ops/linear/test_skinny.py", "ops/noise/test_triton.py", "training/test_cuda.py", "bench/test_tune.py"):
        assert f"tests/{one}" in files
    assert not [one for one in files if "emulated" in one or "faults" in one or "/report/" in one or "/card/" in one]


def test_the_tests_take_all_cores_but_two(tmp_path):
    step = whole_step(["a.py"], 16, 290, tmp_path)
    assert step.command[-5:] == ["-n", "14", "--dist", "worksteal", "a.py"] and step.seconds == 290
    assert step.environment["OMP_NUM_THREADS"] == "2"
    assert whole_step(["a.py"], 1, 1, tmp_path).command[-4] == "1"


def test_the_sanitizer_sees_each_allocation(tmp_path):
    step = sanitizer_step("memcheck", "compute-sanitizer", ["a::b"], 60, tmp_path)
    assert step.command[:5] == ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "86"]
    assert step.command[-1] == "a::b" and step.environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_without_a_card_it_says_so(capsys):
    assert command.main([]) == 2
    assert capsys.readouterr().err == "the tests of a card need a CUDA card, and PyTorch sees none\n"


@pytest.fixture
def card(monkeypatch):
    """A machine with a card, as far as the run asks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(command, "Machine", lambda device: SimpleNamespace(describe=lambda: {"name": "stand-in", "cores": 16}))
    monkeypatch.setattr(command, "architectures", lambda: ("sm_90a",))
    monkeypatch.setattr(command, "find_sanitizer", lambda: "compute-sanitizer")
    monkeypatch.setattr(os, "chdir", lambda path: None)


def test_the_whole_run_writes_one_summary(card, monkeypatch, tmp_path, capsys):
    case = f"{SANITIZED[0]}[0]"

    def pretend(step):
        step.record.write_text(json.dumps({"test": case, "outcome": "passed"}) + "\n")
        step.log.write_text("")
        return Outcome(step, 0, 1.0)

    monkeypatch.setattr(command, "run", pretend)
    assert command.main(["--output", str(tmp_path / "out")]) == 0
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [step["name"] for step in written["steps"]] == ["tests", "memcheck", "racecheck", "synccheck"]
    assert [step["budget_seconds"] for step in written["steps"]] == [290, 60, 60, 60]
    assert sum(step["budget_seconds"] for step in written["steps"]) <= 8 * 60
    assert written["machine"]["name"] == "stand-in" and written["steps"][0]["passed"] == [case]
    assert "tests: 1 passed, 0 failed, 0 skipped, 0 not reached; 1 of 290 s" in capsys.readouterr().out


def test_what_is_not_installed_is_not_reached(card, monkeypatch, tmp_path):
    def absent():
        raise RuntimeError("no CUDA kernels")

    def pretend(step):
        step.record.write_text('{"test": "a", "outcome": "passed"}\n')
        step.log.write_text("")
        return Outcome(step, 0, 1.0)

    monkeypatch.setattr(command, "architectures", absent)
    monkeypatch.setattr(command, "find_sanitizer", lambda: None)
    monkeypatch.setattr(command, "run", pretend)
    assert command.main(["--output", str(tmp_path)]) == 3
    steps = {step["name"]: step["not_reached"] for step in json.loads((tmp_path / "summary.json").read_text())["steps"]}
    assert steps["CUDA kernels"] == {"CUDA kernels": "no CUDA kernels"}
    assert steps["memcheck"] == {"memcheck": "compute-sanitizer is neither on PATH nor beside nvcc"}


def test_a_record_that_is_not_there_is_empty(tmp_path):
    assert read_record(tmp_path / "none") == []
