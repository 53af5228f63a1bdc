"""8-bit checkpoints: their error, what they load as, the sentence that each damaged one gets; and bundled models."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dllm_kernels import LDLM, FusedSampler, LDLMConfig
from dllm_kernels.model import checkpoint
from dllm_kernels.model.int8 import dequantize, quantize
from tests.cli.command import message, read
from tests.models import randomized

CONFIG = LDLMConfig.preset("tiny", seq_len=5, vocab_size=31)


@pytest.fixture
def folder(tmp_path):
    randomized(CONFIG).save_pretrained(tmp_path / "model", dtype="int8")
    return tmp_path / "model"


def test_the_error_is_at_most_half_a_scale_of_its_channel():
    rows = torch.logspace(-6, 3, 64)[:, None]
    weight = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)) * rows + rows / 2
    stored = quantize({"a.weight": weight})
    assert stored["a.weight"].dtype == torch.int8 and stored["a.weight"].abs().amax(dim=1).eq(127).all()
    assert torch.allclose(stored["a.weight_scale"], weight.abs().amax(dim=1) / 127, rtol=1e-6, atol=0)
    error = (dequantize(stored)["a.weight"] - weight).abs() / stored["a.weight_scale"][:, None]
    assert 0.45 < error.max() < 0.5001


def test_zeros_stay_zeros_and_vectors_stay_exact():
    state = {"a.weight": torch.zeros(3, 4), "a.bias": torch.randn(3)}
    assert all(torch.equal(tensor, state[name]) for name, tensor in dequantize(quantize(state)).items())
    assert dequantize(quantize(state)).keys() == state.keys()
    assert torch.equal(quantize(state)["a.weight_scale"], torch.ones(3))


def test_learned_vectors_have_a_scale_each():
    positions = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 5)[:, None]
    stored = quantize({"positions": positions})
    assert stored["positions"].dtype == torch.int8 and stored["positions_scale"].shape == (1, 5)
    flat = dequantize(quantize({"positions": positions[0]}))["positions"]
    assert torch.equal(dequantize(stored)["positions"], flat[None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_loads_as_its_rounded_float32_self(tmp_path, dtype):
    model = randomized(CONFIG, dtype)
    model.save_pretrained(tmp_path, dtype="int8")
    loaded = LDLM.from_pretrained(tmp_path)
    expected = dequantize(quantize(model.state_dict()))
    assert loaded.config == CONFIG and {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["weight_format"] == "int8-per-channel"


def test_a_stored_sampler_equals_a_live_one(folder):
    options = {"num_steps": 2, "dtype": torch.float32, "device": "cpu"}
    stored, live = FusedSampler.from_pretrained(folder, **options)(), FusedSampler(LDLM.from_pretrained(folder), **options)()
    assert torch.equal(stored.tokens, live.tokens) and torch.equal(stored.latents, live.latents)


def test_a_matrix_takes_a_byte_an_element(folder):
    model = LDLM(CONFIG)
    count = sum(p.numel() for p in model.parameters())
    whole = 4 * count
    size = (folder / "model.safetensors").stat().st_size
    assert count < size < 0.4 * whole


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda s: s.pop("lm_head.weight_scale"), r"lm_head\.weight is 8-bit and has no lm_head\.weight_scale"),
        (lambda s: s.update({"lm_head.weight_scale": torch.ones(30)}), r"lm_head\.weight is 8-bit of shape \[31, 64\] and its"),
        (lambda s: s.update({"lm_head.weight_scale": torch.ones(31).half()}), r"its scale is torch\.float16 \[31\]; a matrix"),
        (lambda s: s.update({"lm_head.bias": torch.ones(31, dtype=torch.int8)}), r"lm_head\.bias is 8-bit and has no lm_head"),
        (lambda s: s.update({"lm_head.weight": torch.ones(31, 64)}), r"lm_head\.weight_scale belongs to no 8-bit tensor"),
        (lambda s: s["lm_head.weight_scale"].fill_(float("nan")), r"lm_head\.weight holds NaN or infinity"),
        (lambda s: s.update({"lm_head.weight": s["lm_head.weight"][:, :60]}), r"lm_head\.weight has shape \[31, 60\] where"),
    ],
)
def test_mismatched_scales_name_the_tensor(folder, change, expected):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    for load in (lambda: LDLM.from_pretrained(folder), lambda: FusedSampler.from_pretrained(folder, device="cpu")):
        with pytest.raises(ValueError, match=expected):
            load()


def test_the_config_says_the_format(folder):
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"weight_format": "int4"}))
    with pytest.raises(ValueError, match=r"weight_format 'int4'; known formats: int8-per-channel"):
        LDLM.from_pretrained(folder)
    del fields["weight_format"]
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"unexpected .*_scale"):
        LDLM.from_pretrained(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json holds a list where a config is an object"):
        LDLM.from_pretrained(folder)


def test_what_cannot_be_saved(tmp_path):
    model = randomized(CONFIG)
    with pytest.raises(ValueError, match="dtype is 'int4'; it must be None, for the weights as they are, or 'int8'"):
        model.save_pretrained(tmp_path, dtype="int4")
    with pytest.raises(ValueError, match="push_to_hub pushes the weights as they are"):
        model.save_pretrained(tmp_path, dtype="int8", push_to_hub=True)
    model.lm_head.weight.data[3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"lm_head\.weight holds NaN or infinity"):
        model.save_pretrained(tmp_path, dtype="int8")
    assert list(tmp_path.iterdir()) == []


class TestBundled:
    def test_a_bundled_model_is_found_by_its_name(self, folder, monkeypatch):
        monkeypatch.setattr(checkpoint, "BUNDLED", folder.parent)
        assert checkpoint.bundled_models() == ["model"]
        assert LDLM.from_pretrained("model").config == CONFIG
        options = {"num_steps": 2, "device": "cpu"}
        tokens = FusedSampler.from_pretrained("model", **options)().tokens
        assert torch.equal(tokens, FusedSampler.from_pretrained(folder, **options)().tokens)
        assert read("generate", "model", "--steps", 2, "--device", "cpu")["tokens"] == tokens.tolist()

    def test_a_folder_comes_before_a_bundled_model_and_that_before_the_hub(self, folder, monkeypatch, tmp_path_factory):
        wanted = []
        monkeypatch.setattr(checkpoint, "snapshot_download", lambda name, **options: wanted.append((name, options)) or folder)
        monkeypatch.setattr(checkpoint, "BUNDLED", folder.parent)
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        assert checkpoint.resolve("model") == folder
        Path("model").mkdir()
        assert checkpoint.resolve("model") == Path("model") and wanted == []
        assert checkpoint.resolve("owner/name", revision="main") == folder
        ((name, options),) = wanted
        assert name == "owner/name" and options["revision"] == "main"
        assert options["allow_patterns"] == [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
        ]

    def test_a_model_that_is_not_there(self, folder, monkeypatch, tmp_path):
        monkeypatch.setattr(checkpoint, "BUNDLED", tmp_path / "nowhere")
        expected = "and not a hub id; models in this package: none"
        with pytest.raises(FileNotFoundError, match=expected):
            LDLM.from_pretrained("absent-demo")
        monkeypatch.setattr(checkpoint, "BUNDLED", folder.parent)
        with pytest.raises(FileNotFoundError, match="models in this package: model"):
            FusedSampler.from_pretrained("absent-demo")
        assert message("generate", "absent-demo").endswith("; models in this package: model")
