"""What the command line says of input that does not fit: one line on stderr, and exit code 2."""

import sys

import typer
from typer.core import TyperGroup

from dllm_kernels.utils.validation import BadInput

# Some releases of typer carry their own click, so the class is found through one that typer exports.
ClickException = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


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
