"""The published table, beside the published figures and all peers."""

from benchmarks.run import run
from dllm_kernels.bench.generation import failed

KINDS = ("table", "autotune")


def test_group(group, machine, command, benchmark, pytestconfig):
    result = run(group, machine, command, benchmark, pytestconfig)
    assert failed(result.rows) == []
