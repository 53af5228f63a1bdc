"""The groups of the benchmark: their cases and contenders, and how a group is run and resumed."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dllm_kernels.bench import ops, peers
from dllm_kernels.bench.generation import Bench, Witness, measure
from dllm_kernels.bench.machine import reaches
from dllm_kernels.bench.peers import Case, Weights, baseline
from dllm_kernels.bench.results import Result, Row, file_name, resumed
from dllm_kernels.bench.timing import Effort
from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.utils.machine import Machine, cache_size

SMALL, LARGE, PROMPTED, TINY = "open-dllm-35b-a3b", "open-dllm-27b", "ldlm-35b-a3b", "tiny"
AXES = {
    "seq_len": (16, 32, 64, 128, 256, 512, 1024),
    "batch": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "steps": (1, 2, 4, 10, 20, 50),
    "prompt": (0, 16, 64, 256, 1024, 4096),
}
_CPU_AXES = {
    "seq_len": (16, 64, 256, 1024),
    "batch": (1, 4, 16, 64, 256),
    "steps": (1, 4, 10, 50),
    "prompt": (0, 16, 64, 256, 1024),
}
ON_CARD = Effort(rounds=15, least=5, warm_s=1.0, budget_s=10.0, limit_s=45.0)
# A CPU's first call is warm-up enough. Its clock cannot be watched, so the spread of the times says whether it was steady.
ON_CPU = Effort(rounds=9, least=3, warm_s=0.0, budget_s=4.0, limit_s=10.0, most_spread=0.25)
_PUBLISHED = (peers.PUBLISHED_FP32, peers.PUBLISHED_BF16)
_GRAPHS = (peers.GRAPH, peers.COMPILED, peers.FP8)
_ON_A_CARD = (peers.OURS, peers.OURS_TRITON, *_PUBLISHED, *_GRAPHS)
_ON_A_CPU = (peers.OURS, *_PUBLISHED, peers.EAGER_FP32, peers.EAGER_BF16, *_GRAPHS)


@dataclass(frozen=True)
class Group:
    """Cases that share a process and a model.

    Attributes:
        name: on the command line and in the file's name.
        preset: of the model.
        cases: generations; empty for a group that times ops.
        contenders: of a generation, by name.
        seq_len: T of the model, or None for the preset's.
        details: whether phases, launches and energy are measured too.
        left_out: sentences that say what is not measured on this device, and why.
    """

    name: str
    preset: str
    cases: tuple[Case, ...] = ()
    contenders: tuple[str, ...] = ()
    seq_len: int | None = None
    details: bool = True
    left_out: tuple[str, ...] = field(default=())

    @property
    def config(self) -> LDLMConfig:
        """The model's config."""
        return LDLMConfig.preset(self.preset, **({} if self.seq_len is None else {"seq_len": self.seq_len}))


def groups(device: torch.device, max_autotune: bool = False) -> dict[str, Group]:
    """Every group for a device, by name, in the order in which they are run."""
    found = list(_card_groups(max_autotune) if device.type == "cuda" else _cpu_groups())
    return {group.name: group for group in found}


def _card_groups(max_autotune: bool) -> Iterator[Group]:
    for preset in (SMALL, LARGE):
        yield _table(preset, _ON_A_CARD)
    for preset in (SMALL, LARGE):
        yield Group(f"ops-{preset}", preset)
    for axis in AXES:
        yield _sweep(axis, PROMPTED if axis == "prompt" else SMALL, AXES[axis], peers.GRAPH)
    if max_autotune:
        # A case compiles for minutes, so each is a group of its own.
        for preset in (SMALL, LARGE):
            for steps in (10, 4):
                contenders = (peers.OURS, peers.GRAPH, peers.TUNED)
                yield Group(f"autotune-{preset}-{steps}", preset, (Case(preset, steps),), contenders)


def _cpu_groups() -> Iterator[Group]:
    yield _table(TINY, _ON_A_CPU)
    left_out = f"{LARGE} needs a CUDA card: its weights, packed and unpacked, take 27 GB and minutes a generation on a CPU"
    yield _table(SMALL, _ON_A_CPU, left_out)
    for preset in (TINY, SMALL):
        yield Group(f"ops-{preset}", preset)
    left_out = "points between and beyond these are left to a card, for time"
    for axis, values in _CPU_AXES.items():
        yield _sweep(axis, TINY, values, peers.EAGER_BF16, left_out)
    left_out = f"the sweeps of length, batch, prompt and more steps at {SMALL} need a CUDA card: a CPU takes too long"
    yield _sweep("steps", SMALL, AXES["steps"][:2], peers.EAGER_BF16, left_out)


def _table(preset: str, contenders: tuple[str, ...], *left_out: str) -> Group:
    return Group(f"table-{preset}", preset, (Case(preset, 10), Case(preset, 4)), contenders, left_out=left_out)


def _sweep(axis: str, preset: str, values: tuple[int, ...], against: str, *left_out: str) -> Group:
    cases = tuple(Case(**({"preset": preset} | {axis: value})) for value in values)
    seq_len = max(values) if axis == "seq_len" else None
    name = f"sweep-{'length' if axis == 'seq_len' else axis}-{preset}"
    return Group(name, preset, cases, (peers.OURS, against), seq_len, False, left_out)


def locate(group: Group, machine: Machine, folder: Path, command: str, rerun: bool) -> tuple[Result, Path]:
    """The group's result and its file: new, or with what an earlier run on this commit and machine has measured.

    Args:
        group: the group.
        machine: where it runs.
        folder: of the results.
        command: the command line, as the result states it.
        rerun: whether to begin anew where an earlier result exists.
    """
    new = Result(group.name, command, machine.describe(), {}, baseline=_against(group, machine.device))
    new.left_out = list(group.left_out)
    path = folder / file_name(new)
    if not rerun:
        # The date in a file's name is the day on which its group was begun.
        for older in sorted(folder.glob(f"*{path.name.removeprefix(new.day)}"), reverse=True):
            if (found := resumed(older, new)) is not new:
                return found, older
    return new, path


def _against(group: Group, device: torch.device) -> str:
    return baseline(device) if group.cases else ops.LIBRARY


def run(
    group: Group,
    machine: Machine,
    result: Result,
    path: Path,
    witness: Witness | None = None,
    progress: Callable[[str], None] = lambda done: None,
) -> Result:
    """Measures the cases that a result lacks, and writes the file after every case.

    Args:
        group: what to measure.
        machine: where.
        result, path: as `locate` gave them.
        witness: called with our call of the first case.
        progress: called with a case's name when it is written.

    Returns:
        The complete result.
    """
    begin, before = time.monotonic(), result.took_s
    card = reaches(machine.device)
    result.reached = {"bytes_per_s": card.bandwidth, "flops": card.rates[torch.bfloat16]}
    if machine.unsupported_reason and machine.unsupported_reason not in result.left_out:
        result.left_out.append(machine.unsupported_reason)
    effort = ON_CARD if machine.device.type == "cuda" else ON_CPU
    for rows in _cases(group, result, Bench(machine, card, effort, group.details), witness):
        result.rows += rows
        result.took_s = before + time.monotonic() - begin
        result.write(path)
        progress(", ".join(f"{key} {value}" for key, value in rows[0].case.items()))
    result.complete = True
    result.write(path)
    return result


def _cases(group: Group, result: Result, bench: Bench, witness: Witness | None) -> Iterator[list[Row]]:
    if not group.cases:
        weights = ops.make_weights(group.config, bench.device, cache_size(bench.device))
        for op in ops.ops(weights):
            if not result.has(op.case(group.preset)):
                yield ops.measure_op(op, group.preset, bench, witness)
                witness = None
        return
    missing = [case for case in group.cases if not result.has(case.fields())]
    weights = Weights.of(group.config, bench.device) if missing else None
    for case in missing:
        yield measure(case, group.contenders, weights, bench, witness)
        witness = None
