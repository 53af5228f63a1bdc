"""The command `tune`, with times that are made up: what it says, and what it writes."""

import json
from datetime import date

import pytest
import torch

from dllm_kernels.bench import tune as tuning
from dllm_kernels.cli import tune as command
from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.ops.card import Card
from tests.cli.command import run


@pytest.fixture
def card(monkeypatch):
    """A card of 132 multiprocessors, on which the library takes 20 us, a config 5 us and more, and a layer 40 us."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(command, "resolve_device", torch.device)
    monkeypatch.setattr(command, "cuda_unsupported_reason", lambda device: None)
    monkeypatch.setattr(tuning.Card, "of", lambda device: Card(132, 100 * 1024, wgmma=False))
    monkeypatch.setattr(tuning, "max_cluster", lambda device: 8)

    def tune_shape(rows, outputs, width, device, configs):
        yield None, 20.0
        yield from ((config, 5.0 + place) for place, config in enumerate(configs))

    class Chain:
        def __init__(self, *arguments):
            pass

        def streamed(self, configs):
            return 40.0

        def library(self):
            return 55.5

    monkeypatch.setattr(tuning, "tune_shape", tune_shape)
    monkeypatch.setattr(tuning, "LayerChain", Chain)


def test_the_table_and_what_is_said_of_it(card, tmp_path):
    path = tmp_path / "table.json"
    lines = run("tune", "--output", path).stdout.splitlines()
    assert lines[0] == "a layer of width 2048: 40.00 us, with the library's GEMMs 55.50 us"
    assert lines[1].startswith("6144 x 2048: 5.0 us, the fastest config 5.0 us, the library 20.0 us, tiles of ")
    table = json.loads(path.read_text())
    source = {"card": "a card", "date": date.today().isoformat(), "torch": torch.__version__}
    (layer,) = table["layers"]
    assert (
        layer == {"multiprocessors": 132, "wgmma": False, "row_tiles": 1, "dim": 2048, "us": 40.0, "library_us": 55.5} | source
    )
    shapes = tuning.shapes(LDLMConfig.preset("open-dllm-35b-a3b"))
    assert [(entry["n"], entry["k"]) for entry in table["entries"]] == shapes and len(lines) == 1 + len(shapes)
    assert all(entry.items() >= (source | {"multiprocessors": 132, "us": 5.0}).items() for entry in table["entries"])
    run("tune", "--output", path)
    assert json.loads(path.read_text()) == table


def test_shapes_that_no_config_suits_are_left_to_the_rule(card, tmp_path):
    done = run("tune", "--preset", "tiny", "--output", tmp_path / "table.json")
    assert done.stdout == "" and json.loads((tmp_path / "table.json").read_text()) == {"entries": [], "layers": []}
    shapes = tuning.shapes(LDLMConfig.preset("tiny"))
    why = "too small or uneven for a config that fills the card; left to the rule"
    assert done.stderr.splitlines() == [f"{outputs} x {width}: {why}" for outputs, width in shapes]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card can be tuned for")
def test_it_needs_a_card():
    assert run("tune", code=2).stderr.strip() == "dllm-kernels: tuning needs a CUDA card"
