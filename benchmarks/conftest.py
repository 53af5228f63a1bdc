"""Options of the benchmark run, and the machine that it runs on."""

import shlex
import sys
from pathlib import Path

import pytest
import torch

from dllm_kernels.bench.groups import groups
from dllm_kernels.utils.device import resolve_device
from dllm_kernels.utils.machine import Machine

HERE = Path(__file__).parent


def pytest_addoption(parser):
    options = parser.getgroup("dllm-kernels")
    options.addoption("--groups", help="only these, parted by commas")
    options.addoption("--rerun", action="store_true", help="measure what is complete for this commit and machine again")
    options.addoption("--max-autotune", action="store_true", help="torch.compile max-autotune too: minutes a case")
    options.addoption("--output", type=Path, default=HERE / "out", help="folder of the results; benchmarks/out")


def pytest_generate_tests(metafunc):
    """A test a group, each in the file of its kind."""
    if "group" not in metafunc.fixturenames:
        return
    options = metafunc.config.option
    known = groups(resolve_device(None), options.max_autotune)
    wanted = options.groups.split(",") if options.groups else list(known)
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise pytest.UsageError(f"unknown groups {', '.join(unknown)}; known groups: {', '.join(known)}")
    chosen = [name for name in wanted if name.split("-")[0] in metafunc.module.KINDS]
    metafunc.parametrize("group", [known[name] for name in chosen], ids=chosen)


@pytest.fixture(scope="session")
def machine() -> Machine:
    """The card, or the CPU where there is none."""
    return Machine(resolve_device(None))


@pytest.fixture(scope="session")
def command() -> str:
    """What was typed, for the results: without the paths of the interpreter, of pytest and of the output."""
    return shlex.join(["pytest", *without_output(sys.argv[1:])])


def without_output(words: list[str]) -> list[str]:
    """Command-line words without --output and its folder."""
    kept = [word for word in words if not word.startswith("--output=")]
    if "--output" in kept:
        at = kept.index("--output")
        del kept[at : at + 2]
    return kept


@pytest.fixture(autouse=True)
def freed():
    """A group's memory is given back before the next."""
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
