"""The command line: generate, serve, bench, report, roofline, info, tune, train, convert, evaluate, report-quality.

Results go to stdout; progress, notes and errors to stderr. Input that does not fit ends with exit code 2 and one line.
"""

from typing import Annotated

import typer

from dllm_kernels.cli.bench import bench
from dllm_kernels.cli.convert import convert
from dllm_kernels.cli.errors import OneLineErrors
from dllm_kernels.cli.evaluate import evaluate
from dllm_kernels.cli.generate import generate
from dllm_kernels.cli.info import info
from dllm_kernels.cli.roofline import roofline
from dllm_kernels.cli.serve import serve
from dllm_kernels.cli.train import train
from dllm_kernels.cli.tune import tune
from dllm_kernels.utils.version import __version__

app = typer.Typer(cls=OneLineErrors, rich_markup_mode=None, pretty_exceptions_enable=False)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"dllm-kernels {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", help="print the version, and stop", callback=_version, is_eager=True)]


@app.callback(invoke_without_command=True)
def top(context: typer.Context, version: Version = False) -> None:
    """Fast inference of latent diffusion language models on one GPU."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command("generate")(generate)
app.command("roofline")(roofline)
app.command("info")(info)
app.command("bench")(bench)
app.command("tune")(tune)
app.command("serve")(serve)
app.command("evaluate")(evaluate)
app.command("train")(train)
app.command("convert")(convert)


def main() -> None:
    """The entry point `dllm-kernels`."""
    app()
