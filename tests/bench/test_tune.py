"""Tuning: which shapes it times, and what it makes of the times. The times themselves need a card."""

import json

import pytest
import torch

from dllm_kernels import LDLM, LDLMConfig
from dllm_kernels.bench import tune as module
from dllm_kernels.bench.tune_layer import LayerChain, layer_shapes, refine
from dllm_kernels.inference.fold import Numerics
from dllm_kernels.inference.pack import PlanOptions, pack_model
from dllm_kernels.inference.weights import LiveModel
from dllm_kernels.model.config import open_dllm_config
from dllm_kernels.ops.card import RTX_5090, Card
from dllm_kernels.ops.linear import config as gemm_config
from dllm_kernels.ops.linear.config import GemmConfig

CPU = torch.device("cpu")
CARD = Card.of(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def test_the_shapes_of_a_preset():
    d = 2048
    expected = [(3 * d, d), (d, d), (4 * d, d), (d, 4 * d), (8 * d, d)]
    assert module.shapes(LDLMConfig.preset("open-dllm-35b-a3b")) == expected


def test_the_shapes_are_those_that_a_plan_asks_for(monkeypatch):
    asked = set()
    monkeypatch.setattr(
        "dllm_kernels.inference.pack.select_config", lambda rows, outputs, width, *_: asked.add((outputs, width))
    )
    mixed = LDLMConfig.preset("tiny", dim=128, hidden_dim=192, latent_dim=96)
    for config in (LDLMConfig.preset("tiny"), mixed, open_dllm_config(64, 101, 16, proj_in=True)):
        asked.clear()
        context = 3 * config.context
        options = PlanOptions(8, 1, Numerics.of(torch.bfloat16, CPU), context_len=context)
        pack_model(config, LiveModel(LDLM(config)), torch.ones(1).double(), options)
        assert asked <= set(module.shapes(config)), asked - set(module.shapes(config))


def test_configs_that_keep_a_card_busy():
    for card in Card(), RTX_5090:
        configs = list(module.busy_configs(64, 8192, 2048, card))
        counts = {-(-8192 // config.tile_n) * config.split_k for config in configs}
        assert len(configs) > 20 and 0.45 * card.multiprocessors <= min(counts) and max(counts) <= 3.1 * card.multiprocessors
        assert {config.wgmma for config in configs} == {card.wgmma}
    assert {config.shared_bytes() > RTX_5090.half_bytes for config in configs} == {True, False}
    assert list(module.busy_configs(64, 192, 64, Card())) == []
    configs = list(module.busy_configs(64, 8192, 2048, Card()))
    assert {config.tile_n for config in configs if 8192 % config.tile_n} == {80, 96, 144, 160}
    # No more than a sixteenth of padding.
    assert {config.tile_n for config in module.busy_configs(64, 1024, 16384, Card())} == {64, 128}


def test_an_entry_holds_the_fastest_config_and_both_times():
    slow, fast = GemmConfig(64, 64, 64, 2, 2, 2, 4), GemmConfig(64, 128, 64, 2, 2, 4, 3)
    made = module.entry(Card(), 65, 512, 256, [(None, 9.876), (slow, 8.0), (fast, 7.004)])
    assert made == {
        "multiprocessors": 132,
        "wgmma": True,
        "row_tiles": 2,
        "n": 512,
        "k": 256,
        "tile_m": 64,
        "tile_n": 128,
        "tile_k": 64,
        "num_warps_m": 2,
        "num_warps_n": 2,
        "split_k": 4,
        "num_stages": 3,
        "input_stages": 4,
        "us": 7.0,
        "fastest_us": 7.0,
        "library_us": 9.88,
    }


def test_an_entry_holds_the_config_that_was_chosen_for_the_layer():
    slow, fast = GemmConfig(64, 64, 64, 2, 2, 2, 4), GemmConfig(64, 128, 64, 2, 2, 4, 3)
    made = module.entry(Card(), 64, 512, 256, [(None, 9.0), (slow, 8.0), (fast, 7.0)], slow)
    assert (made["tile_n"], made["num_warps_n"], made["split_k"], made["num_stages"]) == (64, 2, 2, 4)
    assert (made["us"], made["fastest_us"]) == (8.0, 7.0)


def test_the_fastest_configs():
    configs = [GemmConfig(64, 64, 64, 2, 2, slices, 4) for slices in (1, 2, 3)]
    timed = [(None, 1.0), (configs[0], 8.0), (configs[1], 6.0), (configs[2], 7.0)]
    assert module.fastest(timed, 2) == [configs[1], configs[2]] and module.fastest(timed, 9) == [
        configs[1],
        configs[2],
        configs[0],
    ]


def test_the_fastest_configs_are_not_all_the_same_but_for_their_rings():
    rings = [GemmConfig(64, 256, 32, 1, 8, 2, stages) for stages in range(2, 12)]
    other = GemmConfig(64, 256, 32, 1, 8, 4, 3)
    timed = [(config, float(config.num_stages)) for config in rings] + [(other, 99.0)]
    assert module.fastest(timed, 9) == [*rings[:6], other]


def test_configs_are_chosen_for_each_other():
    """Two configs that are worse alone are better together with the right neighbour; none that gains nothing is taken."""
    configs = {slices: GemmConfig(64, 256, 32, 1, 8, slices, 4) for slices in (1, 2, 3)}
    asked = []

    def time(chosen):
        asked.append(chosen)
        qkv, out = chosen["qkv"].split_k, chosen["out"].split_k
        return {(1, 1): 10.0, (1, 2): 9.0, (1, 3): 9.5, (2, 1): 10.5, (2, 2): 9.2, (2, 3): 8.0}.get((qkv, out), 11.0)

    options = {"qkv": [configs[1], configs[2], configs[3]], "out": [configs[1], configs[2], configs[3]]}
    found, us = refine({"qkv": configs[2], "out": configs[1]}, options, time)
    assert (found["qkv"].split_k, found["out"].split_k, us) == (1, 2, 9.0)
    found, us = refine({"qkv": configs[2], "out": configs[2]}, options | {"qkv": [configs[2]]}, time)
    assert (found["qkv"].split_k, found["out"].split_k, us) == (2, 3, 8.0)
    assert all(set(chosen) == {"qkv", "out"} for chosen in asked)


def test_a_config_that_was_fast_once_is_not_taken():
    configs = [GemmConfig(64, 64, 64, 2, 2, slices, 4) for slices in (1, 2)]
    times = iter([5.0, 4.0, 6.0])
    assert refine({"qkv": configs[0]}, {"qkv": configs}, lambda _: next(times)) == ({"qkv": configs[0]}, 5.0)


def test_an_entry_takes_the_place_of_the_one_for_its_shape():
    one = {"multiprocessors": 132, "row_tiles": 1, "n": 8, "k": 8, "us": 1}
    other = one | {"multiprocessors": 170}
    entries = [one, other]
    keys = ("multiprocessors", "row_tiles", "n", "k")
    module.merge(entries, one | {"us": 2}, keys)
    module.merge(entries, one | {"k": 16}, keys)
    assert [e["us"] for e in entries] == [2, 1, 1]
    assert [(e["multiprocessors"], e["k"]) for e in entries] == [(132, 8), (170, 8), (132, 16)]


def test_every_entry_of_the_table_says_where_it_is_from():
    table = json.loads(gemm_config.TABLE.read_text())
    assert table["entries"] and table["layers"]
    for entry in table["entries"] + table["layers"]:
        assert entry["card"] and entry["date"] and entry["torch"] and entry["us"] > 0 and entry["library_us"] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: nothing was timed")
def test_the_times_of_a_small_shape():
    configs = list(module.busy_configs(64, 2048, 1024, RTX_5090))[:2] + list(module.busy_configs(64, 2048, 1024, CARD))[-1:]
    timed = dict(module.tune_shape(64, 2048, 1024, torch.device("cuda"), configs))
    assert len(timed) == 4 and all(0.5 < time < 1000 for time in timed.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: nothing was timed")
def test_the_times_of_a_small_layer():
    chain = LayerChain(64, 512, 8, torch.device("cuda"))
    configs = {name: gemm_config.select_config(64, *shape, CARD) for name, shape in layer_shapes(512).items()}
    assert 1 < chain.streamed(configs) < 1000 and 1 < chain.library() < 1000
