"""`generate --count N | --prompts FILE --output DIR`: samples as files."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from dllm_kernels.batch.job import Job
from dllm_kernels.batch.prompts import Prompts
from dllm_kernels.batch.ray import device_of
from dllm_kernels.batch.run import Told, generate
from dllm_kernels.cli.output import emit, notes, out, say_tokens_only
from dllm_kernels.inference.encode import PromptLimit
from dllm_kernels.inference.load import load
from dllm_kernels.inference.options import GenerationOptions
from dllm_kernels.utils.device import resolve_device
from dllm_kernels.utils.validation import user_input


def generate_files(
    options: GenerationOptions,
    count: int | None,
    prompts: str | None,
    output: Path | None,
    ray: str | None,
    workers: int | None,
    shard: int | None,
    first_sample: int,
    prompt_len: int | None,
    as_json: bool,
) -> None:
    """Samples of the options as files; what is not of the options is as the command takes it."""
    with user_input():
        if output is None:
            raise ValueError("--count and --prompts make files: --output names their folder")
        if (count is None) == (prompts is None):
            raise ValueError("--output takes either --count or --prompts")
        if prompt_len is not None and prompts is None:
            raise ValueError("--prompt-len belongs to --prompt and --prompts")
        # A cluster's driver may have no card: there the device is taken by its name.
        device = device_of(options.device) if ray else str(resolve_device(options.device))
        source = count if prompts is None else Prompts(prompts)
        loaded = load(dataclasses.replace(options, device=device), elsewhere=True)
        say_tokens_only(loaded)
        job = Job.of(loaded.options, 0 if prompts is None else PromptLimit(loaded.config, prompt_len).most)
        with _bar(loaded.config.seq_len if job.seq_len is None else job.seq_len) as told:
            summary = generate(
                source, output, job, first_sample=first_sample, shard_size=shard, workers=workers, ray=ray, told=told
            )
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


@contextmanager
def _bar(seq_len: int) -> Iterator[Told]:
    """A bar of samples, which is drawn when it first hears of some: bad input is one line."""
    columns = TextColumn("samples"), BarColumn(), MofNCompleteColumn(), TokenRate(seq_len), TimeRemainingColumn()
    bar = Progress(*columns, console=notes, speed_estimate_period=600)
    task = bar.add_task("", total=None)

    def told(done: int, of: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=of)

    try:
        yield told
    finally:
        if bar.live.is_started:
            bar.stop()


class TokenRate(ProgressColumn):
    """Tokens a second, from samples a second."""

    def __init__(self, seq_len: int):
        super().__init__()
        self._seq_len = seq_len

    def render(self, task) -> Text:
        """The rate, once two shards are done."""
        return Text("" if task.speed is None else f"{task.speed * self._seq_len:,.0f} tok/s")
