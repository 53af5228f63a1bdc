"""The layout of docs/design.md, "Layout": who may import whom, what csrc/ may include, and how long a file may be."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "dllm_kernels"

# Top to bottom: a folder imports itself and what stands lower.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("serving",),
    ("batch", "evaluation"),
    ("training", "bench"),
    ("__init__",),
    ("inference",),
    ("ops",),
    ("diffusion",),
    ("model",),
    ("utils",),
)
RANK = {name: rank for rank, names in enumerate(reversed(LAYERS)) for name in names}

# What must not be imported although it stands lower, or outside of the package.
FORBIDDEN = {"model": {"triton"}, "ops": {"model"}}


def imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names of all that a module imports anywhere, with a name imported from a package as a part of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def broken_imports(root: Path) -> list[str]:
    """A line for every import under `root`/dllm_kernels that breaks the rules."""
    found = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        where = path.relative_to(root / PACKAGE)
        own = where.parts[0].removesuffix(".py")
        if own not in RANK:
            found.append(f"{where} stands in no layer")
            continue
        for name in imports(ast.parse(path.read_text())):
            top, *rest = name.split(".")
            # What is no module of ours comes from the package's __init__, and _C only through extension.load.
            target = next((part for part in rest[:1] if part in RANK), "__init__") if top == PACKAGE else top
            above = top == PACKAGE and target != own and (RANK[target] >= RANK[own])
            screen = top in ("typer", "rich") and own != "cli"
            if not top or above or screen or target in FORBIDDEN.get(own, ()):
                found.append(f"{where} imports {name}")
    return found


def source_files(root: Path) -> list[Path]:
    """Every file of the project that holds code."""
    folders = (root / name for name in (PACKAGE, "csrc", "tests", "benchmarks"))
    paths = [*root.glob("*.py"), *(path for folder in folders for path in folder.rglob("*"))]
    return sorted(path for path in paths if path.suffix in (".py", ".cpp", ".cu", ".cuh", ".h"))


def broken_sources(root: Path) -> list[str]:
    """A line for every file that is too long, for torch in device code and for a second Python module."""
    found = []
    for path in source_files(root):
        where, text = path.relative_to(root), path.read_text()
        if (lines := text.count("\n")) > 400:
            found.append(f"{where} has {lines} lines")
        if where.parts[0] != "csrc":
            continue
        found += [
            f"{where} includes {header}" for header in re.findall(r"#\s*include\s*[<\"]((?:torch|ATen|c10)/[^>\"]*)", text)
        ]
        if "PYBIND11_MODULE" in text and str(where) != "csrc/bindings.cpp":
            found.append(f"{where} defines a Python module")
    return found


def test_imports_point_downwards():
    assert broken_imports(ROOT) == []


def test_sources_are_short_and_device_code_knows_no_torch():
    assert broken_sources(ROOT) == []
    assert (ROOT / "csrc" / "bindings.cpp").read_text().count("PYBIND11_MODULE(") == 1


def test_importing_the_package_and_every_op_needs_no_triton():
    paths = sorted((ROOT / PACKAGE / "ops").glob("*/[!_]*.py"))
    ops = [f"{PACKAGE}.ops.{path.parent.name}.{path.stem}" for path in paths if not path.stem.startswith("triton")]
    program = f"import sys, {PACKAGE}, {', '.join(ops)}; print(sorted(set(sys.modules) & {{'triton', '{PACKAGE}._C'}}))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(ops) > 4 and result.stdout == "[]\n"


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("diffusion/solver.py", "import dllm_kernels.ops.linear.op", True),
        ("utils/device.py", "from dllm_kernels.diffusion.noise import words", True),
        ("utils/device.py", "from dllm_kernels.utils.validation import whole_number", False),
        ("model/perceiver.py", "import triton.language as tl", True),
        ("model/perceiver.py", "def attend():\n    from dllm_kernels import _C", True),
        ("model/perceiver.py", "from dllm_kernels.ops import extension", True),
        ("model/perceiver.py", "from dllm_kernels.ops.attention.op import attention", True),
        ("model/perceiver.py", "from . import layers", True),
        ("model/perceiver.py", "from dllm_kernels import LDLM", True),
        ("ops/linear/op.py", "import dllm_kernels", True),
        ("ops/linear/op.py", "from dllm_kernels.model.layers import sdpa", True),
        ("ops/linear/op.py", "from dllm_kernels._C import denoise_update", True),
        ("inference/plan.py", "from dllm_kernels.bench import roofline", True),
        ("training/loss.py", "from dllm_kernels import evaluation", True),
        ("batch/job.py", "import typer", True),
        ("serving/app.py", "from rich.console import Console", True),
        ("stray.py", "", True),
        ("model/ldlm.py", "from dllm_kernels.model import checkpoint\nfrom dllm_kernels.model import layers", False),
        ("ops/linear/op.py", "import torch\nfrom dllm_kernels.ops.extension import load", False),
        ("bench/roofline.py", "from dllm_kernels.utils.device import free_memory", False),
        ("cli/main.py", "import typer\nfrom dllm_kernels import LDLM", False),
    ],
)
def test_a_planted_import_is_judged(tmp_path, module, line, broken):
    path = tmp_path / PACKAGE / module
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert bool(broken_imports(tmp_path)) is broken


@pytest.mark.parametrize(
    ("file", "text", "broken"),
    [
        ("csrc/kernels/a.cu", "#include <torch/extension.h>\n", True),
        ("csrc/include/dllm/a.cuh", '# include "ATen/ATen.h"\n', True),
        ("csrc/kernels/a.cu", "PYBIND11_MODULE(_D, m) {}\n", True),
        ("csrc/bindings.cpp", "PYBIND11_MODULE(_C, m) {}\n", False),
        ("csrc/kernels/a.cu", "#include <cuda_bf16.h>\n", False),
        ("dllm_kernels/a.py", "pass\n" * 401, True),
        ("tests/a.py", "pass\n" * 400, False),
    ],
)
def test_a_planted_source_is_judged(tmp_path, file, text, broken):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert bool(broken_sources(tmp_path)) is broken
