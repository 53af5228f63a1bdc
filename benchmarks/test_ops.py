"""Each op beside its library counterpart."""

from benchmarks.run import run
from dllm_kernels.bench.generation import failed

KINDS = ("ops",)


def test_group(group, machine, command, benchmark, pytestconfig):
    result = run(group, machine, command, benchmark, pytestconfig)
    assert failed(result.rows) == []
