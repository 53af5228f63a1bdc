"""The results that docs/scale.md holds show what they must."""

import json

import pytest

from benchmarks.report.pages import RESULTS
from benchmarks.report.scale import rates

BATCH, SERVE, SIMULATION = (json.loads((RESULTS / f"scale-{n}.json").read_text()) for n in ("batch", "serve", "simulation"))


def test_a_rate_is_of_a_card_and_of_the_best_run():
    found = {(rate["source"], rate["batch"]): rate["tokens_per_s"] for rate in rates()}
    streamed = json.loads((RESULTS / "2026-11-24-h200-streamed.json").read_text())
    ms = streamed["generation_of_64"]["ms"]["FusedSampler"][1]
    assert found["2026-11-24-h200-streamed.json", 64] == pytest.approx(64 * 64 / ms * 1000)
    (sweep,) = RESULTS.glob("*-h100-*-sweep-batch-*.json")
    row = next(row for row in json.loads(sweep.read_text())["rows"] if row["case"]["batch"] == 32)
    assert found[sweep.name, 32] == pytest.approx(32 * 64 / row["ms"] * 1000)
    assert all(rate["card"].startswith("NVIDIA") for rate in rates())


def test_four_workers_were_one():
    equality = BATCH["equality"]
    assert (equality["samples"], equality["workers"]) == (10_000, 4) and equality["distinct_samples"] > 9_990
    assert equality["rows_equal"] and equality["files_equal"]


def test_ten_kills_lost_nothing():
    kills = BATCH["kills"]
    assert len(kills["kills"]) == 10 and {kill["what"] for kill in kills["kills"]} == {"worker", "node", "driver"}
    assert (kills["samples"], kills["lost"], kills["twice"], kills["exit_code"]) == (10_000, 0, 0, 0)
    assert kills["files_equal_to_one_worker"] and max(kill["half_written"] for kill in kills["kills"]) > 0


def test_ray_adds_under_a_twentieth():
    overhead = BATCH["overhead"]
    assert 100 <= overhead["median_ms"]["here"] < 110 and overhead["added"] < 0.05
    assert all(BATCH[name]["waiting"]["ray"] < 0.05 for name in ("overhead", "overhead_on_shared_cores"))


def test_the_server_held_its_queue():
    overload = SERVE["overload"]
    assert overload["seconds"] >= 300 and overload["offered_per_s"] == pytest.approx(3 * SERVE["capacity_per_s"])
    assert set(overload["statuses"]) == {"200", "429"} and overload["memory_last_over_first"] < 1.1
    assert set(SERVE["killed"]["statuses"]) <= {"200", "429", "503", "504"} and SERVE["killed"]["new_replicas"] == 1
    assert SERVE["malformed"]["generated"] > 1000 and SERVE["malformed"]["statuses_since_start"]["500"] == 0
    assert SERVE["shutdown_exit_code"] == SERVE["killed"]["exit_code"] == 0


def test_the_simulated_run_lost_nothing():
    assert SIMULATION["pending_at_the_end"] == SIMULATION["samples_lost"] == SIMULATION["names_listed_twice"] == 0
    assert SIMULATION["samples_listed"] == SIMULATION["tokens"] // 64
    assert all(SIMULATION["failures"].values()) and SIMULATION["made_twice"] > 0
