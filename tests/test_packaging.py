"""The package's metadata agree with each other, and its commands do what the README says."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dllm_kernels

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SUFFIXES = (".cpp", ".cu", ".cuh", ".h")
TRITON_TESTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_triton*.py"))


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess:
    """The command's result, in the root; the make that runs the tests must not reach a make under test."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "CUDA"))}
    return subprocess.run(command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True)


def test_the_version_is_one():
    assert dllm_kernels.__version__ == PROJECT["version"]


def test_every_requirement_is_pinned_to_a_version_that_it_allows():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    extras = PROJECT["optional-dependencies"].values()
    wanted = [Requirement(text) for text in (*PROJECT["dependencies"], *(text for extra in extras for text in extra))]
    assert {canonicalize_name(requirement.name) for requirement in wanted} == pins.keys()
    assert all(requirement.specifier.contains(pins[canonicalize_name(requirement.name)]) for requirement in wanted)


def test_the_installed_torch_is_one_that_is_allowed():
    import torch

    (requirement,) = (r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "torch")
    assert requirement.specifier.contains(torch.__version__.partition("+")[0])


def test_make_test_lints_then_tests_then_interprets_triton():
    steps = run("make", "-n", "test").stdout.splitlines()[-5:]
    assert [step.removeprefix(".venv/bin/") for step in steps[:2]] == ["ruff check .", "ruff format --check ."]
    assert re.match(r".venv/bin/clang-format --dry-run -Werror .*csrc/bindings\.cpp", steps[2])
    assert steps[3:] == [
        ".venv/bin/pytest tests -n 2 --dist loadgroup",
        f"TRITON_INTERPRET=1 .venv/bin/pytest -n 2 {' '.join(TRITON_TESTS)}",
    ]


def test_clang_format_sees_every_source():
    sources = {
        str(path.relative_to(ROOT))
        for path in [*(ROOT / "csrc").rglob("*.*"), *(ROOT / "tests" / "emulator").rglob("*.*")]
        if path.suffix in SUFFIXES
    }
    (command,) = (line for line in run("make", "-n", "lint").stdout.splitlines() if "clang-format" in line)
    assert {word for word in command.split() if word.startswith(("csrc/", "tests/"))} == sources


def test_an_old_python_is_named_before_anything_is_installed():
    result = run("make", "-B", ".venv/installed", "PYTHON=false")
    assert result.returncode != 0
    assert result.stdout == "dllm-kernels needs Python 3.11 or newer; name one: make PYTHON=python3.12\n"


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and "make test" in script.read_text().splitlines()


@pytest.mark.parametrize(
    ("release", "reason"),
    [
        (None, "no nvcc on PATH, in CUDA_HOME or in CUDACXX"),
        ("release 12.4, V12.4.131", "{nvcc} is release 12.4, sm_120a needs 12.8"),
        ("", "{nvcc} is of an unknown release, sm_120a needs 12.8"),
        ("release 12.8, V12.8.93", None),
        ("release 13.0, V13.0.88", None),
    ],
)
def test_without_a_recent_nvcc_setup_says_in_one_line_what_is_missing(tmp_path, release, reason):
    nvcc = tmp_path / "nvcc"
    if release is not None:
        nvcc.write_text(f'#!/bin/sh\necho "{release}"\n')
        nvcc.chmod(0o755)
    *said, version = run(sys.executable, "setup.py", "--version", PATH=str(tmp_path)).stdout.splitlines()
    prefix = "dllm-kernels: installing without the CUDA kernels, Triton and PyTorch serve instead: "
    assert said == ([prefix + reason.format(nvcc=nvcc)] if reason else [])
    assert version == PROJECT["version"]


def test_an_installed_package_has_its_tables_and_its_models(tmp_path):
    source, built = tmp_path / "source", tmp_path / "built"
    shutil.copytree(ROOT / "dllm_kernels", source / "dllm_kernels")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source / name)
    (source / "dllm_kernels" / "bundled" / "a-model").mkdir(parents=True)
    (source / "dllm_kernels" / "bundled" / "a-model" / "model.safetensors").write_text("weights")
    command = (sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", built)
    subprocess.run(command, cwd=source, env=os.environ | {"PATH": ""}, check=True, capture_output=True)
    data = [path.relative_to(ROOT) for path in (ROOT / "dllm_kernels").rglob("*.json")]
    assert len(data) > 2 and all((built / name).read_text() == (ROOT / name).read_text() for name in data)
    assert (built / "dllm_kernels" / "bundled" / "a-model" / "model.safetensors").read_text() == "weights"
