"""Batch generation on Ray, put to the proof: `python -m benchmarks.scale_batch` writes benchmarks/results/scale-batch.json.

Three experiments on this machine, on CPU workers with the preset `tiny`: four workers against one, bit for bit; ten kills of
workers, nodes and drivers at random moments; and what Ray adds to the time of a batch. tests/test_scale_*.py have short forms.
"""

import argparse
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.processes import mark, marked
from dllm_kernels.batch import Job, ParquetFolder, generate
from dllm_kernels.batch import run as batch
from dllm_kernels.batch.ray import connect
from dllm_kernels.batch.ray import run as run_on_ray
from dllm_kernels.batch.shards import Shards
from dllm_kernels.utils.machine import Machine

RESULTS = Path(__file__).parent / "results"


def rows_of(folder: Path) -> list[tuple[int, tuple[int, ...]]]:
    """Every (sample, tokens) in a folder, file by file."""
    tables = (pq.read_table(path) for path in sorted(folder.glob("*.parquet")))
    return [(row["sample"], tuple(row["tokens"])) for table in tables for row in table.to_pylist()]


def same_files(one: Path, two: Path) -> bool:
    """Whether two folders list the same files with the same bytes."""
    names = [sorted(path.name for path in folder.glob("*.parquet")) for folder in (one, two)]
    return names[0] == names[1] and all((one / name).read_bytes() == (two / name).read_bytes() for name in names[0])


def equality(job: Job, count: int, shard: int, folder: Path) -> dict:
    """One worker without Ray and four on Ray."""
    one = generate(count, folder / "one", job, shard_size=shard)
    four = generate(count, folder / "four", job, shard_size=shard, workers=4, ray="local")
    rows = rows_of(folder / "one")
    return {
        "samples": count,
        "shard": shard,
        "files": len(list((folder / "one").glob("*.parquet"))),
        "distinct_samples": len({tokens for _, tokens in rows}),
        "workers": four.workers,
        "rows_equal": rows == rows_of(folder / "four"),
        "files_equal": same_files(folder / "one", folder / "four"),
        "one_worker_s": one.seconds,
        "four_workers_s": four.seconds,
    }


class Run:
    """A cluster of two nodes on this machine, and the command line's driver, which is started again whenever it is killed."""

    def __init__(self, folder: Path, job: Job, count: int, shard: int):
        from ray.cluster_utils import Cluster

        self._mark = mark()
        self.folder, self.starts, self.driver = folder, 0, None
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        self._node = self._cluster.add_node(num_cpus=2)
        options = {"count": count, "output": folder, "shard": shard, "steps": job.steps, "batch": job.batch}
        options |= {
            "seed": job.seed,
            "temperature": job.temperature,
            "device": "cpu",
            "ray": self._cluster.address,
            "workers": 4,
        }
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        self._command = [sys.executable, "-m", "dllm_kernels", "generate", job.model, *words]
        self.start()

    def start(self) -> None:
        """Starts the driver."""
        self.starts += 1
        self.driver = subprocess.Popen(self._command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def files(self) -> int:
        """Shards that are listed."""
        return len(list(self.folder.glob("*.parquet")))

    def kill_worker(self) -> bool:
        """One of our actors, by SIGKILL; False where none lives."""
        mine = marked("MapWorker", self._mark)
        if mine:
            os.kill(random.choice(mine), signal.SIGKILL)
        return bool(mine)

    def kill_node(self) -> bool:
        """The second node with all its processes, by SIGKILL; another joins."""
        self._cluster.remove_node(self._node, allow_graceful=False)
        self._node = self._cluster.add_node(num_cpus=2)
        return True

    def kill_driver(self) -> bool:
        """The driver, by SIGKILL."""
        self.driver.kill()
        self.driver.wait()
        self.start()
        return True

    def finish(self) -> int:
        """Waits for the driver, starting it again where it gave up; its exit code."""
        while True:
            _, error = self.driver.communicate()
            if self.driver.returncode == 0 or self.starts > 20:
                return self.driver.returncode
            print(error.decode()[-2000:], file=sys.stderr)
            self.start()

    def close(self) -> None:
        """Ends the cluster."""
        self._cluster.shutdown()


def kills(job: Job, count: int, shard: int, one: Path, folder: Path, times: int, seed: int) -> dict:
    """`times` kills at random moments; the output against one worker's that nobody killed."""
    random.seed(seed)
    kinds = [("worker", "node", "driver")[i % 3] for i in range(times)]
    random.shuffle(kinds)
    run, events, begin = Run(folder, job, count, shard), [], time.monotonic()
    while kinds and run.files() < -(-count // shard):
        time.sleep(random.uniform(2, 25))
        if run.driver.poll() is not None:
            break
        aside = len(list((folder / ".aside").glob("*"))) if (folder / ".aside").exists() else 0
        event = {"what": kinds[-1], "at_s": round(time.monotonic() - begin, 1), "files": run.files(), "half_written": aside}
        if getattr(run, f"kill_{kinds[-1]}")():
            events.append(event)
            kinds.pop()
            print(event, flush=True)
    code = run.finish()
    run.close()
    rows = rows_of(folder)
    return {
        "seed": seed,
        "kills": events,
        "driver_starts": run.starts,
        "exit_code": code,
        "samples": len(rows),
        "lost": len(set(range(count)) - {sample for sample, _ in rows}),
        "twice": len(rows) - len({sample for sample, _ in rows}),
        "files_equal_to_one_worker": same_files(one, folder),
        "seconds": time.monotonic() - begin,
    }


class Timed(batch.Worker):
    """A worker that notes when it began and ended each shard."""

    def __call__(self, index: int) -> int:
        begin = time.time()
        count = super().__call__(index)
        with open(f"{self._sink.folder}.times", "a") as file:
            file.write(f"{begin} {time.time()}\n")
        return count


class WaitingJob(Job):
    """A job whose batch takes 100 ms in which the host waits, as for a card, and not the cores that Ray's processes use too."""

    def build(self):
        """Makes tokens of zeros."""

        def batch(first: int, count: int, prompts: None) -> dict:
            time.sleep(0.1)
            return {"sample": range(first, first + count), "tokens": np.zeros((count, 64), dtype=np.int32)}

        return batch


def overhead(job: Job, batches: int, shards: int, rounds: int, folder: Path) -> dict:
    """What Ray adds to a batch, with one worker and one without Ray, in turns.

    Two figures. `waiting` is the time between a shard's end and the next one's beginning in the worker, over the time in
    shards, in one and the same run. `added` compares the time a batch with that of the runs without Ray, so it holds what
    Ray's own processes take from the worker too, and whatever else the machine did meanwhile.
    """
    batch.Worker = Timed
    times, waiting = {"here": [], "ray": []}, {"here": [], "ray": []}
    for number in range(rounds):
        for kind, ray in (("here", None), ("ray", "local")):
            sink = folder / f"{kind}{number}"
            generate(shards * batches * job.batch, sink, job, shard_size=batches * job.batch, workers=1, ray=ray)
            spans = [tuple(map(float, line.split())) for line in Path(f"{sink}.times").read_text().splitlines()]
            # The first shard builds the sampler.
            busy = sum(end - begin for begin, end in spans[1:])
            gaps = sum(later[0] - sooner[1] for sooner, later in itertools.pairwise(spans))
            times[kind].append(1000 * (spans[-1][1] - spans[0][1]) / (batches * (shards - 1)))
            waiting[kind].append(gaps / busy)
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    return {
        "batches_a_shard": batches,
        "shards": shards,
        "batch": job.batch,
        "ms_a_batch": times,
        "median_ms": medians,
        "added": medians["ray"] / medians["here"] - 1,
        "waiting": {kind: statistics.median(values) for kind, values in waiting.items()},
    }


class NoWork:
    """A worker whose shards cost nothing, so that what is left is Ray's."""

    job = Job("tiny")

    def __call__(self, index: int) -> int:
        return 1


def limits(folder: Path) -> dict:
    """What one driver, one folder and one list can do, on this machine."""
    connect("local", "cpu", 1, 2)
    ends = [time.monotonic() for _ in run_on_ray(NoWork(), np.arange(4000), 2)]
    sink, shard = ParquetFolder(folder / "sink"), Shards(0, 16_384, 16_384)[0]
    tokens = np.random.default_rng(0).integers(0, 248_320, (16_384, 64), dtype=np.int32)
    begin = time.monotonic()
    sink.write(shard, ({"sample": range(i, i + 64), "tokens": tokens[i : i + 64]} for i in range(0, 16_384, 64)))
    wrote = time.monotonic() - begin
    shards = Shards(0, 10**9, 1000)
    begin = time.monotonic()
    left = shards.pending(shards[i].name for i in range(0, len(shards), 2))
    return {
        "shards_per_s_of_a_driver": (len(ends) - 1) / (ends[-1] - ends[0]),
        "sink_samples": 16_384,
        "sink_s": wrote,
        "sink_bytes_a_token": (sink.folder / shard.name).stat().st_size / tokens.size,
        "listed_names": len(shards) - len(left),
        "listing_s": time.monotonic() - begin,
        "bytes_a_shard": 1 + left.itemsize,
    }


def main() -> None:
    """Runs the experiments and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--only", nargs="*", default=["equality", "kills", "overhead", "limits"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    job = Job("tiny", steps=10, batch=16, temperature=1.0, seed=6)
    path = RESULTS / "scale-batch.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    result |= {"command": "python -m benchmarks.scale_batch", "date": date.today().isoformat()}
    result["machine"] = Machine(torch.device("cpu")).describe()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "equality" in arguments.only:
            result["equality"] = equality(job, arguments.count, 160, folder)
            print(result["equality"])
        if "kills" in arguments.only:
            if not (folder / "one").exists():
                generate(arguments.count, folder / "one", job, shard_size=160)
            assert len(Shards(0, arguments.count, 160).pending(ParquetFolder(folder / "one").listed())) == 0
            result["kills"] = kills(job, arguments.count, 160, folder / "one", folder / "killed", 10, seed=2026)
            print(result["kills"])
        if "overhead" in arguments.only:
            result["overhead"] = overhead(WaitingJob("tiny", batch=8), 32, 5, 3, folder / "waiting")
            print(result["overhead"])
            result["overhead_on_shared_cores"] = overhead(Job("tiny", steps=10, batch=8), 32, 5, 3, folder / "computing")
            print(result["overhead_on_shared_cores"])
        if "limits" in arguments.only:
            result["limits"] = limits(folder)
            print(result["limits"])
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
