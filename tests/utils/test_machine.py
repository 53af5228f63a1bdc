"""What is said of a machine, and when it is in no state to be measured."""

import json
import subprocess

import pytest
import torch

from dllm_kernels.utils import machine
from dllm_kernels.utils.machine import Machine, Sample, cache_size, commit

CPU = torch.device("cpu")


def test_a_description_goes_into_json():
    found = json.loads(json.dumps(Machine(CPU).describe()))
    assert found["device"] == "cpu" and found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()
    assert found["cores"] >= 1 and found["memory_bytes"] > 10**8 and found["nvml_obstacle"] is None


@pytest.mark.parametrize(("dirty", "end"), [(False, ""), (True, "-dirty")])
def test_a_commit_says_whether_the_code_was_changed_since(tmp_path, monkeypatch, dirty, end):
    package = tmp_path / "dllm_kernels"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git = ("git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c")
    for command in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "first")):
        subprocess.run((*git, *command), check=True)
    head = subprocess.run((*git, "rev-parse", "HEAD"), check=True, capture_output=True, text=True).stdout[:12]
    if dirty:
        (package / "__init__.py").write_text("x = 1\n")
    monkeypatch.setattr(machine, "__file__", str(package / "utils" / "machine.py"))
    assert commit() == head + end


def test_outside_of_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "dllm_kernels" / "utils" / "machine.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() is None


def test_the_last_cache_is_the_largest(tmp_path, monkeypatch):
    for index, size in enumerate(("48K", "2048K", "36864K")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    monkeypatch.setattr(machine, "_CACHES", tmp_path)
    assert cache_size(CPU) == 36 * 2**20
    monkeypatch.setattr(machine, "_CACHES", tmp_path / "none")
    assert cache_size(CPU) == 0


class Meter:
    """A card's counter: each call takes 5 joules."""

    def __init__(self, told=True):
        self.calls, self.told = 0, told

    def sample(self):
        return Sample(1500.0)

    def joules(self):
        return 100.0 + 5.0 * self.calls if self.told else None


def test_energy_is_the_counters_over_the_calls(monkeypatch):
    card = Machine(CPU)
    card.nvml, ticks = Meter(), iter([0.0, 0.2, 0.4, 1.2, 2.0])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(machine.torch.cuda, "synchronize", lambda device: None)

    def call():
        card.nvml.calls += 1

    assert card.energy(call) == (5.0, 2 * 5.0 / 2.0)
    card.nvml = Meter(told=False)
    assert card.energy(call) == (None, None)
    assert Machine(CPU).energy(call) == (None, None)


@pytest.mark.parametrize(
    ("own", "busy", "said"),
    [
        (2.0, 2.0, None),
        (1.9, 2.0, None),
        (1.7, 2.0, "other processes computed on the CPU"),
        (1.0, 1.5, None),
    ],
)
def test_a_cpu_is_shared_where_others_take_what_is_needed(monkeypatch, own, busy, said):
    """On two cores in one second: others take what is left of `busy` beside `own`."""
    reads = iter([(0.0, 5.0, 50.0), (0.1, 5.0, 60.0), (1.0, 5.0 + own, 50.0 + busy), (1.1, 9.0, 90.0)])
    monkeypatch.setattr(machine.Host, "_read", staticmethod(lambda: next(reads)))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    host = machine.Host()
    # Too short a while to tell.
    assert host.sample() == Sample()
    assert host.sample().trouble == host.sample().trouble == said


def test_this_cpu_counts_its_own_time():
    if not machine.Path("/proc/stat").exists():
        pytest.skip("this system does not tell")
    before = machine.Host._read()
    while machine.time.monotonic() < before[0] + 0.3:
        pass
    seconds, own, busy = (b - a for a, b in zip(before, machine.Host._read(), strict=True))
    assert seconds >= 0.3 and 0 < own <= busy + 0.05
