"""`pytest benchmarks/ --benchmark-only`, in a process of its own, on the smallest group."""

import os
import subprocess
import sys
from pathlib import Path

from dllm_kernels.bench.results import read

ROOT = Path(__file__).parents[2]


def run(*arguments):
    command = (sys.executable, "-m", "pytest", *arguments, "--benchmark-only", "-p", "no:cacheprovider", "-p", "no:xdist", "-q")
    # Without a card, which would run other groups, and without what this run's own workers are told.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    hidden = inherited | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([str(word) for word in command], cwd=ROOT, env=hidden, capture_output=True, text=True, timeout=300)


def test_a_group_is_measured_written_and_in_pytests_own_table(tmp_path):
    done = run("benchmarks", "--groups", "ops-tiny", "--output", tmp_path, "-k", "test_group")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.iterdir()
    result = read(path)
    assert result.complete and result.group == "ops-tiny" and path.name.endswith("-ops-tiny.json")
    assert result.command.startswith("pytest benchmarks --groups ops-tiny") and result.baseline == "library"
    assert {row.contender for row in result.rows} == {"ours", "library"} and all(row.ms > 0 for row in result.rows)
    assert "test_group[ops-tiny]" in done.stdout and "1 passed" in done.stdout


def test_an_unknown_group_is_named():
    done = run("benchmarks", "--groups", "nope,ops-tiny", "-k", "test_group")
    assert done.returncode != 0
    assert "unknown groups nope; known groups: table-tiny, table-open-dllm-35b-a3b, ops-tiny" in done.stdout + done.stderr
