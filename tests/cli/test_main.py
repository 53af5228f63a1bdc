"""The command line in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

from dllm_kernels import __version__


def start(program, environment=None):
    environment = os.environ | (environment or {})
    return subprocess.run([sys.executable, *program], capture_output=True, text=True, timeout=120, env=environment)


def test_json_is_alone_on_stdout():
    done = start(["-m", "dllm_kernels", "generate", "tiny", "--steps", "1", "--seq-len", "3", "--json"])
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    assert len(json.loads(done.stdout)["tokens"][0]) == 3


def test_bad_input():
    done = start(["-m", "dllm_kernels", "generate", "nope"])
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("dllm-kernels: unknown preset 'nope'") and done.stderr.count("\n") == 1


def test_the_version():
    done = start(["-m", "dllm_kernels", "--version"])
    assert (done.returncode, done.stdout, done.stderr) == (0, f"dllm-kernels {__version__}\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands(shell):
    name = "_DLLM_KERNELS_COMPLETE"
    words = {"COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "dllm-kernels roof"}
    words |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args", "COMP_WORDS": "dllm-kernels roof", name: f"complete_{shell}"}
    program = "import sys; sys.argv[0] = 'dllm-kernels'; from dllm_kernels.cli.main import main; main()"
    done = start(["-c", program], words)
    assert done.returncode == 0 and "roofline" in done.stdout and "generate" not in done.stdout


def test_its_name_in_a_usage_line():
    done = start(["-m", "dllm_kernels", "generate", "--help"])
    assert done.returncode == 0
    assert done.stdout.lstrip().startswith("Usage: python -m dllm_kernels generate ")


def test_the_package_needs_no_command_line():
    heavy = ["typer", "rich", "transformers", "dllm_kernels.cli.main", "dllm_kernels.cli.output"]
    done = start(["-c", f"import sys, dllm_kernels; print([m for m in {heavy} if m in sys.modules])"])
    assert done.stdout == "[]\n"
