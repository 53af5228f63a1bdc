"""The command line: generate, serve, bench, roofline, info, tune, train, convert, evaluate.

Results go to stdout; progress, notes and errors to stderr. Input that does not fit ends with exit code 2 and one line.
"""

import importlib.metadata
import math
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import dllm_kernels
from dllm_kernels import LDLM, FusedSampler, LDLMConfig
from dllm_kernels.bench import roofline
from dllm_kernels.bench.tune import tune as tune_command
from dllm_kernels.cli import output as report
from dllm_kernels.cli.bench import bench as bench_command
from dllm_kernels.cli.errors import OneLineErrors
from dllm_kernels.cli.evaluate import evaluate as evaluate_command
from dllm_kernels.cli.options import DEFAULT_PRESET, AsJson, Batch, Device, DtypeOption, Preset, Steps, Threads
from dllm_kernels.cli.output import emit, notes, progress_bar
from dllm_kernels.cli.serve import generate_files
from dllm_kernels.cli.serve import serve as serve_command
from dllm_kernels.cli.train import train as train_command
from dllm_kernels.inference.encode import PromptLimit
from dllm_kernels.inference.load import Dtype, device_for, grid_of, is_open_dllm, source_of, stored_model, tokenizer_of
from dllm_kernels.inference.pipeline import LDLMPipeline
from dllm_kernels.inference.profile import phase_times
from dllm_kernels.inference.sampler import checked_call
from dllm_kernels.inference.weights import PACKED_MODULES, LiveModel, RandomModel, StoredModel
from dllm_kernels.model.checkpoint import TOKENIZER_FILES
from dllm_kernels.model.ldlm import build_module
from dllm_kernels.model.tokenizer import TextTokenizer
from dllm_kernels.ops import extension
from dllm_kernels.ops.dispatch import BACKENDS, explain
from dllm_kernels.utils.device import device_name, elapsed, memory_size, peak_memory, resolve_device
from dllm_kernels.utils.validation import user_input


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


SeqLen = Annotated[int | None, typer.Option("--seq-len", min=1, help="tokens a sample; the model's, where not given")]
Seed = Annotated[int, typer.Option("--seed", help="64 bits that fix the result")]

app = typer.Typer(cls=OneLineErrors, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.callback(invoke_without_command=True)
def top(context: typer.Context) -> None:
    """Fast inference of latent diffusion language models on one GPU."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def generate(
    model: Annotated[
        str,
        typer.Argument(
            help="a preset (random weights), a checkpoint folder, hub id or bundled model, or an open-dllm .pt file"
        ),
    ] = DEFAULT_PRESET,
    steps: Steps = 10,
    batch: Annotated[int | None, typer.Option(min=1, help="samples generated together; 1, of files 64 or on a CPU 16")] = None,
    seq_len: SeqLen = None,
    solver: Annotated[str, typer.Option(help="ddim, ddpm or dpmpp_2m")] = "ddim",
    eta: Annotated[float | None, typer.Option(help="noise of ddpm; 1 is the ancestral sampler")] = None,
    grid: Annotated[str, typer.Option(help="auto, t, log_snr:START:END, or the times, 1,0.5,0")] = "auto",
    seed: Seed = 0,
    first_sample: Annotated[int, typer.Option(min=0, help="number of the first sample of the seed")] = 0,
    temperature: Annotated[float, typer.Option(min=0, callback=_finite, help="0 takes the most likely token")] = 0.0,
    dtype: DtypeOption = Dtype.bf16,
    device: Device = None,
    backend: Annotated[str, typer.Option(help=", ".join(BACKENDS))] = "auto",
    threads: Threads = None,
    tokenizer: Annotated[str | None, typer.Option(help="folder or hub id; the one beside the weights, where not given")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="make this many samples, as files")] = None,
    prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="make a sample for each: .jsonl, .parquet, a dataset's folder or hub id"),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="the folder of Parquet files; a killed run goes on there")] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="write continuations of this, as many as --batch")] = None,
    prompt_len: Annotated[int | None, typer.Option(min=1, help="longest prompt in tokens; T, where not given")] = None,
    guidance_scale: Annotated[float, typer.Option(callback=_finite, help="of classifier-free guidance by the prompt")] = 1.0,
    ray: Annotated[str | None, typer.Option(help="make the files on Ray: local, auto, or a cluster's address")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="samplers on Ray; as many as the cluster holds")] = None,
    shard: Annotated[int | None, typer.Option(min=1, help="samples a file; 32 batches")] = None,
    as_json: AsJson = False,
) -> None:
    """Generate tokens, twice: the first warms up, the second is timed. With --prompt or, as files, with --output: once."""
    if prompt is not None:
        with user_input():
            if any(option is not None for option in (output, count, prompts, ray, workers, shard)):
                raise ValueError("--prompt is one text, continued on the screen: --prompts FILE goes with --output")
            on, source = device_for(device, backend, threads), source_of(model, dtype.torch)
            options = {"seq_len": seq_len, "solver": solver, "eta": eta, "grid": grid_of(grid), "backend": backend}
            options |= {"dtype": dtype.torch, "device": on}
            limit = PromptLimit(source.config, prompt_len)
            limit([prompt])
            words = tokenizer_of(tokenizer, source) or TextTokenizer(source.config.encoder)
            pipe = LDLMPipeline(source, words, batch_size=batch or 1, context_len=limit.most, **options)
            call = {"seed": seed, "first_sample": first_sample, "temperature": temperature, "guidance_scale": guidance_scale}
            with notes.status("reading the prompt and packing the weights"):
                found = pipe(prompt, steps, num_return_sequences=batch or 1, **call)
        result = {"model": model, "weights": _weights(source), **_where(on), "dtype": dtype, "backend": backend}
        result |= {"prompt": prompt, "steps": steps, "solver": solver, **call}
        return emit(result | {"tokens": found.tokens.tolist(), "text": found.texts}, as_json, report.samples)
    if output is not None or count is not None or prompts is not None:
        job = {"model": model, "steps": steps, "batch": batch, "seq_len": seq_len, "solver": solver, "eta": eta, "grid": grid}
        job |= {"seed": seed, "temperature": temperature, "guidance_scale": guidance_scale, "dtype": str(dtype)}
        job |= {"device": device, "backend": backend, "threads": threads, "tokenizer": tokenizer}
        return generate_files(count, prompts, output, ray, workers, shard, first_sample, prompt_len, as_json, **job)
    batch = batch or 1
    with user_input():
        if ray is not None or workers is not None or shard is not None:
            raise ValueError("--ray, --workers and --shard belong to --output")
        if prompt_len is not None or guidance_scale != 1:
            raise ValueError("--prompt-len and --guidance-scale belong to --prompt and --prompts")
        on = device_for(device, backend, threads)
        checked_call(batch, seed, first_sample, temperature)
        source = source_of(model, dtype.torch)
        words = tokenizer_of(tokenizer, source)
        start = time.perf_counter()
        with notes.status("packing the weights"):
            sampler = FusedSampler(
                source, steps, batch, seq_len, solver, eta, grid_of(grid), backend=backend, dtype=dtype.torch, device=on
            )
        packing = time.perf_counter() - start
    call = {"seed": seed, "first_sample": first_sample, "temperature": temperature}
    if on.type == "cuda":
        sampler(**call)
        seconds, peak = elapsed(lambda: sampler(**call), on), peak_memory(on)
        out, phases = phase_times(sampler, **call)
    else:
        with progress_bar(2 * (steps + 3)) as advance:
            sampler(**call, progress=advance)
            out, phases = phase_times(sampler, **call, progress=advance)
        seconds, peak = sum(phases.values()), peak_memory(on)
    result = {
        "model": model,
        "weights": _weights(source),
        **_where(on),
        "dtype": dtype,
        "backend": backend,
        "steps": steps,
        "batch": batch,
        "seq_len": sampler.seq_len,
        "solver": solver,
        "tokens": out.tokens.tolist(),
        "text": words and [words.text(row) for row in out.tokens.tolist()],
        "phases_ms": {phase: 1000 * s for phase, s in phases.items()},
        "total_ms": 1000 * seconds,
        "tokens_per_s": batch * sampler.seq_len / seconds,
        "packing_s": packing,
        "peak_memory_bytes": peak,
    } | call
    emit(result, as_json, report.generation)


def _weights(source: RandomModel | StoredModel | LiveModel) -> str:
    return "random" if isinstance(source, RandomModel) else "stored"


@app.command("roofline")
def roofline_command(
    preset: Preset = DEFAULT_PRESET,
    steps: Steps = 10,
    batch: Batch = 1,
    dtype: DtypeOption = Dtype.bf16,
    card: Annotated[str, typer.Option(help=f"{', '.join(roofline.CARDS)}, or this, which is measured")] = "this",
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Bytes, operations and the least time of a generation on a card."""
    with user_input():
        config = LDLMConfig.preset(preset)
        if card != "this" and card not in roofline.CARDS:
            raise ValueError(f"unknown card {card!r}; known cards: {', '.join(roofline.CARDS)}, this")
        on = resolve_device("cpu") if card != "this" else device_for(device, "auto", None)
    if card == "this":
        with notes.status("measuring this machine"):
            reached = roofline.this_card(on, dtype.torch)
    else:
        reached = roofline.CARDS[card]
    with torch.device("meta"):
        parts = {name: build_module(name, config) for name in PACKED_MODULES}
    variants = {
        name: roofline.work(config, parts, steps, batch, folded) for name, folded in (("folded", True), ("as_written", False))
    }
    floor = roofline.floor(variants["folded"], reached, dtype.torch)
    rate = reached.rates.get(dtype.torch)
    result = {
        "preset": preset,
        "steps": steps,
        "batch": batch,
        "seq_len": config.seq_len,
        "dtype": dtype,
        "card": {
            "name": reached.name,
            "bytes_per_s": reached.bandwidth,
            "flops": rate,
            "provenance": reached.provenance,
        },
        **{
            variant: {
                "bytes": sum(row.weights for row in rows) * dtype.torch.itemsize,
                "operations": sum(row.operations for row in rows),
                "parts": {
                    row.part: {"bytes": row.weights * dtype.torch.itemsize, "operations": row.operations} for row in rows
                },
            }
            for variant, rows in variants.items()
        },
        "bandwidth_ms": 1000 * floor.bandwidth,
        "arithmetic_ms": None if floor.arithmetic is None else 1000 * floor.arithmetic,
        "floor_ms": 1000 * floor.seconds,
        "tokens_per_s": batch * config.seq_len / floor.seconds,
    }
    emit(result, as_json, report.roofline)


@app.command()
def info(
    device: Device = None,
    kernels: Annotated[bool, typer.Option("--kernels", help="what the compiler made of each CUDA kernel instead")] = False,
    as_json: AsJson = False,
) -> None:
    """What the machine is, what is installed, and which implementation serves each op, and why."""
    with user_input():
        if kernels:
            from dllm_kernels.bench.machine_code import built  # Triton's wheel has the disassembler

            emit({"kernels": [kernel.summary() for kernel in built()]}, as_json, report.compiled_kernels)
            return
        on = device_for(device, "auto", None)
    try:
        built, reason = list(extension.architectures()), None
    except RuntimeError as error:
        built, reason = [], str(error)
    result = {
        **_where(on),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(on))) if on.type == "cuda" else None,
        "memory_bytes": memory_size(on),
        "dllm_kernels": dllm_kernels.__version__,
        "python": platform.python_version(),
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "cuda_kernels": built,
        "cuda_kernels_unsupported_reason": reason,
        "ops": [dict(zip(("op", "backend", "why"), row, strict=True)) for row in explain(on)],
    }
    emit(result, as_json, report.information)


app.command("bench")(bench_command)
app.command("tune")(tune_command)
app.command("serve")(serve_command)
app.command("evaluate")(evaluate_command)
app.command("train")(train_command)


@app.command()
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


def _where(device: torch.device) -> dict[str, Any]:
    return {
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "torch": torch.__version__,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """The entry point `dllm-kernels`."""
    app()
