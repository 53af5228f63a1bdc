"""Workers on Ray: its cluster and their devices; and those of a batch, as actors of Ray Data, which feeds them shards."""

import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np

from dllm_kernels.utils.device import resolve_device

TASKS_AHEAD = 4
"""Shards that wait at an actor, so that it never waits for the driver."""

MAX_BLOCKS = 20_000
"""Above this many shards a task of Ray Data holds several, so that the driver's books stay small."""


def device_of(name: str | None) -> str:
    """What a worker runs on: the device that was asked for, otherwise cuda or cpu as this machine has it."""
    return resolve_device(None).type if name is None else name


def check_device(name: str) -> None:
    """Raises the ValueError of a device that Ray cannot give to every worker."""
    if name.startswith("cuda:"):
        raise ValueError(f"device is {name}; Ray chooses each worker's card: it must be cpu or cuda")


def connect(address: str, device: str, threads: int, workers: int | None) -> int:
    """Connects this process to Ray, which it starts here where the address is "local"; gives how many workers fit.

    Args:
        device: "cpu" or "cuda"; a worker takes `threads` CPUs or a card.
        workers: where Ray is started here for a CPU, how many are to fit, whatever the number of cores; None for the cores'.

    Raises:
        ValueError: Ray is not installed, no cluster answers, or no worker fits.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("Ray is not installed: pip install 'dllm-kernels[scale]'") from None
    # The driver's virtual environment is the workers' too; Ray would otherwise look for uv's. It is not to report its use.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if not (ray.is_initialized() and address in ("local", "auto")):
        cpus = None if device != "cpu" or workers is None else max(workers * threads, os.cpu_count())
        try:
            # Ray ends the whole process where nothing listens at an address.
            host, _, port = address.rpartition(":")
            if host and "://" not in address:
                socket.create_connection((host, int(port)), timeout=10).close()
            # Ray's own ports are on every interface; from 2.60 on a local one asks for a token, which ray.init makes.
            here = {"num_cpus": cpus, "include_dashboard": False} if address == "local" else {}
            ray.init(address, logging_level="ERROR", log_to_driver=False, **here)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"no Ray cluster answers at {address}: {error}") from error
    kind, each = ("CPU", threads) if device == "cpu" else ("GPU", 1)
    room = int(ray.cluster_resources().get(kind, 0)) // each
    if room < 1:
        raise ValueError(f"the Ray cluster at {address} has no {kind} for a worker")
    return room


def run(worker: Any, todo: np.ndarray, workers: int) -> Iterator[int]:
    """Has the workers make the shards `todo`; yields the samples of each shard when it is whole."""
    import ray
    import ray.data
    from ray.exceptions import RayTaskError

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    shards = ray.data.from_numpy(list(np.array_split(todo, min(len(todo), MAX_BLOCKS))))
    on_card = worker.job.device != "cpu"
    resources = {"num_gpus": 1} if on_card else {"num_cpus": worker.job.threads}
    counts = shards.map_batches(
        Actor,
        fn_constructor_args=(worker,),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=workers, initial_size=workers, max_tasks_in_flight_per_actor=TASKS_AHEAD
        ),
        **resources,
    )
    try:
        for row in counts.iter_rows():
            yield int(row["samples"])
    except RayTaskError as error:
        cause = error.as_instanceof_cause()
        if isinstance(cause, ValueError | OSError | MemoryError):
            # Ray appends how to have it try again.
            raise type(error.cause)(str(error.cause).partition("\nFailed to apply UDF transform")[0]) from error
        raise


class Actor:
    """A worker as Ray Data calls it."""

    def __init__(self, worker: Any):
        self._worker = worker

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Numbers of shards to their numbers of samples, told one by one."""
        for index in batch["data"]:
            yield {"samples": np.array([self._worker(int(index))])}
