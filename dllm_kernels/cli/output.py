"""What the command line prints: a result as one JSON document or as tables; progress and notes on stderr."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dllm_kernels.inference.load import Loaded
from dllm_kernels.utils.device import device_name

out = Console(highlight=False, markup=False)
notes = Console(stderr=True, highlight=False, markup=False)


@contextmanager
def progress_bar(total: int, done: int = 0, shown: bool = True) -> Iterator[Callable[..., None]]:
    """A bar on stderr, `done` of `total` from the start; calling what it gives moves it by one, and shows its phase."""
    columns = TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=notes, disable=not shown) as progress:
        task = progress.add_task("", total=total, completed=done)
        yield lambda phase="", number=0: progress.update(task, advance=1, description=phase)


def say_tokens_only(loaded: Loaded) -> None:
    """Says why there will be no text, where there is a tokenizer that cannot be read here."""
    if loaded.tokens_only is not None:
        notes.print(f"Tokens only: {loaded.tokens_only}")


def machine_fields(device: torch.device) -> dict[str, Any]:
    """What a result says of the machine."""
    return {
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "torch": torch.__version__,
    }


def emit(result: dict[str, Any], as_json: bool, render: Callable[[dict[str, Any]], None]) -> None:
    """Prints `result`, through `render` unless a script reads it."""
    if as_json:
        print(json.dumps(result))
    else:
        render(result)


def samples(result: dict[str, Any]) -> None:
    """Text, or tokens where there is no tokenizer."""
    samples = result["text"] or [" ".join(map(str, tokens)) for tokens in result["tokens"]]
    for index, sample in enumerate(samples):
        out.print(f"sample {result['first_sample'] + index}: {sample}", soft_wrap=True)
    if result["weights"] == "random":
        out.print("The weights are random, so the tokens carry no meaning.")


def generation(result: dict[str, Any]) -> None:
    """The samples, and the time of each phase."""
    samples(result)
    table = _table("phase", "ms", "share")
    phases = result["phases_ms"]
    for phase, ms in phases.items():
        steps = f" ({result['steps']} steps)" if phase == "denoise" else ""
        table.add_row(phase + steps, f"{ms:,.3f}", f"{ms / sum(phases.values()):.1%}")
    table.add_section()
    table.add_row("total", f"{result['total_ms']:,.3f}", f"{result['tokens_per_s']:,.1f} tok/s")
    out.print(table)
    out.print(
        f"{result['model']}, {result['dtype']}, batch {result['batch']}, {result['seq_len']} tokens on {_where(result)}; "
        f"the second of two generations is timed.\n"
        f"Packing the weights took {result['packing_s']:.1f} s; peak memory {result['peak_memory_bytes'] / 1e9:.2f} GB."
    )


def roofline(result: dict[str, Any]) -> None:
    """Bytes and operations by part, and the floor."""
    table = _table("", "GB", "GFLOP", "GB as written", "GFLOP as written")
    folded, written = result["folded"], result["as_written"]
    for part in folded["parts"]:
        table.add_row(part, *_work(folded["parts"][part]), *_work(written["parts"][part]))
    table.add_section()
    table.add_row("total", *_work(folded), *_work(written))
    out.print(table)
    card = result["card"]
    out.print(f"{card['name']}: {card['bytes_per_s'] / 1e9:,.0f} GB/s, {_rate(card['flops'])} ({card['provenance']})")
    arithmetic = "unknown" if result["arithmetic_ms"] is None else f"{result['arithmetic_ms']:,.3f} ms"
    out.print(
        f"floor {result['floor_ms']:,.3f} ms, {result['tokens_per_s']:,.0f} tok/s "
        f"(by bandwidth {result['bandwidth_ms']:,.3f} ms, by arithmetic {arithmetic}): "
        f"{result['preset']}, {result['dtype']}, {result['steps']} steps, batch {result['batch']}, {result['seq_len']} tokens"
    )


def information(result: dict[str, Any]) -> None:
    """The machine, the versions, who serves each op."""
    capability = "" if result["capability"] is None else f", compute capability {result['capability']}"
    out.print(f"{_where(result)}{capability}, {result['memory_bytes'] / 1e9:.1f} GB of memory")
    versions = (f"{name} {result[name] or 'none'}" for name in ("dllm_kernels", "python", "torch", "triton", "cuda"))
    out.print(", ".join(versions))
    out.print(f"CUDA kernels: {', '.join(result['cuda_kernels']) or result['cuda_kernels_unsupported_reason']}")
    table = Table("op", "served by", "why")
    for row in result["ops"]:
        table.add_row(row["op"], row["backend"], row["why"])
    out.print(table)


def compiled_kernels(result: dict[str, Any]) -> None:
    """What the compiler made of each CUDA kernel: registers, bytes of stack and spills, and the instructions meant."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for title in ("kernel", "for", "regs", "spill", *result["kernels"][0]["instructions"]):
        table.add_column(title, justify="left" if title in ("kernel", "for") else "right", overflow="fold")
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    for row in result["kernels"]:
        spilled = row["stack_bytes"] + row["local_bytes"] + row["spills"]
        numbers = (row["registers"], spilled, *row["instructions"].values())
        table.add_row(row["kernel"].replace(", ", ","), row["architecture"], *map(str, numbers))
    out.print(table)


def _table(first: str, *rest: str) -> Table:
    table = Table(first)
    for title in rest:
        table.add_column(title, justify="right")
    return table


def _work(part: dict[str, Any]) -> tuple[str, str]:
    return f"{part['bytes'] / 1e9:,.3f}", f"{part['operations'] / 1e9:,.1f}"


def _rate(flops: float | None) -> str:
    return "no figure for this dtype's arithmetic" if flops is None else f"{flops / 1e12:,.3g} TFLOP/s"


def _where(result: dict[str, Any]) -> str:
    if result["device"] != "cpu":
        return f"{result['device_name']} ({result['device']})"
    omp = result["omp_num_threads"]
    return f"{result['device_name']} ({result['threads']} threads{'' if omp is None else f', OMP_NUM_THREADS={omp}'})"
