"""Saving, loading and converting, and the sentence that each damaged checkpoint gets."""

import json
import os
import pickle

import pytest
import torch

from dllm_kernels import LDLM, FusedSampler, LDLMConfig
from tests.models import randomized
from tests.published import Published

CONFIG = LDLMConfig.preset("tiny", seq_len=5, vocab_size=31)


@pytest.fixture
def folder(tmp_path):
    randomized(CONFIG).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_exact(tmp_path, dtype):
    model = randomized(CONFIG, dtype)
    model.save_pretrained(tmp_path)
    loaded = LDLM.from_pretrained(tmp_path)
    assert loaded.config == CONFIG
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_a_failed_save_leaves_the_old_checkpoint(folder, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr("dllm_kernels.model.checkpoint.save_file", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        randomized(CONFIG, seed=1).save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert LDLM.from_pretrained(folder).config == CONFIG


def load_all(path):
    """Both ways in: the model, and the sampler that packs part by part."""
    yield lambda: LDLM.from_pretrained(path)
    yield lambda: FusedSampler.from_pretrained(path, device="cpu", num_steps=1)


def rewrite(folder, change):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("lm_head.bias"), r"missing lm_head\.bias"),
        (lambda s: s.update({"lm_head.extra": torch.ones(2)}), r"unexpected lm_head\.extra"),
        (
            lambda s: s.update({"lm_head.bias": torch.ones(7)}),
            r"lm_head\.bias has shape \[7\] where the config asks for \[31\]",
        ),
        (lambda s: s["denoiser.positions"].fill_(float("nan")), r"denoiser\.positions holds NaN"),
        (lambda s: s["lm_head.bias"].fill_(float("inf")), r"lm_head\.bias holds NaN or infinity"),
    ],
)
def test_mismatched_weights_name_the_key(folder, change, message):
    rewrite(folder, change)
    for load in load_all(folder):
        with pytest.raises(ValueError, match=message):
            load()


def test_a_truncated_file_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    for load in load_all(folder):
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged or is not a safetensors file"):
            load()


def test_missing_parts_are_named(folder, tmp_path):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        LDLM.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"dim": 64, "wings": 2}))
    with pytest.raises(ValueError, match="unknown fields: wings"):
        LDLM.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"dim": 64}))
    with pytest.raises(ValueError, match="lacks fields: num_heads, seq_len, vocab_size"):
        LDLM.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        LDLM.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        LDLM.from_pretrained(tmp_path / "nowhere")


def test_nan_in_a_live_model_is_named_when_packed():
    model = randomized(CONFIG)
    with torch.no_grad():
        model.token_decoder.layers[0].mlp.up.weight[3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"token_decoder\.layers\.0\.mlp\.up\.weight holds NaN"):
        FusedSampler(model, device="cpu")


class TestOpenDllm:
    published = Published(64, vocab_size=31, seq_len=5, depth=1, decoder_num_layers=1, diffusion_head_depth=1)

    def test_a_file_and_its_dict_are_one_model(self, tmp_path):
        torch.save(self.published.checkpoint(), tmp_path / "x.pt")
        a, b = LDLM.from_open_dllm(tmp_path / "x.pt"), LDLM.from_open_dllm(self.published.checkpoint())
        assert a.config == b.config
        assert all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())

    def test_pytorchs_older_format(self, tmp_path):
        torch.save(self.published.checkpoint(), tmp_path / "x.pt", _use_new_zipfile_serialization=False)
        a, b = LDLM.from_open_dllm(tmp_path / "x.pt"), LDLM.from_open_dllm(self.published.checkpoint())
        assert all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())

    def test_what_is_no_checkpoint(self, tmp_path):
        (tmp_path / "x.pt").write_text("root:x:0:0")
        with pytest.raises(ValueError, match=r"x\.pt is damaged or is not a PyTorch checkpoint: it is neither a zip file nor"):
            LDLM.from_open_dllm(tmp_path / "x.pt")

    def test_every_published_tensor_arrives(self):
        published = self.published.checkpoint()
        count = sum(t.numel() for name, part in published.items() if name != "config" for t in part.values())
        model = LDLM.from_open_dllm(published)
        assert sum(p.numel() for p in model.parameters()) == count

    @pytest.mark.parametrize("seen, schedule", [(False, 2.0), (True, 3.0)])
    def test_the_noise_schedule_follows_proj_in(self, seen, schedule):
        published = Published(64, 31, 5, proj_in=seen, depth=1, decoder_num_layers=1, diffusion_head_depth=1)
        config = LDLM.from_open_dllm(published.checkpoint()).config
        assert (config.noise_schedule, config.schedule_parameter, config.self_conditioning) == ("power", schedule, seen)

    @pytest.mark.parametrize(
        "change, message",
        [
            (lambda c: c.pop("lm_head"), "lacks lm_head"),
            (lambda c: c["config"].pop("dim"), "config lacks dim"),
            (lambda c: c["latent_decoder"].pop("layers.0.1.fn.to_v.weight"), r"lacks layers\.0\.1\.fn\.to_v\.weight"),
            (lambda c: c["diffusion_head"].pop("blocks.0.3.net.0.bias"), r"missing denoiser\.blocks\.0\.mlp\.up\.bias"),
            (lambda c: c["config"].update(dim=128), r"has shape"),
            (lambda c: c["config"].update(dim="64"), "dim is '64'; it must be a whole number"),
            (lambda c: c.update(config=5), "the open-dllm checkpoint's config is a int; it must be a dict"),
            (lambda c: c.update(lm_head=[1]), "the open-dllm checkpoint's lm_head is a list; it must be a dict"),
            (lambda c: c["lm_head"].update(bias=torch.full((31,), float("nan"))), r"lm_head\.bias holds NaN"),
        ],
    )
    def test_damage_is_named(self, change, message):
        checkpoint = self.published.checkpoint()
        checkpoint = {name: dict(part) for name, part in checkpoint.items()}
        change(checkpoint)
        with pytest.raises(ValueError, match=message):
            LDLM.from_open_dllm(checkpoint)

    def test_code_is_not_run(self, tmp_path):
        class Harm:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "harm"),)

        (tmp_path / "x.pt").write_bytes(pickle.dumps(Harm()))
        torch.save({"lm_head": Harm()}, tmp_path / "y.pt")
        for name in ("x.pt", "y.pt"):
            with pytest.raises(ValueError, match=r"(could run code|is damaged)"):
                LDLM.from_open_dllm(tmp_path / name)
        assert not (tmp_path / "harm").exists()

    def test_truncated_and_absent_files_are_named(self, tmp_path):
        torch.save(self.published.checkpoint(), tmp_path / "x.pt")
        (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:-500])
        with pytest.raises(ValueError, match=r"x\.pt is damaged"):
            LDLM.from_open_dllm(tmp_path / "x.pt")
        with pytest.raises(FileNotFoundError, match="is not a file"):
            LDLM.from_open_dllm(tmp_path / "none.pt")
        torch.save([1], tmp_path / "list.pt")
        with pytest.raises(ValueError, match="holds a list"):
            LDLM.from_open_dllm(tmp_path / "list.pt")
