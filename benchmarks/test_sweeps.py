"""Growth with length, batch, steps and prompt, against the baseline."""

from benchmarks.run import run
from dllm_kernels.bench.generation import failed

KINDS = ("sweep",)


def test_group(group, machine, command, benchmark, pytestconfig):
    result = run(group, machine, command, benchmark, pytestconfig)
    assert failed(result.rows) == []
