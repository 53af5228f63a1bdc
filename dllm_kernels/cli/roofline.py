"""The command `roofline`."""

from typing import Annotated

import torch
import typer

from dllm_kernels.bench.roofline import CARDS, floor, this_card, work
from dllm_kernels.cli import output
from dllm_kernels.cli.options import DEFAULT_PRESET, AsJson, Batch, Device, DtypeOption, Preset, Steps
from dllm_kernels.cli.output import emit, notes
from dllm_kernels.inference.load import device_for
from dllm_kernels.inference.options import Dtype
from dllm_kernels.inference.weights import PACKED_MODULES
from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.model.ldlm import build_module
from dllm_kernels.utils.device import resolve_device
from dllm_kernels.utils.validation import user_input


def roofline(
    preset: Preset = DEFAULT_PRESET,
    steps: Steps = 10,
    batch: Batch = 1,
    dtype: DtypeOption = Dtype.bf16,
    card: Annotated[str, typer.Option(help=f"{', '.join(CARDS)}, or this, which is measured")] = "this",
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Bytes, operations and the least time of a generation on a card."""
    with user_input():
        config = LDLMConfig.preset(preset)
        if card != "this" and card not in CARDS:
            raise ValueError(f"unknown card {card!r}; known cards: {', '.join(CARDS)}, this")
        on = resolve_device("cpu") if card != "this" else device_for(device, "auto", None)
    if card == "this":
        with notes.status("measuring this machine"):
            reached = this_card(on, dtype.torch)
    else:
        reached = CARDS[card]
    with torch.device("meta"):
        parts = {name: build_module(name, config) for name in PACKED_MODULES}
    variants = {name: work(config, parts, steps, batch, folded) for name, folded in (("folded", True), ("as_written", False))}
    least = floor(variants["folded"], reached, dtype.torch)
    rate = reached.rates.get(dtype.torch)
    result = {
        "preset": preset,
        "steps": steps,
        "batch": batch,
        "seq_len": config.seq_len,
        "dtype": dtype,
        "card": {
            "name": reached.name,
            "bytes_per_s": reached.bandwidth,
            "flops": rate,
            "provenance": reached.provenance,
        },
        **{
            variant: {
                "bytes": sum(row.weights for row in rows) * dtype.torch.itemsize,
                "operations": sum(row.operations for row in rows),
                "parts": {
                    row.part: {"bytes": row.weights * dtype.torch.itemsize, "operations": row.operations} for row in rows
                },
            }
            for variant, rows in variants.items()
        },
        "bandwidth_ms": 1000 * least.bandwidth,
        "arithmetic_ms": None if least.arithmetic is None else 1000 * least.arithmetic,
        "floor_ms": 1000 * least.seconds,
        "tokens_per_s": batch * config.seq_len / least.seconds,
    }
    emit(result, as_json, output.roofline)
