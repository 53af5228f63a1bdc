"""A trillion tokens on a thousand cards that fail: `python -m benchmarks.scale_simulation` writes scale-simulation.json.

A simulation of time, not of the rule: which shards a driver gives out is decided by `Shards.pending` on the names in the
folder, as in a real run. A card's speed and the time to pack its weights are measured (results/ of an H200); how often things
fail is assumed, and far worse than a cluster should be. Workers die within a shard, which leaves it unlisted, or after the
rename and before anyone heard of it; nodes die with their eight cards; a driver dies with all that it knew; and some that were
taken for dead go on and finish their shard while another makes it too.
"""

import heapq
import json
import random
import time
from collections import deque
from datetime import date
from pathlib import Path

import numpy as np

from dllm_kernels.batch.shards import Shards

RESULTS = Path(__file__).parent / "results"
TOKENS, SEQ_LEN, WORKERS, A_NODE, BATCH, BATCHES = 10**12, 64, 1000, 8, 64, 256
HOURS_BETWEEN = {"worker": 10.0, "node": 100.0, "driver": 0.5}
ACTOR_START_S, DRIVER_START_S, UNDEAD, UNHEARD = 30.0, 120.0, 0.1, 0.05


class Folder:
    """Names of files: a rename puts one there, and twice is once."""

    def __init__(self, shards: Shards):
        self._shards, self.renames = shards, np.zeros(len(shards), dtype=np.int32)

    def listed(self):
        """Names, as a real folder gives them."""
        return (self._shards[int(i)].name for i in np.flatnonzero(self.renames))


class Cluster:
    """Workers, their failures and the driver's, on one clock."""

    def __init__(self, shards: Shards, shard_s: float, restart_s: float, seed: int):
        self.shards, self.folder, self.random = shards, Folder(shards), random.Random(seed)
        self._shard_s, self._restart_s = shard_s, restart_s
        self.events: list[tuple[float, int, str, int, int]] = []
        self._number, self.now, self._life = 0, 0.0, 0
        self.counts = dict.fromkeys(("worker", "node", "driver", "undead", "unheard", "skipped", "lost_work"), 0)
        self._holds: list[int | None] = [None] * WORKERS
        self._epoch = [0] * WORKERS
        for kind in HOURS_BETWEEN:
            self._fail_later(kind)
        self._start_driver()

    def run(self) -> float:
        """Until the driver finds nothing pending; gives the seconds."""
        while not self._finished:
            self.now, _, what, who, epoch = heapq.heappop(self.events)
            getattr(self, f"_{what}")(who, epoch)
        return self.now

    def _at(self, delay: float, what: str, who: int = 0, epoch: int = 0) -> None:
        self._number += 1
        heapq.heappush(self.events, (self.now + delay, self._number, what, who, epoch))

    # The driver

    def _start_driver(self) -> None:
        self._todo = deque(self.shards.pending(self.folder.listed()).tolist())
        self._finished = not self._todo
        self._life += 1
        self._waiting: list[int] = []
        for worker in range(WORKERS):
            self._restart(worker)

    def _driver_up(self, who: int, epoch: int) -> None:
        self._start_driver()

    def _restart(self, worker: int) -> None:
        self._epoch[worker] += 1
        self._holds[worker] = None
        self._at(self._restart_s * self.random.uniform(0.8, 1.2), "ready", worker, self._epoch[worker])

    def _ready(self, worker: int, epoch: int) -> None:
        if epoch != self._epoch[worker]:
            return
        while self._todo:
            shard = self._todo.popleft()
            if self.folder.renames[shard]:
                # Worker.__call__ finds the file: it was made by one that nobody heard of.
                self.counts["skipped"] += 1
                continue
            self._holds[worker] = shard
            self._at(self._shard_s * self.random.uniform(0.95, 1.1), "done", worker, epoch)
            return
        self._waiting.append(worker)
        if len(self._waiting) == WORKERS:
            # The run ends by listing the folder.
            self._finished = not len(self.shards.pending(self.folder.listed()))
            assert self._finished

    def _done(self, worker: int, epoch: int) -> None:
        if epoch != self._epoch[worker]:
            return
        self.folder.renames[self._holds[worker]] += 1
        self._holds[worker] = None
        self._ready(worker, epoch)

    # Failures

    def _fail_later(self, kind: str) -> None:
        many = {"worker": WORKERS, "node": WORKERS // A_NODE, "driver": 1}[kind]
        self._at(self.random.expovariate(many / (3600 * HOURS_BETWEEN[kind])), f"{kind}_fails")

    def _lose(self, worker: int) -> None:
        shard = self._holds[worker]
        if shard is not None:
            fate = self.random.random()
            if fate < UNHEARD:
                self.counts["unheard"] += 1
                self.folder.renames[shard] += 1
            elif fate < UNHEARD + UNDEAD:
                self.counts["undead"] += 1
                self._at(self._shard_s * self.random.uniform(0.1, 5), "rises", shard)
            else:
                self.counts["lost_work"] += 1
            self._todo.appendleft(shard)
        if worker in self._waiting:
            self._waiting.remove(worker)
        waiting, self._waiting = self._waiting, []
        self._restart(worker)
        for other in waiting:
            self._ready(other, self._epoch[other])

    def _rises(self, shard: int, epoch: int) -> None:
        self.folder.renames[shard] += 1

    def _worker_fails(self, who: int, epoch: int) -> None:
        self.counts["worker"] += 1
        self._lose(self.random.randrange(WORKERS))
        self._fail_later("worker")

    def _node_fails(self, who: int, epoch: int) -> None:
        self.counts["node"] += 1
        first = A_NODE * self.random.randrange(WORKERS // A_NODE)
        for worker in range(first, first + A_NODE):
            self._lose(worker)
        self._fail_later("node")

    def _driver_fails(self, who: int, epoch: int) -> None:
        self.counts["driver"] += 1
        for worker in range(WORKERS):
            self._lose(worker)
            self._epoch[worker] += 1
        # What the driver knew is gone; its actors die with it.
        self._todo, self._waiting = deque(), []
        self._at(DRIVER_START_S, "driver_up")
        self._fail_later("driver")


def main() -> None:
    """Simulates, checks the folder and writes the file."""
    streamed = json.loads((RESULTS / "2026-11-24-h200-streamed.json").read_text())["generation_of_64"]
    packing = json.loads((RESULTS / "2026-11-23-h200-sampler.json").read_text())["generation"]["pack_s_b1"]
    shard_s = BATCHES * streamed["ms"]["FusedSampler"][1] / 1000
    shards = Shards(0, TOKENS // SEQ_LEN, BATCH * BATCHES)
    begin = time.monotonic()
    cluster = Cluster(shards, shard_s, ACTOR_START_S + packing, seed=6)
    seconds = cluster.run()
    took = time.monotonic() - begin
    listed = list(cluster.folder.listed())
    samples = sum(shards[shards.index(name)].count for name in listed)
    ideal = len(shards) * shard_s / WORKERS
    result = {
        "command": "python -m benchmarks.scale_simulation",
        "date": date.today().isoformat(),
        "assumed": {
            "workers": WORKERS,
            "workers_a_node": A_NODE,
            "hours_between_failures": HOURS_BETWEEN,
            "actor_start_s": ACTOR_START_S,
            "driver_start_s": DRIVER_START_S,
            "undead": UNDEAD,
            "unheard": UNHEARD,
        },
        "measured": {
            "preset": streamed["preset"],
            "steps": streamed["steps"],
            "batch": BATCH,
            "shard_s": shard_s,
            "packing_s": packing,
        },
        "tokens": TOKENS,
        "shards": len(shards),
        "samples_a_shard": shards.size,
        "failures": {kind: cluster.counts[kind] for kind in HOURS_BETWEEN},
        "found_by_the_next": cluster.counts["skipped"],
        "finished_though_taken_for_dead": cluster.counts["undead"],
        "renamed_and_unheard": cluster.counts["unheard"],
        "half_made_and_lost": cluster.counts["lost_work"],
        "made_twice": int((cluster.folder.renames > 1).sum()),
        "pending_at_the_end": len(shards.pending(listed)),
        "samples_listed": samples,
        "samples_lost": TOKENS // SEQ_LEN - samples,
        "names_listed_twice": len(listed) - len(set(listed)),
        "hours": seconds / 3600,
        "hours_without_failures": ideal / 3600,
        "took_s": took,
    }
    print(json.dumps(result, indent=1))
    (RESULTS / "scale-simulation.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
