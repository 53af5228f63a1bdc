"""The command `convert`."""

import shutil
from pathlib import Path

import pytest
import torch

from dllm_kernels import LDLM
from dllm_kernels.model.int8 import dequantize, quantize
from dllm_kernels.model.tokenizer import TextTokenizer
from tests.cli.command import TINY, message, read, run
from tests.evaluation.words import words_tokenizer
from tests.models import randomized


def test_round_trip(published, tmp_path):
    target = tmp_path / "new" / "model"
    out = run("convert", published, target).stdout
    expected, found = LDLM.from_open_dllm(published), LDLM.from_pretrained(target)
    assert found.config == expected.config
    assert all(torch.equal(t, found.state_dict()[name]) for name, t in expected.state_dict().items())
    assert {p.name for p in target.iterdir()} >= {"config.json", "model.safetensors"}
    assert [p.name for p in target.parent.iterdir()] == ["model"]
    assert out.startswith(f"{target}: ") and "width 64" in out


@pytest.mark.parametrize("full", [False, True])
def test_a_folder_in_8_bits_with_its_tokenizer(folder, tmp_path, full):
    pytest.importorskip("transformers")
    shutil.copytree(folder, tmp_path / "float")
    words_tokenizer().save_pretrained(tmp_path / "float")
    if full:
        randomized(TINY, seed=1).save_pretrained(tmp_path / "small")
    run("convert", tmp_path / "float", tmp_path / "small", "--int8", *["--force"] * full)
    expected = dequantize(quantize(LDLM.from_pretrained(folder).state_dict()))
    assert all(torch.equal(t, expected[name]) for name, t in LDLM.from_pretrained(tmp_path / "small").state_dict().items())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "small" / name).read_bytes() == (tmp_path / "float" / name).read_bytes()
    found = read("generate", tmp_path / "small", "--steps", 1, "--device", "cpu")
    assert found["text"] == [TextTokenizer(tmp_path / "small").text(found["tokens"][0])]
    run("convert", tmp_path / "small", tmp_path / "small", "--force")
    assert TextTokenizer(tmp_path / "small").text([0, 7, 1]) == "w7"


def test_an_empty_folder_is_filled(published, tmp_path):
    run("convert", published, tmp_path)
    assert LDLM.from_pretrained(tmp_path).config.dim == 64


def test_a_full_folder_needs_force(published, tmp_path):
    randomized(TINY).save_pretrained(tmp_path)
    (tmp_path / "mine.txt").write_text("kept")
    before = (tmp_path / "model.safetensors").read_bytes()
    assert message("convert", published, tmp_path) == f"{tmp_path} is not empty; --force replaces the checkpoint in it"
    assert (tmp_path / "model.safetensors").read_bytes() == before
    run("convert", published, tmp_path, "--force")
    assert LDLM.from_pretrained(tmp_path).config == LDLM.from_open_dllm(published).config
    assert (tmp_path / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize("full", [False, True])
def test_a_failure_leaves_what_was_there(published, tmp_path, monkeypatch, full):
    target = tmp_path / "model"
    if full:
        randomized(TINY).save_pretrained(target)
    before = {path: path.read_bytes() for path in target.rglob("*")} if full else {}

    def fail(tensors, path, **_):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("dllm_kernels.model.checkpoint.save_file", fail)
    assert message("convert", published, target, "--force") == "No space left on device"
    assert {path: path.read_bytes() for path in target.rglob("*")} == before
    assert [p.name for p in tmp_path.iterdir()] == (["model"] if full else [])
