"""How a test runs its group."""

import pytest

from dllm_kernels.bench.groups import locate
from dllm_kernels.bench.groups import run as run_group


def run(group, machine, command, benchmark, config):
    """Measures what is missing of a group, or skips where nothing is; gives the result."""
    result, path = locate(group, machine, config.option.output, command, config.option.rerun)
    if result.complete:
        pytest.skip(f"complete for this commit and machine in {path.name}; --rerun measures it again")

    def witness(call):
        # pytest-benchmark's own table: the first case's call by the host's clock.
        benchmark.pedantic(call, rounds=3, iterations=1)

    reporter = config.pluginmanager.getplugin("terminalreporter")
    result = run_group(group, machine, result, path, witness, lambda done: reporter.write_line(f"  {group.name}: {done}"))
    benchmark.extra_info.update(file=path.name, took_s=result.took_s)
    return result
