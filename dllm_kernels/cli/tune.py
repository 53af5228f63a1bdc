"""The command `tune`."""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from dllm_kernels.bench import tune as tuning
from dllm_kernels.cli.options import DEFAULT_PRESET, Preset
from dllm_kernels.cli.output import notes
from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.ops.extension import cuda_unsupported_reason
from dllm_kernels.ops.linear.config import TABLE
from dllm_kernels.utils.device import resolve_device
from dllm_kernels.utils.validation import user_input


def tune(
    preset: Preset = DEFAULT_PRESET,
    rows: Annotated[int, typer.Option(min=1, help="rows of a call: batch times length")] = 64,
    output: Annotated[Path | None, typer.Option(help="the table to write; the package's own, where not given")] = None,
) -> None:
    """Time the skinny linear's configs on this card, for the shapes of a preset, and write the table that plans read."""
    with user_input():
        config = LDLMConfig.preset(preset)
        if not torch.cuda.is_available():
            raise ValueError("tuning needs a CUDA card")
        device = resolve_device("cuda")
        missing = cuda_unsupported_reason(device)
        if missing is not None:
            raise ValueError(missing)
    path = TABLE if output is None else output
    table = json.loads(path.read_text()) if path.exists() else {"entries": [], "layers": []}
    with notes.status("tuning") as status:
        found = tuning.tune(config, rows, device, table, status.update)
    for n, k in found.uneven:
        typer.echo(f"{n} x {k}: too small or uneven for a config that fills the card; left to the rule", err=True)
    if found.layer is not None:
        us, library_us = found.layer["us"], found.layer["library_us"]
        typer.echo(f"a layer of width {config.dim}: {us:.2f} us, with the library's GEMMs {library_us:.2f} us")
    for new in found.entries:
        alone = f"{new['us']} us, the fastest config {new['fastest_us']} us, the library {new['library_us']} us"
        typer.echo(f"{new['n']} x {new['k']}: {alone}, tiles of {new['tile_m']} x {new['tile_n']}")
    path.write_text(json.dumps(table, indent=1) + "\n")
