"""The YAML file of a run: what is read from it, and the one line that a mistake gets."""

import pytest
import yaml

from dllm_kernels import LDLMConfig
from dllm_kernels.training.settings import Settings
from tests.cli.command import message
from tests.training.parts import CONFIG, write_config


def test_the_example_configs_are_read():
    tiny = Settings.read(CONFIG)
    preset = LDLMConfig.preset("tiny", seq_len=8, vocab_size=71, decoder_noise=0.5, encoder="encoder", encoder_layer=-2)
    assert tiny.model == preset and tiny.optimizer.learning_rate == 4e-3 and tiny.data.text == ("text.jsonl",)
    small = Settings.read(CONFIG.parent / "demo.yaml")
    assert small.model.encoder == "sentence-transformers/all-MiniLM-L6-v2" and small.encoder.path.endswith("model")
    assert small.optimizer.betas == (0.9, 0.98) and small.trackers == ("tensorboard",) and small.data.cache_gb == 0


def test_numbers_that_yaml_takes_for_text(tmp_path):
    assert Settings.read(write_config(tmp_path, optimizer__learning_rate="2e-4")).optimizer.learning_rate == 2e-4
    assert Settings.read(write_config(tmp_path, optimizer__clip=1)).optimizer.clip == 1.0
    model = Settings.read(write_config(tmp_path, model__decoder_noise="5e-1", model__schedule_parameter="3e0")).model
    assert (model.decoder_noise, model.schedule_parameter) == (0.5, 3.0)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"stepz": 3}, "unknown key stepz; known keys: output, model, encoder, data, optimizer, recipe, seed, "),
        ({"optimizer__step": 3}, "unknown key optimizer.step; known keys: optimizer.steps, optimizer.batch_size, "),
        ({"model__preset": "huge"}, "unknown preset 'huge'; known presets: open-dllm-35b-a3b, "),
        ({"model__width": 3}, "unknown key model.width; known keys: model.preset, model.dim, "),
        ({"model__3": 3}, "unknown key model.3; known keys: model.preset, "),
        ({"model__preset": ["tiny"]}, "model.preset is ['tiny']; it must be a text"),
        ({"model__decoder_noise": "loud"}, "model.decoder_noise is 'loud'; it must be a number"),
        ({"model__decoder_noise": 10**400}, "model.decoder_noise is 1"),
        ({"model__decoder_noise": -1}, "decoder_noise is -1.0; it must be a finite number of at least 0"),
        ({"model__decoder_noise": float("nan")}, "decoder_noise is nan; it must be a finite number of at least 0"),
        ({"model__schedule_parameter": "0e0"}, "schedule_parameter is 0.0; it must be positive"),
        ({"model__causal": "no"}, "model.causal is 'no'; it must be true or false"),
        ({"model__dim": "64"}, "model.dim is '64'; it must be a whole number"),
        ({"model__sampled_log_snr": [1]}, "model.sampled_log_snr is [1]; it must be a list of 2 values"),
        ({"encoder__layer": "last"}, "encoder.layer is 'last'; it must be a whole number"),
        ({"encoder__path": None}, "encoder.path is None; it must be a text"),
        ({"model__dim": 63}, "dim 63 does not divide into 4 heads"),
        ({"model__preset": "open-dllm-27b"}, "model has ada_ln false; training is of the ldlm architecture, whose "),
        ({"model": 3}, "model must hold the keys of a model's config, or preset and what differs from it"),
        ({"encoder": None}, "encoder must hold keys, and is None"),
        ({"data": {}}, "the key data.windows is missing"),
        ({"optimizer__steps": 0}, "optimizer.steps is 0; it must be at least 1"),
        ({"optimizer__steps": 1.5}, "optimizer.steps is 1.5; it must be a whole number"),
        ({"optimizer__batch_size": True}, "optimizer.batch_size is True; it must be a whole number"),
        ({"optimizer__learning_rate": "fast"}, "optimizer.learning_rate is 'fast'; it must be a number"),
        ({"optimizer__learning_rate": -1}, "optimizer.learning_rate is -1.0; it must be positive and finite"),
        ({"optimizer__learning_rate": float("nan")}, "optimizer.learning_rate is nan; it must be positive and finite"),
        ({"optimizer__betas": [0.9]}, "optimizer.betas is [0.9]; it must be a list of 2 values"),
        ({"optimizer__betas": [0.9, 1.0]}, "optimizer.betas has 1.0; it must be at least 0 and below 1"),
        ({"optimizer__precision": "fp8"}, "optimizer.precision is 'fp8'; it must be one of bf16, fp32"),
        ({"recipe__self_conditioning": 1.5}, "recipe.self_conditioning is 1.5; it must be at least 0 and at most 1"),
        ({"recipe__self_conditioning_noise": -0.1}, "recipe.self_conditioning_noise is -0.1; it must be at least 0"),
        (
            {"model__guidance_range": [0.5, 5], "recipe__self_conditioning": 0},
            "model.guidance_range needs recipe.self_conditioning, since guidance compares with and without it",
        ),
        ({"recipe__mse_decoder_loss": 1}, "recipe.mse_decoder_loss is 1; it must be true or false"),
        ({"recipe__encoder_gradient": 0.0}, "recipe.encoder_warmup_min is 0.01; it must be at most recipe.encoder_gradient"),
        ({"data__held_out": 1}, "data.held_out is 1.0; it must be at least 0 and below 1"),
        ({"data__unit": "word"}, "data.unit is 'word'; it must be one of document, paragraph, line"),
        ({"model__context": False}, "data.prompt_tokens is 4, and the model takes no context"),
        ({"trackers": ["mlflow"]}, "trackers is 'mlflow'; it must be one of tensorboard, wandb"),
        ({"seed": -1}, "seed is -1; it must be at least 0 and below 2^63"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0; it must be at least 1"),
    ],
)
def test_bad_values_get_one_line_and_exit_code_2(tmp_path, changes, expected):
    path = write_config(tmp_path, **changes)
    assert message("train", "--config", path).startswith(f"{path}: {expected}")
    assert not (tmp_path / "out").exists()


def test_bad_files(tmp_path):
    path = tmp_path / "run.yaml"
    assert message("train", "--config", path).endswith(f"No such file or directory: '{path}'")
    path.write_text("output: [\n")
    assert message("train", "--config", path).startswith(f"{path} is not YAML: while parsing")
    path.write_text("- 3\n")
    assert message("train", "--config", path) == f"{path} holds no keys"


def test_bad_parts_get_one_line_and_leave_nothing(tmp_path):
    path = write_config(tmp_path)
    assert message("train", "--config", path) == f"the encoder {tmp_path}/encoder is not a folder, and not a hub id"
    assert message("train", "--config", path, "--device", "cuda:99").startswith("device is cuda")
    assert message("train", "--config", path, "--device", "foo") == "unknown device 'foo'; known devices: cpu, cuda, cuda:N"
    assert message("train", "--config", path, "--resume") == f"{tmp_path}/out holds no checkpoint to go on from"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.yaml"]
    assert yaml.safe_load(path.read_text())["output"] == f"{tmp_path}/out"
