"""What is run on a card: the tests, then compute-sanitizer on a tenth of them; and a step within its seconds."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).parents[1]
TOOLS = ("memcheck", "racecheck", "synccheck")
FOUND = 86
"""compute-sanitizer's exit code where it found something; pytest's own are 0 to 5."""

SANITIZED = (
    "tests/ops/linear/test_skinny.py::test_a_row_does_not_depend_on_the_rows_beside_it",
    "tests/ops/linear/test_skinny.py::test_the_kernel_is_the_definition",
    "tests/ops/linear/test_skinny.py::test_the_kernel_by_warpgroups_is_the_definition",
    "tests/ops/linear/test_persistent.py::test_the_kernel_is_the_definition",
    "tests/ops/lm_head/test_cuda.py::test_values",
    "tests/ops/lm_head/test_cuda.py::test_values_in_chunks",
    "tests/ops/lm_head/test_persistent.py::test_values",
    "tests/ops/attention/test_cuda.py::test_values",
    "tests/ops/test_extension.py::test_denoise_update_is_the_definition",
)
"""Tests that launch every CUDA kernel once by itself; compute-sanitizer takes a tenth of the cases of each."""


def card_files(tests: Path = TESTS) -> list[str]:
    """The test files that need a card, relative to the folder above `tests`: they skip, or choose a device, by whether there
    is one; or Triton compiles what they test."""
    asks = re.compile(r"(not|if) torch\.cuda\.is_available\(\)|needs_gpu|device_count\(\) <")
    files = (path for path in sorted(tests.rglob("test_*.py")) if path.parent.name != "card")
    return [
        path.relative_to(tests.parent).as_posix()
        for path in files
        if path.name.startswith("test_triton") or asks.search(path.read_text())
    ]


@dataclass
class Step:
    """A command with its seconds.

    Attributes:
        name: "tests" or a tool of compute-sanitizer.
        command: what is run.
        seconds: it is ended after so many.
        log: what it printed.
        record: what tests/card/record.py wrote.
        environment: variables that it gets besides those of this process.
    """

    name: str
    command: list[str]
    seconds: float
    log: Path
    record: Path
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """How a step went: its exit code, None where it was ended; and its seconds."""

    step: Step
    exit_code: int | None
    seconds: float


def run(step: Step) -> Outcome:
    """Runs a step; after its seconds it is ended with all processes that it started."""
    start = time.monotonic()
    with step.log.open("w") as log:
        process = subprocess.Popen(
            step.command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | step.environment, start_new_session=True
        )
        try:
            exit_code = process.wait(step.seconds)
        except subprocess.TimeoutExpired:
            exit_code = None
        finally:
            # What a step leaves behind would hold the card for the next one.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Outcome(step, exit_code, time.monotonic() - start)


# What else is installed for pytest would be imported by every process.
_PLAIN = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def _pytest(folder: Path, name: str) -> tuple[list[str], Path]:
    record = folder / f"{name}.jsonl"
    record.unlink(missing_ok=True)
    options = ["-p", "no:cacheprovider", "-p", "xdist.plugin", "-p", "tests.card.record", f"--card-record={record}"]
    return [sys.executable, "-m", "pytest", *options], record


def whole_step(files: Sequence[str], cores: int, seconds: float, folder: Path) -> Step:
    """All of `files`, on all cores but two, with two threads each."""
    command, record = _pytest(folder, "tests")
    command += ["-q", "--continue-on-collection-errors", "-n", str(max(1, cores - 2)), "--dist", "worksteal", *files]
    return Step("tests", command, seconds, folder / "tests.log", record, _PLAIN | {"OMP_NUM_THREADS": "2"})


def sanitizer_step(tool: str, sanitizer: str, ids: Sequence[str], seconds: float, folder: Path) -> Step:
    """One tool of compute-sanitizer on `ids`, in one process, so that a finding stands beside its test in the log."""
    command, record = _pytest(folder, tool)
    # Memory that PyTorch keeps for later is valid memory to memcheck.
    environment = _PLAIN | ({"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool == "memcheck" else {})
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), *command, "-v", "-s", *ids]
    return Step(tool, command, seconds, folder / f"{tool}.log", record, environment)


def find_sanitizer() -> str | None:
    """compute-sanitizer on PATH or beside nvcc."""
    nvcc = shutil.which("nvcc")
    beside = nvcc and shutil.which("compute-sanitizer", path=Path(nvcc).resolve().parent)
    return shutil.which("compute-sanitizer") or beside


def tenth(passed: Sequence[str], functions: Sequence[str] = SANITIZED) -> list[str]:
    """A tenth of the cases of each function, at least one, spread over them; first a case of every function, then the
    second of every function, so that an end too early leaves no kernel out."""
    chosen = []
    for function in functions:
        cases = [one for one in passed if one == function or one.startswith(function + "[")]
        count = math.ceil(len(cases) / 10)
        chosen.append([cases[i * len(cases) // count] for i in range(count)])
    rounds = max(map(len, chosen), default=0)
    return [cases[i] for i in range(rounds) for cases in chosen if i < len(cases)]


def read_record(path: Path) -> list[dict]:
    """The lines of a record; a last one that was cut off is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines
