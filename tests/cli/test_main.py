"""The command line: what its commands do, print and write."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dllm_kernels import LDLM, FusedSampler, LDLMConfig, __version__
from dllm_kernels.inference.weights import RandomModel
from dllm_kernels.model.int8 import dequantize, quantize
from dllm_kernels.model.tokenizer import TextTokenizer
from dllm_kernels.ops.dispatch import explain
from tests.cli.command import TINY, message, read, run, save_ours, save_published
from tests.evaluation.words import words_tokenizer
from tests.models import randomized

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_ours(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return save_published(tmp_path_factory.mktemp("published") / "untrained.pt")


class TestGenerate:
    def test_json(self):
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
    def test_grid(self, folder, text, grid):
        found = read("generate", folder, "--steps", 3, "--grid", text, "--dtype", "fp64", "--device", "cpu")
        sampler = FusedSampler.from_pretrained(folder, num_steps=3, grid=grid, dtype=torch.float64, device="cpu")
        assert found["tokens"] == sampler().tokens.tolist()

    def test_a_checkpoint_folder(self, folder):
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

    def test_an_open_dllm_file(self, published):
        found = read("generate", published, "--steps", 2, "--dtype", "fp32", "--device", "cpu")
        sampler = FusedSampler(LDLM.from_open_dllm(published), 2, dtype=torch.float32, device="cpu")
        assert found["tokens"] == sampler().tokens.tolist() and found["weights"] == "stored"

    def test_random_weights_are_said(self):
        assert "The weights are random, so the tokens carry no meaning." in run("generate", "tiny", "--steps", 1).stdout

    def test_text(self, folder, tmp_path):
        transformers = pytest.importorskip("transformers")
        from tokenizers import Tokenizer, models

        words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(101)}, unk_token="w0"))
        transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
        options = ("generate", folder, "--steps", 1, "--tokenizer", tmp_path, "--device", "cpu")
        found = read(*options)
        assert found["text"] == [" ".join(f"w{token}" for token in found["tokens"][0])]
        assert run(*options).stdout.splitlines()[0] == f"sample 0: {found['text'][0]}"

    @pytest.mark.parametrize("files", [False, True])
    def test_a_tokenizer_that_cannot_be_read_here(self, folder, tmp_path, monkeypatch, files):
        shutil.copytree(folder, tmp_path / "model")
        (tmp_path / "model" / "tokenizer.json").write_text("{}")
        monkeypatch.setitem(sys.modules, "transformers", None)
        more = ("--count", 1, "--output", tmp_path / "out") if files else ()
        result = run("generate", tmp_path / "model", "--steps", 1, "--device", "cpu", "--json", *more)
        assert result.stderr.splitlines()[0] == "Tokens only: text needs transformers: pip install 'dllm-kernels[text]'"
        assert result.stderr.count("Tokens only") == 1 and json.loads(result.stdout).get("text") is None

    def test_threads(self):
        before = torch.get_num_threads()
        try:
            assert read("generate", "tiny", "--steps", 1, "--threads", 3, "--device", "cpu")["threads"] == 3
            assert torch.get_num_threads() == 3
        finally:
            torch.set_num_threads(before)


class TestRoofline:
    def test_json(self):
        found = read("roofline", "--preset", "open-dllm-35b-a3b", "--steps", 10, "--dtype", "bf16", "--card", "h200")
        size = 2 * (571 * 2048**2 + 248_320 * 2048)
        assert found["folded"]["bytes"] == size
        assert found["as_written"]["bytes"] == size + 2 * (15 * 2048**2 + 10 * 2048)
        assert sum(part["bytes"] for part in found["folded"]["parts"].values()) == size
        assert sum(part["operations"] for part in found["folded"]["parts"].values()) == found["folded"]["operations"]
        assert found["bandwidth_ms"] == found["floor_ms"] == pytest.approx(size / 4.55e9, rel=1e-12)
        assert found["arithmetic_ms"] == pytest.approx(found["folded"]["operations"] / 720e9, rel=1e-12)
        assert found["tokens_per_s"] == pytest.approx(64 / found["floor_ms"] * 1000, rel=1e-12)

    def test_a_large_batch_is_bound_by_arithmetic(self):
        one, many = (read("roofline", "--card", "rtx5090", "--batch", b) for b in (1, 64))
        assert many["bandwidth_ms"] == one["bandwidth_ms"] == one["floor_ms"]
        assert many["floor_ms"] == many["arithmetic_ms"] == pytest.approx(64 * one["arithmetic_ms"], rel=1e-12)
        assert one["card"]["provenance"].startswith("published, not measured here")

    def test_a_dtype_without_a_rate(self):
        found = read("roofline", "--card", "h200", "--dtype", "fp32")
        assert found["arithmetic_ms"] is None and found["card"]["flops"] is None
        assert found["floor_ms"] == found["bandwidth_ms"]
        text = run("roofline", "--card", "h200", "--dtype", "fp32").stdout
        assert "no figure for this dtype's arithmetic" in text and "by arithmetic unknown" in " ".join(text.split())

    def test_this_machine_is_measured(self, monkeypatch):
        monkeypatch.setattr("dllm_kernels.bench.roofline.measure_bandwidth", lambda device: 2e9)
        monkeypatch.setattr("dllm_kernels.bench.roofline.measure_product", lambda device, dtype: 1e9)
        found = read("roofline", "--preset", "tiny", "--device", "cpu")
        assert found["bandwidth_ms"] == pytest.approx(found["folded"]["bytes"] / 2e6, rel=1e-12)
        assert found["arithmetic_ms"] == pytest.approx(found["folded"]["operations"] / 1e6, rel=1e-12)
        assert found["card"]["provenance"].startswith("measured now") and "float32" in found["card"]["provenance"]

    def test_table(self):
        out = run("roofline", "--card", "h200").stdout
        assert "5.807" in out and "5.933" in out and "floor 1.276 ms, 50,146 tok/s" in out


class TestInfo:
    def test_json(self):
        found = read("info", "--device", "cpu")
        assert [(row["op"], row["backend"], row["why"]) for row in found["ops"]] == explain(CPU)
        assert {row["op"] for row in found["ops"]} >= {"attention", "denoise_update", "linear", "lm_head", "modulate"}
        assert found["dllm_kernels"] == __version__ and found["torch"] == torch.__version__
        assert found["capability"] is None and found["memory_bytes"] > 10**8
        assert bool(found["cuda_kernels"]) == (found["cuda_kernels_unsupported_reason"] is None)

    @pytest.mark.parametrize("built", [("sm_90a", "sm_120a"), None])
    def test_the_compiled_kernels(self, monkeypatch, built):
        def architectures():
            if built is None:
                raise RuntimeError("installed without its CUDA kernels")
            return built

        monkeypatch.setattr("dllm_kernels.ops.extension.architectures", architectures)
        found, text = read("info", "--device", "cpu"), run("info", "--device", "cpu").stdout
        assert found["cuda_kernels"] == list(built or ())
        assert f"CUDA kernels: {'sm_90a, sm_120a' if built else 'installed without its CUDA kernels'}" in text

    def test_table(self):
        out = run("info", "--device", "cpu").stdout
        assert f"torch {torch.__version__}" in out
        for op, backend, _ in explain(CPU):
            assert any(op in line and backend in line for line in out.splitlines())


class TestConvert:
    def test_round_trip(self, published, tmp_path):
        target = tmp_path / "new" / "model"
        out = run("convert", published, target).stdout
        expected, found = LDLM.from_open_dllm(published), LDLM.from_pretrained(target)
        assert found.config == expected.config
        assert all(torch.equal(t, found.state_dict()[name]) for name, t in expected.state_dict().items())
        assert {p.name for p in target.iterdir()} >= {"config.json", "model.safetensors"}
        assert [p.name for p in target.parent.iterdir()] == ["model"]
        assert out.startswith(f"{target}: ") and "width 64" in out

    @pytest.mark.parametrize("full", [False, True])
    def test_a_folder_in_8_bits_with_its_tokenizer(self, folder, tmp_path, full):
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

    def test_an_empty_folder_is_filled(self, published, tmp_path):
        run("convert", published, tmp_path)
        assert LDLM.from_pretrained(tmp_path).config.dim == 64

    def test_a_full_folder_needs_force(self, published, tmp_path):
        randomized(TINY).save_pretrained(tmp_path)
        (tmp_path / "mine.txt").write_text("kept")
        before = (tmp_path / "model.safetensors").read_bytes()
        assert message("convert", published, tmp_path) == f"{tmp_path} is not empty; --force replaces the checkpoint in it"
        assert (tmp_path / "model.safetensors").read_bytes() == before
        run("convert", published, tmp_path, "--force")
        assert LDLM.from_pretrained(tmp_path).config == LDLM.from_open_dllm(published).config
        assert (tmp_path / "mine.txt").read_text() == "kept"

    @pytest.mark.parametrize("full", [False, True])
    def test_a_failure_leaves_what_was_there(self, published, tmp_path, monkeypatch, full):
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


class TestProcess:
    """The real thing, in a process of its own."""

    @staticmethod
    def start(program):
        return subprocess.run([sys.executable, *program], capture_output=True, text=True, timeout=120)

    def test_json_is_alone_on_stdout(self):
        done = self.start(["-m", "dllm_kernels", "generate", "tiny", "--steps", "1", "--seq-len", "3", "--json"])
        assert done.returncode == 0 and done.stdout.count("\n") == 1
        assert len(json.loads(done.stdout)["tokens"][0]) == 3

    def test_bad_input(self):
        done = self.start(["-m", "dllm_kernels", "generate", "nope"])
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("dllm-kernels: unknown preset 'nope'") and done.stderr.count("\n") == 1

    def test_its_name_in_a_usage_line(self):
        done = self.start(["-m", "dllm_kernels", "generate", "--help"])
        assert done.returncode == 0
        assert done.stdout.lstrip().startswith("Usage: python -m dllm_kernels generate ")

    def test_the_package_needs_no_command_line(self):
        heavy = ["typer", "rich", "transformers", "dllm_kernels.cli.main", "dllm_kernels.cli.output"]
        done = self.start(["-c", f"import sys, dllm_kernels; print([m for m in {heavy} if m in sys.modules])"])
        assert done.stdout == "[]\n"
