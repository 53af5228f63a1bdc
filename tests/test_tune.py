"""dllm-kernels tune: which shapes it times, and what it makes of the times. The times themselves need a card."""

import json

import pytest
import torch

from dllm_kernels import LDLMConfig
from dllm_kernels import tune as module
from dllm_kernels.kernels import stream
from dllm_kernels.kernels.stream import StreamConfig
from tests.command import run


def test_the_shapes_of_a_preset():
    d = 2048
    expected = [(3 * d, d), (d, d), (4 * d, d), (d, 4 * d), (8 * d, d)]
    assert module.shapes(LDLMConfig.preset("open-dllm-35b-a3b")) == expected


def test_an_entry_holds_the_fastest_cut_and_both_times():
    slow, fast = StreamConfig((8, 1, 2, 8, 1), 2, 4), StreamConfig((4, 2, 2, 4, 2), 4, 3)
    made = module.entry(132, 65, 512, 256, [(None, 9.876), (slow, 8.0), (fast, 7.004)])
    assert made == {
        "multiprocessors": 132,
        "row_tiles": 2,
        "outputs": 512,
        "width": 256,
        "tile": [4, 2, 2, 4, 2],
        "slices": 4,
        "stages": 3,
        "us": 7.0,
        "library_us": 9.88,
    }


def test_an_entry_takes_the_place_of_the_one_for_its_shape():
    one = {"multiprocessors": 132, "row_tiles": 1, "outputs": 8, "width": 8, "us": 1}
    other = one | {"multiprocessors": 170}
    entries = [one, other]
    module.merge(entries, one | {"us": 2})
    module.merge(entries, one | {"width": 16})
    assert [e["us"] for e in entries] == [2, 1, 1]
    assert [(e["multiprocessors"], e["width"]) for e in entries] == [(132, 8), (170, 8), (132, 16)]


def test_every_entry_of_the_table_says_where_it_is_from():
    entries = json.loads(stream.TABLE.read_text())["entries"]
    assert entries
    for entry in entries:
        assert entry["card"] and entry["date"] and entry["torch"] and entry["us"] > 0 and entry["library_us"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card can be tuned for")
def test_tuning_needs_a_card():
    done = run("tune", code=2)
    assert done.stderr.strip() == "dllm-kernels: tuning needs a CUDA card"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: nothing was timed")
def test_the_times_of_a_small_shape():
    timed = dict(module.tune_shape(64, 512, 512, torch.device("cuda")))
    assert timed.pop(None) > 0.5 and all(time > 0.5 for time in timed.values())
