"""The command line in a process of its own."""

import json
import subprocess
import sys


def start(program):
    return subprocess.run([sys.executable, *program], capture_output=True, text=True, timeout=120)


def test_json_is_alone_on_stdout():
    done = start(["-m", "dllm_kernels", "generate", "tiny", "--steps", "1", "--seq-len", "3", "--json"])
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    assert len(json.loads(done.stdout)["tokens"][0]) == 3


def test_bad_input():
    done = start(["-m", "dllm_kernels", "generate", "nope"])
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("dllm-kernels: unknown preset 'nope'") and done.stderr.count("\n") == 1


def test_its_name_in_a_usage_line():
    done = start(["-m", "dllm_kernels", "generate", "--help"])
    assert done.returncode == 0
    assert done.stdout.lstrip().startswith("Usage: python -m dllm_kernels generate ")


def test_the_package_needs_no_command_line():
    heavy = ["typer", "rich", "transformers", "dllm_kernels.cli.main", "dllm_kernels.cli.output"]
    done = start(["-c", f"import sys, dllm_kernels; print([m for m in {heavy} if m in sys.modules])"])
    assert done.stdout == "[]\n"
