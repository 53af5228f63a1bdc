"""Options that several commands share."""

from typing import Annotated

import typer

from dllm_kernels.inference.options import Dtype
from dllm_kernels.model.config import PRESETS

DEFAULT_PRESET = "open-dllm-35b-a3b"

Steps = Annotated[int, typer.Option("--steps", min=1, help="steps of the solver")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="samples generated together")]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        "--dtype", parser=Dtype, metavar=f"[{'|'.join(Dtype)}]", help="of the packed weights; PyTorch's names work too"
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N; a card where there is one")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="of PyTorch on a CPU; its own choice, where not given")]
Preset = Annotated[str, typer.Option("--preset", help=", ".join(PRESETS))]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on stdout instead of a table")]
