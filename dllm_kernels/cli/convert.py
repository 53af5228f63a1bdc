"""The command `convert`."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from dllm_kernels import LDLM
from dllm_kernels.cli.output import notes
from dllm_kernels.inference.weights import is_open_dllm, stored_model
from dllm_kernels.model.checkpoint import TOKENIZER_FILES
from dllm_kernels.utils.validation import user_input


def convert(
    source: Annotated[str, typer.Argument(help="an open-dllm checkpoint file, or a checkpoint folder or hub id")],
    destination: Annotated[Path, typer.Argument(help="the folder to write")],
    int8: Annotated[bool, typer.Option("--int8", help="matrices in 8 bits with a scale per output channel")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace the checkpoint in a folder that is not empty")] = False,
) -> None:
    """Write a checkpoint as config.json and model.safetensors, with the tokenizer beside it where there is one."""
    with user_input():
        full = destination.exists() and any(destination.iterdir())
        if full and not force:
            raise ValueError(f"{destination} is not empty; --force replaces the checkpoint in it")
        folder = None if is_open_dllm(source) else stored_model(source).folder
        model = LDLM.from_open_dllm(source) if folder is None else LDLM.from_pretrained(folder)
        tokenizer = [] if folder is None else [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
        dtype = "int8" if int8 else None
        with notes.status(f"writing {destination}"):
            if full:
                model.save_pretrained(destination, dtype)
                _copy(tokenizer, destination)
            else:
                _save_whole(destination, model, dtype, tokenizer)
    count = sum(p.numel() for p in model.parameters())
    typer.echo(f"{destination}: {count / 1e9:.3g} billion parameters, width {model.config.dim}")


def _save_whole(folder: Path, model: LDLM, dtype: str | None, tokenizer: list[Path]) -> None:
    """Writes a checkpoint into a folder that is empty or not there, and that is never there in part."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as aside:
        whole = Path(aside, folder.name)
        model.save_pretrained(whole, dtype)
        _copy(tokenizer, whole)
        os.rename(whole, folder)


def _copy(files: list[Path], folder: Path) -> None:
    for file in files:
        if not (folder / file.name).exists() or not file.samefile(folder / file.name):
            shutil.copyfile(file, folder / file.name)
