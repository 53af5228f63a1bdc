"""What the command line says of input that does not fit: one line on stderr, and exit code 2."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import typer
from safetensors import SafetensorError
from typer.core import TyperGroup

# Some releases of typer carry their own click, so the class is found through one that typer exports.
ClickException = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


class BadInput(Exception):
    """Input that does not fit; the message is one sentence."""


@contextmanager
def user_input() -> Iterator[None]:
    """Around what checks or reads input: there these exceptions say what does not fit; elsewhere they are bugs."""
    try:
        yield
    except (ValueError, OSError, MemoryError, SafetensorError, torch.OutOfMemoryError) as error:
        raise BadInput(str(error) or type(error).__name__) from error


class OneLineErrors(TyperGroup):
    """Commands whose bad input is one line and exit code 2. An interrupt exits with 130; a bug keeps its traceback."""

    def main(self, *args, **options):
        """click's `main`; never returns."""
        try:
            code = super().main(*args, **(options | {"standalone_mode": False}))
        except ClickException as error:
            message = error.format_message()
        except BadInput as error:
            message = str(error)
        except typer.Abort:
            sys.exit(130)
        else:
            sys.exit(code or 0)
        print("dllm-kernels:", " ".join(message.split()), file=sys.stderr)
        sys.exit(2)
