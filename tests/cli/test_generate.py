"""The command `generate`: a timed generation. Prompts are in tests/serving/test_text.py, files in tests/batch."""

import json
import shutil
import sys

import pytest
import torch

from dllm_kernels import LDLM, FusedSampler, LDLMConfig
from dllm_kernels.inference.weights import RandomModel
from tests.cli.command import read, run


def test_json():
    options = ("--steps", 3, "--batch", 2, "--seq-len", 7, "--seed", 9, "--first-sample", 4, "--temperature", 0.8)
    found = read("generate", "tiny", *options, "--solver", "ddpm", "--eta", 0.5, "--dtype", "fp32", "--device", "cpu")
    source = RandomModel(LDLMConfig.preset("tiny"), dtype=torch.float32)
    sampler = FusedSampler(source, 3, 2, 7, "ddpm", 0.5, dtype=torch.float32, device="cpu")
    assert found["tokens"] == sampler(seed=9, first_sample=4, temperature=0.8).tokens.tolist()
    assert found["weights"] == "random" and found["text"] is None and found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
    assert list(found["phases_ms"]) == ["noise", "denoise", "decode", "lm_head"]
    assert all(ms > 0 for ms in found["phases_ms"].values())
    assert found["total_ms"] == pytest.approx(sum(found["phases_ms"].values()), rel=1e-9)
    assert found["tokens_per_s"] == pytest.approx(2 * 7 / found["total_ms"] * 1000, rel=1e-9)
    assert found["packing_s"] > 0 and 10**8 < found["peak_memory_bytes"] < 10**11


@pytest.mark.parametrize(
    "text, grid", [("t", "t"), ("1,0.6,0.1,0", [1, 0.6, 0.1, 0]), ("log_snr:-4:3.5", ("log_snr", -4.0, 3.5))]
)
def test_grid(folder, text, grid):
    found = read("generate", folder, "--steps", 3, "--grid", text, "--dtype", "fp64", "--device", "cpu")
    sampler = FusedSampler.from_pretrained(folder, num_steps=3, grid=grid, dtype=torch.float64, device="cpu")
    assert found["tokens"] == sampler().tokens.tolist()


def test_a_checkpoint_folder(folder):
    result = run("generate", folder, "--steps", 2, "--seed", 3, "--batch", 2, "--first-sample", 5, "--device", "cpu")
    tokens = FusedSampler.from_pretrained(folder, num_steps=2, batch_size=2, device="cpu")(3, 5).tokens.tolist()
    lines = result.stdout.splitlines()
    assert lines[:2] == [f"sample {5 + i}: {' '.join(map(str, row))}" for i, row in enumerate(tokens)]
    assert "random" not in result.stdout
    assert all(phase in result.stdout for phase in ("noise", "denoise (2 steps)", "decode", "lm_head", "total", "tok/s"))
    assert "the second of two generations is timed" in " ".join(result.stdout.split())
    assert "peak memory" in result.stdout
    # The bar is told of noise, two steps, decode and lm_head, twice.
    assert "10/10" in result.stderr


def test_an_open_dllm_file(published):
    found = read("generate", published, "--steps", 2, "--dtype", "fp32", "--device", "cpu")
    sampler = FusedSampler(LDLM.from_open_dllm(published), 2, dtype=torch.float32, device="cpu")
    assert found["tokens"] == sampler().tokens.tolist() and found["weights"] == "stored"


def test_random_weights_are_said():
    assert "The weights are random, so the tokens carry no meaning." in run("generate", "tiny", "--steps", 1).stdout


def test_text(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(101)}, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    options = ("generate", folder, "--steps", 1, "--tokenizer", tmp_path, "--device", "cpu")
    found = read(*options)
    assert found["text"] == [" ".join(f"w{token}" for token in found["tokens"][0])]
    assert run(*options).stdout.splitlines()[0] == f"sample 0: {found['text'][0]}"


@pytest.mark.parametrize("files", [False, True])
def test_a_tokenizer_that_cannot_be_read_here(folder, tmp_path, monkeypatch, files):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    more = ("--count", 1, "--output", tmp_path / "out") if files else ()
    result = run("generate", tmp_path / "model", "--steps", 1, "--device", "cpu", "--json", *more)
    assert result.stderr.splitlines()[0] == "Tokens only: text needs transformers: pip install 'dllm-kernels[text]'"
    assert result.stderr.count("Tokens only") == 1 and json.loads(result.stdout).get("text") is None


def test_threads():
    before = torch.get_num_threads()
    try:
        assert read("generate", "tiny", "--steps", 1, "--threads", 3, "--device", "cpu")["threads"] == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
