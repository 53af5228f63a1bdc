"""What a newcomer meets: the blocks of README.md and docs/tutorial.md as they are typed, and what an installation takes.

    python -m benchmarks.newcomer

writes benchmarks/results/DAY-newcomer.json: disk, the memory of `make generate`, and what the tutorial printed. Run it in an
environment with the extras `text` and `train` alone, since it measures that environment, and with OMP_NUM_THREADS=1, since the
tutorial's times are told for one core. tests/report/test_blocks.py runs the
same blocks, and tests/report/test_readme.py compares the documents with the file.

A block is run where `<!-- run -->` stands above it, by a process of its own in one folder for the whole document. A comment
above a block of output says how it compares with what the block before it printed (Expected).
"""

import datetime
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dllm_kernels.bench.peers import OURS
from dllm_kernels.bench.results import Result
from dllm_kernels.bench.wording import number
from dllm_kernels.utils.machine import Machine

ROOT = Path(__file__).parent.parent
TUTORIAL = ROOT / "docs" / "tutorial.md"
RESULTS = ROOT / "benchmarks" / "results"

EXACT = "prints"  # the same on every machine
NEARLY = "prints nearly"  # nine tenths of the words: processors round differently
RECORDED = "printed"  # the run in benchmarks/results did; another machine or a shorter training prints its own

_BLOCK = re.compile(r"^<!-- (run|prints|prints nearly|printed) -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Expected:
    """Output that a document shows: its text, and how it compares with a run's: EXACT, NEARLY or RECORDED."""

    how: str
    text: str


@dataclass(frozen=True)
class Block:
    """Code of a document: "bash" or "python", its text, and the output that the document shows below it, or None."""

    language: str
    code: str
    expected: Expected | None


def blocks(document: str) -> list[Block]:
    """The marked blocks of a Markdown document, in order."""
    found: list[Block] = []
    for kind, language, text in _BLOCK.findall(document):
        if kind == "run":
            found.append(Block(language, text, None))
        else:
            found[-1] = Block(found[-1].language, found[-1].code, Expected(kind, text))
    return found


def environment(folder: Path) -> dict[str, str]:
    """The caller's environment without a card, with `dllm-kernels` and `python` as this interpreter and its package."""
    (folder / "bin").mkdir()
    for name, module in (("python", ""), ("dllm-kernels", "-m dllm_kernels")):
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


def run(block: Block, folder: Path, env: dict[str, str]) -> str:
    """What a block prints on stdout. Raises RuntimeError, with its stderr, where it fails."""
    command = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else ["python", "-c"]
    done = subprocess.run([*command, block.code], cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"this block failed:\n{block.code}\n{done.stderr}")
    return done.stdout


def _made_generations() -> Iterator[str]:
    """The commands of `make generate`."""
    recipe = re.search(r"^generate:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    yield from (line.strip().removeprefix("$(BIN)/") for line in recipe.splitlines())


def _peak_memory(command: str) -> int:
    """Bytes of RAM that a `dllm-kernels` command held at most."""
    measured = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    words = [sys.executable, "-m", "dllm_kernels", *shlex.split(command)[1:]]
    done = subprocess.run([sys.executable, "-c", measured, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return 1024 * int(done.stdout)


def sizes() -> dict[str, int]:
    """Bytes of files of this environment, and in it of PyTorch, of Triton and of this package with its model."""
    libraries = Path(sysconfig.get_path("purelib"))
    folders = {"environment": Path(sys.prefix), "torch": libraries / "torch", "triton": libraries / "triton"}
    folders |= {"package": libraries / "dllm_kernels", "bundled": libraries / "dllm_kernels" / "bundled"}
    return {name: _size(folder) for name, folder in folders.items()}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def tutorial() -> list[dict[str, Any]]:
    """The seconds and the output of each of the tutorial's blocks, trained for as long as it says."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        env = environment(Path(folder))
        for block in blocks(TUTORIAL.read_text()):
            start = time.monotonic()
            printed = run(block, Path(folder), env)
            seconds = round(time.monotonic() - start, 1)
            # Tables of times are not for the document.
            shown = printed if block.expected else None
            found.append({"first_line": block.code.partition("\n")[0], "seconds": seconds, "printed": shown})
    return found


def newest() -> dict[str, Any]:
    """The newest committed result."""
    return json.loads(max(RESULTS.glob("*-newcomer.json")).read_text())


def disk(result: dict[str, Any]) -> str:
    """The sentence on disk, as README.md and docs/install.md have it."""
    gb = {name: number(size / 1e9, 2) for name, size in result["bytes"].items()}
    mb = {name: number(size / 1e6, 2) for name, size in result["bytes"].items()}
    return (
        f"{gb['environment']} GB for an environment with the extras `text` and `train` and PyTorch for CPUs, "
        f"{gb['torch']} GB of it PyTorch and {gb['triton']} GB Triton. "
        f"This package takes {mb['package']} MB, {mb['bundled']} MB of it `ldlm-demo`. PyTorch for CUDA is larger."
    )


def memory(result: dict[str, Any], tables: Iterable[Result]) -> str:
    """The sentence on memory: of a CPU's from `result`, of a card's from the harness's tables of the published presets."""
    demo, published = (number(peak / 1e9, 2) for peak in result["peak_memory_bytes"].values())
    card = {row.case["preset"]: row.peak_memory_bytes for table in tables for row in table.rows if row.contender == OURS}
    gb = {preset: number(peak / 1e9, 2) for preset, peak in card.items()}
    return (
        f"on a CPU {demo} GB for `ldlm-demo` and {published} GB for `open-dllm-35b-a3b`. On an H200 a generation takes "
        f"{gb['open-dllm-35b-a3b']} GB of the card with `open-dllm-35b-a3b` and {gb['open-dllm-27b']} GB with `open-dllm-27b`."
    )


def main() -> None:
    """Measures, and writes the file."""
    result = {
        "command": "python -m benchmarks.newcomer",
        "day": datetime.date.today().isoformat(),
        "machine": Machine(torch.device("cpu")).describe(),
        "bytes": sizes(),
        "peak_memory_bytes": {command: _peak_memory(command) for command in _made_generations()},
        "tutorial": tutorial(),
    }
    path = RESULTS / f"{result['day']}-newcomer.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
