"""The command `generate`: a timed generation, the continuations of a prompt, or files."""

import math
import time
from pathlib import Path
from typing import Annotated

import typer

from dllm_kernels.batch.job import CARD_BATCH, CPU_BATCH
from dllm_kernels.batch.run import BATCHES_A_SHARD
from dllm_kernels.cli.generate_files import generate_files
from dllm_kernels.cli.options import DEFAULT_PRESET, AsJson, Device, DtypeOption, Steps, Threads
from dllm_kernels.cli.output import emit, generation, machine_fields, notes, progress_bar, samples, say_tokens_only
from dllm_kernels.inference.checks import checked_call
from dllm_kernels.inference.encode import PromptLimit
from dllm_kernels.inference.load import Loaded, load
from dllm_kernels.inference.options import Dtype, GenerationOptions
from dllm_kernels.inference.pipeline import LDLMPipeline
from dllm_kernels.inference.profile import phase_times
from dllm_kernels.inference.sampler import FusedSampler
from dllm_kernels.inference.weights import RandomModel
from dllm_kernels.model.tokenizer import TextTokenizer
from dllm_kernels.ops.dispatch import BACKENDS
from dllm_kernels.utils.device import elapsed, peak_memory
from dllm_kernels.utils.validation import user_input


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


SeqLen = Annotated[int | None, typer.Option("--seq-len", min=1, help="tokens a sample; the model's, where not given")]
Seed = Annotated[int, typer.Option("--seed", help="64 bits that fix the result")]


def generate(
    model: Annotated[
        str,
        typer.Argument(
            help="a preset (random weights), a checkpoint folder, hub id or bundled model, or an open-dllm .pt file"
        ),
    ] = DEFAULT_PRESET,
    steps: Steps = 10,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help=f"samples generated together; 1, of files {CARD_BATCH} or on a CPU {CPU_BATCH}"),
    ] = None,
    seq_len: SeqLen = None,
    solver: Annotated[str, typer.Option(help="ddim, ddpm or dpmpp_2m")] = "ddim",
    eta: Annotated[float | None, typer.Option(help="noise of ddpm: 0 none, 1 the ancestral sampler, 2 full re-noising")] = None,
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
    shard: Annotated[int | None, typer.Option(min=1, help=f"samples a file; {BATCHES_A_SHARD} batches")] = None,
    as_json: AsJson = False,
) -> None:
    """Generate tokens, twice: the first warms up, the second is timed. With --prompt or, as files, with --output: once."""
    options = GenerationOptions(
        model=model,
        steps=steps,
        batch=batch,
        seq_len=seq_len,
        solver=solver,
        eta=eta,
        grid=grid,
        seed=seed,
        temperature=temperature,
        guidance_scale=guidance_scale,
        dtype=str(dtype),
        device=device,
        backend=backend,
        threads=threads,
        tokenizer=tokenizer,
    )
    of_files = {"output": output, "count": count, "prompts": prompts}
    how = {"ray": ray, "workers": workers, "shard": shard}
    makes_files = any(value is not None for value in of_files.values())
    with user_input():
        asks_how = any(value is not None for value in how.values())
        if prompt is not None and (makes_files or asks_how):
            raise ValueError("--prompt is one text, continued on the screen: --prompts FILE goes with --output")
        if not makes_files and asks_how:
            raise ValueError("--ray, --workers and --shard belong to --output")
        if not makes_files and prompt is None and (prompt_len is not None or guidance_scale != 1):
            raise ValueError("--prompt-len and --guidance-scale belong to --prompt and --prompts")
    if prompt is not None:
        _continue(options, prompt, prompt_len, first_sample, as_json)
    elif makes_files:
        generate_files(options, **of_files, **how, first_sample=first_sample, prompt_len=prompt_len, as_json=as_json)
    else:
        _time(options, first_sample, as_json)


def _continue(options: GenerationOptions, prompt: str, prompt_len: int | None, first_sample: int, as_json: bool) -> None:
    """Continuations of a prompt, as many as the batch."""
    batch = options.batch or 1
    call = _call(options, first_sample) | {"guidance_scale": options.guidance_scale}
    with user_input():
        loaded = load(options)
        limit = PromptLimit(loaded.config, prompt_len)
        limit([prompt])
        tokenizer = loaded.tokenizer or TextTokenizer(loaded.config.encoder)
        sizes = {"batch_size": batch, "context_len": limit.most}
        pipe = LDLMPipeline(loaded.source, tokenizer, **sizes, device=loaded.device, **options.sampler_arguments())
        with notes.status("reading the prompt and packing the weights"):
            found = pipe(prompt, options.steps, num_return_sequences=batch, **call)
    result = _about(loaded) | {"prompt": prompt, "steps": options.steps, "solver": options.solver} | call
    emit(result | {"tokens": found.tokens.tolist(), "text": found.texts}, as_json, samples)


def _time(options: GenerationOptions, first_sample: int, as_json: bool) -> None:
    """Two generations, of which the second is timed."""
    batch, call = options.batch or 1, _call(options, first_sample)
    with user_input():
        checked_call(batch, **call)
        loaded = load(options)
        say_tokens_only(loaded)
        start = time.perf_counter()
        with notes.status("packing the weights"):
            sampler = FusedSampler(loaded.source, options.steps, batch, device=loaded.device, **options.sampler_arguments())
        packing = time.perf_counter() - start
    if loaded.device.type == "cuda":
        sampler(**call)
        seconds, peak = elapsed(lambda: sampler(**call), loaded.device), peak_memory(loaded.device)
        out, phases = phase_times(sampler, **call)
    else:
        with progress_bar(2 * (options.steps + 3)) as advance:
            sampler(**call, progress=advance)
            out, phases = phase_times(sampler, **call, progress=advance)
        seconds, peak = sum(phases.values()), peak_memory(loaded.device)
    tokens = out.tokens.tolist()
    result = {
        **_about(loaded),
        "steps": options.steps,
        "batch": batch,
        "seq_len": sampler.seq_len,
        "solver": options.solver,
        "tokens": tokens,
        "text": loaded.tokenizer and [loaded.tokenizer.text(row) for row in tokens],
        "phases_ms": {phase: 1000 * s for phase, s in phases.items()},
        "total_ms": 1000 * seconds,
        "tokens_per_s": batch * sampler.seq_len / seconds,
        "packing_s": packing,
        "peak_memory_bytes": peak,
        **call,
    }
    emit(result, as_json, generation)


def _call(options: GenerationOptions, first_sample: int) -> dict[str, int | float]:
    """A sampler's call, as it takes it and as it is printed."""
    return {"seed": options.seed, "first_sample": first_sample, "temperature": options.temperature}


def _about(loaded: Loaded) -> dict[str, str | int | None]:
    """What was run, and on what."""
    options = loaded.options
    weights = "random" if isinstance(loaded.source, RandomModel) else "stored"
    machine = machine_fields(loaded.device)
    return {"model": options.model, "weights": weights, **machine, "dtype": options.dtype, "backend": options.backend}
