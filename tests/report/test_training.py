"""What docs/training.md shows of the committed training runs, and the bundled model is what configs/demo.yaml makes."""

import json
from pathlib import Path

import yaml

from benchmarks.report import training
from dllm_kernels.model.checkpoint import BUNDLED, open_folder
from dllm_kernels.training.settings import Settings

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"output", "trackers"}
"""Settings that do not change what is trained."""


def test_the_table_and_the_plot_have_every_run():
    text, series = training.summary(), training.plot()["series"]
    assert set(series) == set(training.CURVES)
    for name, (_, lines) in training.runs().items():
        assert f"| {name} |" in text
        assert series["diffusion"][name][-1] == [lines[-1]["step"], lines[-1]["held_out_diffusion"]]


def test_a_resumed_run_has_taken_all_its_parts_took():
    lines = [{"seconds": s} for s in (10.0, 20.0, 5.0, 12.0, 1.0)]
    assert training.seconds(lines) == 20.0 + 12.0 + 1.0


class TestDemo:
    def test_its_run_had_the_settings_of_configs(self):
        told = json.loads(json.dumps(Settings.read(ROOT / "configs" / "demo.yaml").to_dict()))
        ran, lines = training.runs()["ldlm-demo"]
        ran["model"]["sampled_log_snr"] = told["model"]["sampled_log_snr"]
        assert {name: ran[name] for name in told if name not in ELSEWHERE} == {
            name: value for name, value in told.items() if name not in ELSEWHERE
        }
        assert lines[-1]["step"] == ran["optimizer"]["steps"]

    def test_its_config_is_that_of_configs(self):
        config, _ = open_folder(BUNDLED / "ldlm-demo")
        assert config == Settings.read(ROOT / "configs" / "demo.yaml").model

    def test_it_was_trained_in_half_an_hour(self):
        settings, lines = training.runs()["ldlm-demo"]
        assert settings["machine"]["processes"] == 1 and training.seconds(lines) < 1800
        assert lines[-1]["held_out_accuracy"] >= 0.95

    def test_its_data_list_is_checked_by_sums(self):
        told = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
        assert told["data"]["text"] == ["texts.jsonl"] and "SUMS" in (ROOT / "configs" / "demo_texts.py").read_text()
