"""The command `bench`: two minutes for a person."""

import dataclasses
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dllm_kernels.bench import peers
from dllm_kernels.bench.compare import guard, matching, verdict
from dllm_kernels.bench.generation import Bench, failed, measure
from dllm_kernels.bench.groups import ON_CARD, ON_CPU
from dllm_kernels.bench.machine import reaches
from dllm_kernels.bench.peers import Case, Weights, baseline
from dllm_kernels.bench.results import Result, check_place, read
from dllm_kernels.bench.wording import machine_line, number, share
from dllm_kernels.cli.options import DEFAULT_PRESET, AsJson, Batch, Device, Preset, Steps, Threads
from dllm_kernels.cli.output import emit, notes, out
from dllm_kernels.inference.load import device_for
from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.utils.machine import Machine
from dllm_kernels.utils.validation import BadInput, user_input

ResultFile = Annotated[Path | None, typer.Option(help="a result of the harness, or of bench --output")]


def bench(
    preset: Preset = DEFAULT_PRESET,
    steps: Steps = 10,
    batch: Batch = 1,
    rounds: Annotated[int, typer.Option(min=1, help="at most, each contender once a round")] = 9,
    device: Device = None,
    threads: Threads = None,
    output: Annotated[Path | None, typer.Option(help="a file for the result, as JSON")] = None,
    compare: ResultFile = None,
    against: ResultFile = None,
    as_json: AsJson = False,
) -> None:
    """Time the sampler beside the published loop and plain PyTorch: one process, the same random bf16 weights, in turns.

    --compare says for each contender whether it moved beyond noise since an earlier result. --against ends with exit code 1
    where the sampler's ratio to the baseline fell by more than 5%.
    """
    with user_input():
        on = device_for(device, "auto", threads)
        config = LDLMConfig.preset(preset)
        earlier, before = (None if path is None else read(path) for path in (compare, against))
        if output is not None:
            check_place(output)
        with notes.status("making the model"):
            weights = Weights.of(config, on)
    machine, case = Machine(on), Case(preset, steps, batch, config.seq_len)
    effort = dataclasses.replace(ON_CARD if on.type == "cuda" else ON_CPU, rounds=rounds, least=min(3, rounds))
    result = Result("bench", shlex.join(["dllm-kernels", *sys.argv[1:]]), machine.describe(), {}, baseline=baseline(on))
    begin = time.monotonic()
    with notes.status("measuring the machine, then the contenders"):
        card = reaches(on)
        result.reached = {"bytes_per_s": card.bandwidth, "flops": next(iter(card.rates.values()))}
        names = (peers.PUBLISHED_BF16, baseline(on), peers.OURS)
        try:
            result.rows = measure(case, names, weights, Bench(machine, card, effort))
        except MemoryError as error:
            raise BadInput(str(error)) from error
    result.took_s, result.complete = time.monotonic() - begin, True
    if output is not None:
        with user_input():
            result.write(output)
    emit(result.fields(), as_json, lambda _: _show(result, earlier))
    failures = failed(result.rows)
    if before is not None:
        with user_input():
            failures += guard(before, result)
    for line in failures:
        typer.echo(f"dllm-kernels: {line}", err=True)
    if failures:
        raise typer.Exit(1)


def _show(result: Result, earlier: Result | None) -> None:
    """One table, and one line on the machine."""
    table = Table("contender")
    for title in ["ms", "p20 - p80", "tok/s", "ratio", "floor", "error"] + ["since"] * (earlier is not None):
        table.add_column(title, justify="right")
    for row in result.rows:
        if row.ms is None:
            continue
        span = f"{number(row.p20_ms)} - {number(row.p80_ms)}"
        cells = [number(row.ms), span, number(row.tokens_per_s), number(row.ratio)]
        cells += [share(row.floor_share), number(row.max_error, 2)]
        if earlier is not None:
            old = matching(earlier, row)
            cells.append("not there" if old is None else verdict(old, row))
        table.add_row(row.contender, *cells)
    out.print(table)
    case = result.rows[0].case
    out.print(
        f"{case['preset']}, random weights, bf16, {case['steps']} steps, batch {case['batch']}, {case['seq_len']} tokens; "
        f"ratio: speed relative to {result.baseline}. {machine_line(result)}."
    )
    for row in result.rows:
        if row.reason:
            out.print(f"{row.contender}: {row.reason}.")
    for unstable in dict.fromkeys(row.unstable for row in result.rows if row.unstable):
        out.print(f"No ratio: {unstable}.")
    if earlier is not None and earlier.machine["name"] != result.machine["name"]:
        out.print(f"The earlier result is of another machine: {earlier.machine['name']}.")
