"""The command `train`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dllm_kernels.cli.options import AsJson, Device
from dllm_kernels.cli.output import notes, out, progress_bar
from dllm_kernels.model.encoder import Encoder
from dllm_kernels.training.settings import Settings
from dllm_kernels.training.windows import windows
from dllm_kernels.utils.validation import BadInput, user_input


def train(
    config: Annotated[Path, typer.Option("--config", help="the run's YAML file; docs/training.md explains its keys")],
    resume: Annotated[bool, typer.Option("--resume", help="go on from the newest checkpoint of the run's output")] = False,
    prepare: Annotated[bool, typer.Option("--prepare", help="cut the text into windows, and stop")] = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Train a model jointly with its latent space, on one process or under `accelerate launch`.

    SIGTERM or SIGINT saves a checkpoint after the step that runs, and ends with 128 + the signal's number.
    With --json every line of metrics goes to stdout as it is written to metrics.jsonl.
    """
    # PyTorch's distributed checkpoints take half a second to import, which no other command should wait for.
    from dllm_kernels.training.run import NotFinite, Run
    from dllm_kernels.training.stopping import Stopped

    try:
        with user_input():
            settings = Settings.read(config)
            if prepare:
                _prepare(settings)
                return
            with notes.status("preparing") as status:
                run = Run(settings, resume, device, status.update, lambda line: as_json and print(json.dumps(line), flush=True))
    except ImportError as error:
        raise BadInput(str(error)) from error
    if run.main and run.encoder.linear_attention:
        notes.print(f"the encoder's linear attention is computed by {run.encoder.linear_attention}")
    try:
        with progress_bar(settings.optimizer.steps, done=run.step, shown=run.main) as advance:
            result = run.train(advance)
    except NotFinite as error:
        typer.echo(f"dllm-kernels: {error}", err=True)
        raise typer.Exit(1) from error
    except Stopped as stopped:
        if run.main:
            typer.echo(f"dllm-kernels: {stopped}", err=True)
        raise typer.Exit(128 + stopped.signal) from stopped
    if run.main and not as_json:
        # A run that goes on where none is left has no losses of its own.
        said = f"loss {result['loss']:.4f}" if "loss" in result else "finished already"
        out.print(f"{result['model']}: step {result['step']}, {said}")


def _prepare(settings: Settings) -> None:
    encoder = Encoder(settings.encoder.path, settings.encoder.layer, "cpu")
    encoder.check_fits(settings.model)
    with notes.status("cutting the text into windows"):
        parts = windows(settings.data, settings.model.seq_len, settings.model.vocab_size, settings.seed, encoder)
    out.print(f"{settings.data.windows}: {', '.join(f'{len(rows):,} {name} windows' for name, rows in parts.items())}")
