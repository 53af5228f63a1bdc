"""python -m tests.card: all that needs a card, in one sitting of at most eight minutes.

It leaves summary.json, and a log and a record a step, in --output. Exit code 0: all passed; 1: something failed or was
found; 2: there is no card; 3: nothing failed, and something was not reached.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch

from dllm_kernels.ops.extension import architectures
from dllm_kernels.utils.machine import Machine
from tests.card.report import Reached, exit_code, left_out, reached, summary, text
from tests.card.steps import TESTS, TOOLS, card_files, find_sanitizer, run, sanitizer_step, tenth, whole_step


def main(arguments: list[str] | None = None) -> int:
    """Runs the steps; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.card", description="all that needs a card, in one sitting")
    parser.add_argument(
        "--output", type=Path, default=TESTS.parent / "build" / "card", help="folder for summary.json and the logs"
    )
    parser.add_argument("--tests-seconds", type=float, default=290, help="for the tests")
    parser.add_argument("--sanitizer-seconds", type=float, default=60, help="for each tool of compute-sanitizer")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("the tests of a card need a CUDA card, and PyTorch sees none", file=sys.stderr)
        return 2
    folder = options.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(TESTS.parent)
    machine = Machine(torch.device("cuda", torch.cuda.current_device())).describe()
    steps: list[Reached] = []

    def done(step: Reached) -> None:
        steps.append(step)
        (folder / "summary.json").write_text(json.dumps(summary(machine, steps), indent=1) + "\n")
        print(step.line(), flush=True)

    try:
        architectures()
    except RuntimeError as error:
        done(left_out("CUDA kernels", str(error)))
    done(reached(run(whole_step(card_files(), machine["cores"], options.tests_seconds, folder))))
    ids, sanitizer = tenth(steps[-1].passed), find_sanitizer()
    for tool in TOOLS:
        if sanitizer is None:
            done(left_out(tool, "compute-sanitizer is neither on PATH nor beside nvcc"))
        elif not ids:
            done(left_out(tool, "no test of a CUDA kernel passed"))
        else:
            done(reached(run(sanitizer_step(tool, sanitizer, ids, options.sanitizer_seconds, folder)), ids))
    print(text(steps))
    return exit_code(steps)


if __name__ == "__main__":
    sys.exit(main())
