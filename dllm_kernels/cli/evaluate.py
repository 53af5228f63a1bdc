"""The commands `evaluate`, which measures a model's text, and `report-quality`, which writes docs/quality.md of it."""

import importlib.util
import shlex
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from dllm_kernels.bench.wording import number
from dllm_kernels.cli.options import AsJson, Batch, Device, DtypeOption, Threads
from dllm_kernels.cli.output import emit, notes, out
from dllm_kernels.diffusion.schedule import NoiseSchedule
from dllm_kernels.diffusion.solver import SOLVERS, time_grid
from dllm_kernels.evaluation.judge import SMOLLM2, Judge
from dllm_kernels.evaluation.results import Evaluation
from dllm_kernels.evaluation.run import Task, held_out_parts
from dllm_kernels.evaluation.run import evaluate as run_evaluation
from dllm_kernels.inference.load import device_for
from dllm_kernels.inference.options import Dtype, grid_of
from dllm_kernels.inference.weights import StoredModel, stored_model
from dllm_kernels.model.encoder import Encoder
from dllm_kernels.model.ldlm import MODULES, build_module
from dllm_kernels.model.tokenizer import TextTokenizer, has_tokenizer
from dllm_kernels.utils.machine import Machine
from dllm_kernels.utils.validation import user_input


def evaluate(
    model: Annotated[str, typer.Argument(help="a checkpoint folder, hub id or bundled model")],
    held_out: Annotated[
        Path, typer.Option(help="text the model was not trained on (.jsonl, or paragraphs), or train's windows")
    ],
    output: Annotated[Path, typer.Option(help="a file for the result, as JSON, written as the evaluation goes on")],
    training: Annotated[
        Path | None, typer.Option(help="what the model was trained on, text or train's windows, to find what it repeats")
    ] = None,
    judge: Annotated[
        list[str], typer.Option(help="a GGUF file, folder or hub id of a causal language model; several times for several")
    ] = (SMOLLM2,),
    samples: Annotated[int, typer.Option(min=2, help="texts a row of the table")] = 512,
    steps: Annotated[str, typer.Option(help="numbers of steps, with commas between them")] = "1,2,4,10,25,50",
    solver: Annotated[list[str], typer.Option(help="ddim, ddpm or dpmpp_2m; several times for several")] = ("ddim", "dpmpp_2m"),
    grid: Annotated[str, typer.Option(help="auto, t, or log_snr:START:END")] = "auto",
    batch: Batch = 64,
    prompt_len: Annotated[int, typer.Option(min=1, help="tokens of a prompt in the prompt test")] = 32,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most likely token")] = 0.0,
    seed: Annotated[int, typer.Option(help="of the samples and of what is picked from the held-out text")] = 0,
    encoder: Annotated[str | None, typer.Option(help="the frozen encoder; the one that the model's config names")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="the one beside the weights or of the encoder, where not given")] = None,
    name: Annotated[str | None, typer.Option(help="of the model in the tables; its folder's, where not given")] = None,
    dtype: DtypeOption = Dtype.bf16,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model's text beside held-out human text and a causal language model's own samples."""
    with user_input():
        on = device_for(device, "auto", threads)
        numbers, solvers = _steps(steps), list(dict.fromkeys(solver))
        unknown = sorted(set(solvers) - set(SOLVERS))
        if unknown:
            raise ValueError(f"unknown solver {unknown[0]!r}; known solvers: {', '.join(SOLVERS)}")
        for path in (held_out, training):
            if path is not None and not path.exists():
                raise ValueError(f"{path} is neither a file nor a folder")
        _needs()
        source, times = stored_model(model), grid_of(grid)
        if isinstance(times, list):
            raise ValueError("the times themselves fit one number of steps; grid must be auto, t or log_snr:START:END")
        for few in numbers:
            time_grid(NoiseSchedule.from_config(source.config), few, times)
        task = Task(held_out, training, samples, solvers, numbers, times, batch, prompt_len, temperature, seed, dtype.torch, on)
        try:
            words = TextTokenizer(_tokenizer_path(tokenizer, encoder, source))
            parts = held_out_parts(task, words, source.config.seq_len)
            with notes.status("loading the judges"):
                judges = [Judge(path, on) for path in dict.fromkeys(judge)]
        except ImportError as error:
            raise ValueError(str(error)) from error
        names = [reader.name for reader in judges]
        if len(set(names)) < len(names):
            raise ValueError(
                f"two judges have one name, {', '.join(names)}; rename a file or folder, so that rows tell them apart"
            )
        evaluation = Evaluation(
            name or source.folder.resolve().name,
            shlex.join(["dllm-kernels", *sys.argv[1:]]),
            Machine(on).describe(),
            names[0],
            {
                "samples": samples,
                "seq_len": source.config.seq_len,
                "grid": grid,
                "batch": batch,
                "dtype": dtype,
                "temperature": temperature,
                "seed": seed,
                "held_out": held_out.name,
                "training": training and training.name,
                "encoder": encoder or source.config.encoder,
            },
            _parameters(source),
        )
        frozen = _encoder(encoder, source, on, evaluation)
        evaluation.write(output)
    with notes.status("evaluating") as status:
        run_evaluation(evaluation, task, source, words, judges, frozen, parts, lambda: evaluation.write(output), status.update)
    emit(evaluation.fields(), as_json, lambda _: _show(evaluation))


def _steps(text: str) -> list[int]:
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ValueError(f"steps is {text!r}; it must be whole numbers with commas between them, such as 1,10,25") from None
    if numbers[0] < 1:
        raise ValueError(f"steps has {numbers[0]}; each must be at least 1")
    return numbers


def _needs() -> None:
    missing = [package for package in ("mauve", "transformers") if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f"evaluate needs {' and '.join(missing)}: pip install 'dllm-kernels[eval]'")


def _tokenizer_path(tokenizer: str | None, encoder: str | None, source: StoredModel) -> str | Path:
    beside = source.folder if has_tokenizer(source.folder) else None
    path = tokenizer or beside or encoder or source.config.encoder
    if path is None:
        raise ValueError("the model has no tokenizer beside its weights and names no encoder: pass --tokenizer")
    return path


def _encoder(path: str | None, source: StoredModel, device: torch.device, evaluation: Evaluation) -> Encoder | None:
    """The frozen encoder; None, and the reason in the result, where the model names one that is not here."""
    try:
        return Encoder.for_model(source.config, device, path)
    except ValueError as error:
        if path is not None:
            raise
        evaluation.left_out.append(f"reconstruction and prompts: {error}")
        return None


def _parameters(source: StoredModel) -> int:
    with torch.device("meta"):
        return sum(p.numel() for part in MODULES for p in build_module(part, source.config).parameters())


def _show(evaluation: Evaluation) -> None:
    """The table in the terminal."""
    table = Table("text", box=None, padding=(0, 1, 0, 0))
    others = [] if not evaluation.rows else list(evaluation.rows[0].other_perplexities)
    titles = ["steps", "perplexity", *others, "entropy", "distinct-2", "MAUVE", "memorised", "tok/s"]
    for title in titles:
        table.add_column(title, justify="right")
    for row in evaluation.rows:
        source = row.source if row.solver is None else f"{row.source}, {row.solver}"
        judged = [row.perplexity, *(row.other_perplexities.get(name) for name in others)]
        numbers = [row.steps, *judged, row.entropy, row.distinct_2, row.mauve, row.memorised, row.tokens_per_s]
        table.add_row(source, *map(number, numbers))
    out.print(table)
    for about, found in (("reconstruction", evaluation.reconstruction), ("prompts", evaluation.prompts)):
        if found is not None:
            out.print(f"{about}: {', '.join(f'{key} {number(value)}' for key, value in found.items())}")
    for reason in evaluation.left_out:
        out.print(f"Left out: {reason}.")
