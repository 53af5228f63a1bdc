"""Batch generation: any number of samples to files, by any number of workers, killed and taken up again at any moment."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dllm_kernels.batch.job import Generator, Job
from dllm_kernels.batch.prompts import STRIDE, Prompts
from dllm_kernels.batch.ray import check_device, connect
from dllm_kernels.batch.ray import run as run_on_ray
from dllm_kernels.batch.shards import Shard, Shards
from dllm_kernels.batch.sink import ParquetFolder

BATCHES_A_SHARD = 32
"""Where no shard size is given. What a kill loses is at most a shard a worker, and what Ray costs is paid once a shard."""

Told = Callable[[int, int], None]
"""Called with (samples done, samples in all) when the job begins and whenever a shard is whole."""


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        count: samples of the job.
        found: of those, how many were there before.
        made: how many this run saw made.
        seq_len: tokens a sample.
        seconds: from the beginning of the workers' building to the last shard's end.
        workers: how many there were.
    """

    count: int
    found: int
    made: int
    seq_len: int
    seconds: float
    workers: int

    @property
    def tokens_per_s(self) -> float:
        """Tokens made a second."""
        return self.made * self.seq_len / self.seconds


def generate(
    source: int | Prompts,
    sink: str | Path | ParquetFolder,
    job: Job,
    *,
    first_sample: int = 0,
    shard_size: int | None = None,
    workers: int | None = None,
    ray: str | None = None,
    told: Told = lambda done, count: None,
) -> Summary:
    """Makes samples first_sample to first_sample + count - 1 of the job's seed, whatever of them is not there yet.

    The output does not depend on the workers, their number, their order, or on how often they were killed: sample k depends
    on the job and on k. Memory does not grow with the count, but for nine bytes a shard in the process that calls this.

    Args:
        source: how many samples, or a prompt for each.
        sink: the folder, on a file system that all workers see.
        first_sample: k of the first sample.
        shard_size: samples a file; None for 32 batches.
        workers: how many samplers run at once, each on a card or on the job's CPU threads; None for one without Ray, and for
            as many as the cluster holds with it.
        ray: None to run in this process, "local" to start Ray on this machine, "auto" for the cluster that this machine
            belongs to, or a cluster's address.
        told: hears of the progress.

    Raises:
        ValueError, FileNotFoundError: an option or a prompt does not fit, or the folder belongs to another job; nothing was
            written.
        MemoryError: the job needs more than there is; without Ray nothing was written.
    """
    if ray is None and workers not in (None, 1):
        raise ValueError(f"{workers} workers need Ray: ray='local' (--ray local) starts it on this machine")
    prompted = isinstance(source, Prompts)
    if prompted != (job.prompt_len > 0):
        raise ValueError("prompts need a job with prompt_len of at least 1, and a prompt_len needs prompts")
    sink = sink if isinstance(sink, ParquetFolder) else ParquetFolder(sink)
    seq_len = job.check()
    if ray is not None:
        check_device(job.device)
    shards = Shards(first_sample, source.count if prompted else source, shard_size or BATCHES_A_SHARD * job.batch)
    manifest = {"job": "dllm-kernels generate 1", "first_sample": shards.first, "count": shards.count, "shard": shards.size}
    worker = Worker(job, source if prompted else None, shards, sink)
    claimed = sink.claimed
    if prompted and not claimed:
        _check_prompts(source, job)
    if ray is None:
        workers, run = 1, _run_here
    else:
        room = connect(ray, job.device, job.threads, workers)
        workers, run = workers or room, run_on_ray
    start = time.monotonic()
    if ray is None and not claimed:
        # What only building finds, such as too little memory, leaves no folder either.
        worker.prepare()
    sink.claim(manifest | job.manifest() | {"prompts": source.digest if prompted else None})
    todo = shards.pending(sink.listed())
    found = shards.count - shards.samples(todo)
    told(found, shards.count)
    done = found
    if len(todo):
        for count in run(worker, todo, workers):
            done += count
            told(done, shards.count)
    left = shards.pending(sink.listed())
    if len(left):
        raise RuntimeError(f"{len(left)} shards were said to be done and are missing, first {shards[int(left[0])].name}")
    sink.sweep()
    return Summary(shards.count, found, done - found, seq_len, time.monotonic() - start, workers)


def _check_prompts(prompts: Prompts, job: Job) -> None:
    """Reads all prompts once, before anything is made of them: a job that stopped at one would have to begin anew."""
    limit = job.prompt_limit()
    for first in range(0, prompts.count, STRIDE):
        limit(prompts.read(first, min(STRIDE, prompts.count - first)), lambda i, first=first: prompts.place(first + i))


def _run_here(worker: "Worker", todo: np.ndarray, workers: int) -> Iterator[int]:
    return (worker(int(index)) for index in todo)


class Worker:
    """Makes shards, one at a time, with a sampler that it builds at the first; a plain value until then."""

    def __init__(self, job: Job, prompts: Prompts | None, shards: Shards, sink: ParquetFolder):
        self.job, self._prompts, self._shards, self._sink = job, prompts, shards, sink
        self._generator: Generator | None = None

    def prepare(self) -> None:
        """Builds the sampler, where there is none yet."""
        self._generator = self._generator or self.job.build()

    def __call__(self, index: int) -> int:
        """Makes shard `index` unless it is there; gives its number of samples."""
        shard = self._shards[index]
        if not self._sink.has(shard):
            self.prepare()
            self._sink.write(shard, self._rows(shard))
        return shard.count

    def _rows(self, shard: Shard) -> Iterator[dict[str, Any]]:
        prompts = None
        if self._prompts is not None:
            prompts = self._prompts.read(shard.first - self._shards.first, shard.count)
        for first, count in shard.batches(self.job.batch):
            offset = first - shard.first
            yield self._generator(first, count, None if prompts is None else prompts[offset : offset + count])
