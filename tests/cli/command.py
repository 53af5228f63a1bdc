"""Runs the command line in this process, and makes the checkpoints that it is given."""

import json

import torch
from typer.testing import CliRunner

from dllm_kernels import LDLMConfig
from dllm_kernels.cli.main import app
from tests.models import randomized
from tests.published import Published

TINY = LDLMConfig.preset("tiny", seq_len=13, vocab_size=101)


def run(*arguments, code=0):
    """The result of a command that ends with `code`; another exception than its exit is raised."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr)
    return result


def read(*arguments):
    """What a command prints with --json: one document and nothing else."""
    out = run(*arguments, "--json").stdout
    assert out.endswith("}\n") and out.count("\n") == 1
    return json.loads(out)


def message(*arguments):
    """The one line of bad input."""
    result = run(*arguments, code=2)
    assert result.stdout == "" and result.stderr.count("\n") == 1
    assert result.stderr.startswith("dllm-kernels: ")
    return result.stderr.removeprefix("dllm-kernels: ").rstrip("\n")


def save_ours(path):
    """A checkpoint folder of ours."""
    randomized(TINY).save_pretrained(path)
    return path


def save_published(path):
    """A checkpoint file of the published format."""
    torch.manual_seed(1)
    torch.save(Published(64, 101, 13, depth=2, decoder_num_layers=1, diffusion_head_depth=2).checkpoint(), path)
    return path
