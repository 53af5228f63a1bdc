"""Batch generation on Ray: how many workers there are and which die changes nothing. Long form: benchmarks/scale_batch.py."""

import os
import signal
import subprocess
import sys
import time

import pytest
import ray

from benchmarks.processes import mark, marked
from dllm_kernels.batch import Job, generate
from tests.batch.test_run import contents, rows

JOB = Job("tiny", steps=2, batch=4, seq_len=16, temperature=1.0, seed=3)
COUNT, SHARD = 150, 6

# One process has the cluster.
pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one worker makes without Ray."""
    folder = tmp_path_factory.mktemp("one")
    generate(COUNT, folder, JOB, shard_size=SHARD)
    return contents(folder)


@pytest.fixture(scope="module", autouse=True)
def actors():
    """Ray on this machine, for the whole module; gives the ids of Ray Data's actors."""
    mine = mark()
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield lambda: marked("MapWorker", mine)
    ray.shutdown()


def test_two_workers_one_of_them_killed(actors, one, tmp_path):
    killed, pids = [], set()

    def told(done, count):
        pids.update(actors())
        if not killed and done >= 5 * SHARD:
            killed.append(actors()[0])
            os.kill(killed[0], signal.SIGKILL)

    summary = generate(COUNT, tmp_path, JOB, shard_size=SHARD, workers=2, ray="local", told=told)
    assert len(killed) == 1 and len(pids) >= 2
    assert summary.workers == 2 and summary.made == COUNT
    assert contents(tmp_path) == one
    assert len({tuple(row["tokens"]) for row in rows(tmp_path)}) == COUNT


def test_what_does_not_fit_in_a_worker_is_one_sentence(tmp_path):
    with pytest.raises(MemoryError, match=r"^the plan .* GB on cpu and .* GB are free$"):
        generate(4, tmp_path / "out", Job("tiny", steps=1, batch=10**9), workers=1, ray="local")


@pytest.mark.parametrize("change", [{"tokenizer": "/nowhere"}, {"backend": "cuda"}, {"device": "foo"}, {"temperature": 1e39}])
def test_what_the_driver_can_see_leaves_nothing(tmp_path, change):
    with pytest.raises(ValueError):
        generate(4, tmp_path / "out", Job("tiny", steps=1, **change), workers=1, ray="local")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere"])
def test_no_cluster_at_an_address(tmp_path, address):
    with pytest.raises(ValueError, match=f"no Ray cluster answers at {address}"):
        generate(3, tmp_path, JOB, ray=address)
    assert not list(tmp_path.iterdir())


def test_a_killed_driver_leaves_whole_files_and_the_next_goes_on(one, tmp_path):
    address = ray.get_runtime_context().gcs_address
    options = {"count": COUNT, "steps": 2, "batch": 4, "seq-len": 16, "temperature": 1, "seed": 3, "shard": SHARD}
    options |= {"device": "cpu", "workers": 2, "ray": address, "output": tmp_path}
    words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    driver = subprocess.Popen([sys.executable, "-m", "dllm_kernels", "generate", "tiny", *words])
    deadline = time.monotonic() + 60
    while len(contents(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    # Its actors die with it, and may end a shard first.
    found = contents(tmp_path)
    assert 3 <= len(found) < len(one) and found.items() <= one.items()
    summary = generate(COUNT, tmp_path, JOB, shard_size=SHARD, workers=2, ray="local")
    assert summary.found >= 3 * SHARD
    assert contents(tmp_path) == one
