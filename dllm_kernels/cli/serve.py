"""`dllm-kernels generate --count N | --prompts FILE --output DIR`, and `dllm-kernels serve`."""

import socket
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from dllm_kernels.batch.devices import device_name
from dllm_kernels.batch.job import Job
from dllm_kernels.batch.prompts import Prompts
from dllm_kernels.batch.run import generate
from dllm_kernels.cli.options import DEFAULT_PRESET, Device, DtypeOption, Threads
from dllm_kernels.cli.output import emit, notes, out
from dllm_kernels.inference.encode import PromptLimit, takes_prompts
from dllm_kernels.inference.load import Dtype, source_of
from dllm_kernels.ops.dispatch import BACKENDS
from dllm_kernels.serving.replica import Settings
from dllm_kernels.utils.device import resolve_device
from dllm_kernels.utils.validation import user_input


def generate_files(
    count: int | None,
    prompts: Path | None,
    output: Path | None,
    ray: str | None,
    workers: int | None,
    shard: int | None,
    first_sample: int,
    prompt_len: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """The command; `options` are the job's. Ends with exit code 2 and one line where something does not fit."""
    with user_input():
        if output is None:
            raise ValueError("--count and --prompts make files: --output names their folder")
        if (count is None) == (prompts is None):
            raise ValueError("--output takes either --count or --prompts")
        if prompt_len is not None and prompts is None:
            raise ValueError("--prompt-len belongs to --prompt and --prompts")
        given = options.pop("device")
        # A cluster's driver may have no card: there the device is taken by its name.
        device = device_name(given) if ray else str(resolve_device(given))
        batch = options.pop("batch") or (64 if device.startswith("cuda") else 16)
        threads = options.pop("threads") or 1
        source = count if prompts is None else Prompts(prompts)
        config = source_of(options["model"], torch.bfloat16).config
        read = 0 if prompts is None else PromptLimit(config, prompt_len).most
        job = Job(device=device, batch=batch, threads=threads, prompt_len=read, **options)
        seq_len = config.seq_len if job.seq_len is None else job.seq_len
        columns = TextColumn("samples"), BarColumn(), MofNCompleteColumn(), TokenRate(seq_len), TimeRemainingColumn()
        bar = Progress(*columns, console=notes, speed_estimate_period=600)
        task = bar.add_task("", total=None)

        def told(done: int, of: int) -> None:
            # Not before something is being made: bad input is one line.
            bar.start()
            bar.update(task, completed=done, total=of)

        try:
            summary = generate(
                source, output, job, first_sample=first_sample, shard_size=shard, workers=workers, ray=ray, told=told
            )
        finally:
            if bar.live.is_started:
                bar.stop()
    result = {
        "output": str(output),
        "samples": summary.count,
        "found": summary.found,
        "made": summary.made,
        "workers": summary.workers,
        "seconds": summary.seconds,
        "tokens_per_s": summary.tokens_per_s,
    }
    emit(result, as_json, _show)


def _show(result: dict[str, Any]) -> None:
    out.print(
        f"{result['output']}: {result['samples']:,} samples, {result['made']:,} of them made now by {result['workers']} "
        f"worker{'s' if result['workers'] > 1 else ''} in {result['seconds']:,.1f} s, {result['tokens_per_s']:,.0f} tok/s"
    )


class TokenRate(ProgressColumn):
    """Tokens a second, from samples a second."""

    def __init__(self, seq_len: int):
        super().__init__()
        self._seq_len = seq_len

    def render(self, task) -> Text:
        """The rate, once two shards are done."""
        return Text("" if task.speed is None else f"{task.speed * self._seq_len:,.0f} tok/s")


def serve(
    model: Annotated[
        str, typer.Argument(help="a preset, a checkpoint folder or hub id, or an open-dllm .pt file")
    ] = DEFAULT_PRESET,
    host: Annotated[
        str, typer.Option(help="address to listen on; any but loopback needs a key in DLLM_KERNELS_API_KEY")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    steps: Annotated[str, typer.Option(help="step counts that a request may ask for; the first where it asks for none")] = "10",
    batches: Annotated[str, typer.Option(help="captured batch sizes, each with packed weights of its own")] = "1,8",
    wait_ms: Annotated[float, typer.Option(min=0, help="how long a request waits for others to share a call with")] = 5,
    queue: Annotated[int, typer.Option(min=1, help="samples asked for and not yet answered; more get 429")] = 64,
    deadline: Annotated[float, typer.Option(help="seconds after which a request gets 504")] = 30,
    replicas: Annotated[int, typer.Option(min=1, help="samplers, each on a card or on its CPU threads")] = 1,
    solver: Annotated[str, typer.Option(help="ddim or dpmpp_2m")] = "ddim",
    grid: Annotated[str, typer.Option(help="auto, t, log_snr:START:END, or the times, 1,0.5,0")] = "auto",
    prompt_len: Annotated[
        int | None, typer.Option(min=0, help="longest prompt in tokens, the model's T where not given; 0 takes none")
    ] = None,
    guidance: Annotated[bool, typer.Option("--guidance", help="allow guidance_scale, with samplers of its own")] = False,
    tokenizer: Annotated[str | None, typer.Option(help="folder or hub id; without one text is the tokens' numbers")] = None,
    most_body: Annotated[int, typer.Option(min=1, help="bytes of a request's body")] = 1 << 20,
    dtype: DtypeOption = Dtype.bf16,
    device: Device = None,
    backend: Annotated[str, typer.Option(help=", ".join(BACKENDS))] = "auto",
    threads: Threads = 1,
    ray: Annotated[str, typer.Option(help="local, auto, or a cluster's address")] = "local",
) -> None:
    """Serve OpenAI-compatible completions on Ray Serve; an interrupt answers what was taken, then ends."""
    with user_input():
        try:
            from dllm_kernels.serving.limits import key_digest
            from dllm_kernels.serving.ray_serve import run
        except ImportError as error:
            raise ValueError(f"serve needs more than is installed ({error}): pip install 'dllm-kernels[scale]'") from None
        if prompt_len is None:
            config = source_of(model, torch.bfloat16).config
            prompt_len = PromptLimit(config).most if takes_prompts(config) else 0
        settings = Settings(
            model=model,
            steps=_numbers("steps", steps),
            batches=_numbers("batches", batches),
            solver=solver,
            grid=grid,
            dtype=str(dtype),
            device=device_name(device),
            backend=backend,
            threads=threads,
            tokenizer=tokenizer,
            prompt_len=prompt_len,
            guidance=guidance,
            replicas=replicas,
            wait_s=wait_ms / 1000,
            queue=queue,
            deadline_s=deadline,
            most_body=most_body,
            key_digest=key_digest(host),
        )
        seq_len = settings.check()
        _check_port(host, port)
        run(settings, seq_len, host, port, ray, notes.print)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{name} is {text!r}; it must be whole numbers such as 1,8") from None


def _check_port(host: str, port: int) -> None:
    """Raises ValueError where nobody can listen: Ray Serve would look for a way for minutes."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ValueError(f"cannot listen on {host}:{port}: {error}") from error
