"""The command `serve`."""

from dataclasses import replace
from typing import Annotated

import typer

from dllm_kernels.batch.ray import device_of
from dllm_kernels.cli.options import DEFAULT_PRESET, Device, DtypeOption, Threads
from dllm_kernels.cli.output import notes, say_tokens_only
from dllm_kernels.inference.encode import PromptLimit, takes_prompts
from dllm_kernels.inference.load import load
from dllm_kernels.inference.options import Dtype
from dllm_kernels.ops.dispatch import BACKENDS
from dllm_kernels.serving.replica import Settings
from dllm_kernels.utils.validation import user_input


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
        settings = Settings(
            model=model,
            steps=_numbers("steps", steps),
            batches=_numbers("batches", batches),
            solver=solver,
            grid=grid,
            dtype=str(dtype),
            device=device_of(device),
            backend=backend,
            threads=threads,
            tokenizer=tokenizer,
            prompt_len=prompt_len or 0,
            guidance=guidance,
            replicas=replicas,
            wait_s=wait_ms / 1000,
            queue=queue,
            deadline_s=deadline,
            most_body=most_body,
            key_digest=key_digest(host),
        )
        loaded = load(settings, elsewhere=True)
        say_tokens_only(loaded)
        if prompt_len is None and takes_prompts(loaded.config):
            settings = replace(settings, prompt_len=PromptLimit(loaded.config).most)
        seq_len = settings.check()
        run(settings, seq_len, host, port, ray, notes.print)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{name} is {text!r}; it must be whole numbers such as 1,8") from None
