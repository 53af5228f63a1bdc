"""The one line that bad input gets, and what does not get it."""

import pickle
import re
import sys
from pathlib import Path

import pytest
import torch

from tests.cli.command import TINY, message, run
from tests.models import randomized

without_card = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")


class Opens:
    """Pickles as a call that writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "it ran")


class TestBadInput:
    @pytest.mark.parametrize(
        "arguments, expected",
        [
            ("generate nope", "unknown preset 'nope', and no such file or folder; known presets: open-dllm-35b-a3b, "),
            ("bench --preset nope", "unknown preset 'nope'; known presets: open-dllm-35b-a3b, "),
            ("roofline --preset nope", "unknown preset 'nope'; known presets: open-dllm-35b-a3b, "),
            ("generate tiny --steps 0", "Invalid value for '--steps': "),
            ("bench --preset tiny --rounds 0", "Invalid value for '--rounds': "),
            ("generate tiny --steps two", "Invalid value for '--steps': "),
            ("generate tiny --batch 0", "Invalid value for '--batch': "),
            ("generate tiny --threads 0", "Invalid value for '--threads': "),
            ("generate tiny --first-sample -1", "Invalid value for '--first-sample': "),
            ("generate tiny --temperature -1", "Invalid value for '--temperature': "),
            ("generate tiny --temperature nan", "Invalid value for '--temperature': "),
            ("generate tiny --temperature inf", "Invalid value for '--temperature': inf is not a finite number."),
            ("generate tiny --temperature 1e39", "temperature is 1e+39; it must be a finite number of at least 0"),
            ("generate tiny --seed 18446744073709551616", "seed is 18446744073709551616; it must be a whole number from -92"),
            ("generate tiny --batch 2 --first-sample 72057594037927935", "first_sample is 72057594037927935; it must be a wh"),
            ("generate tiny --device cpu --batch 1000000000", "the plan needs about "),
            ("generate tiny --dtype int8", "Invalid value for '--dtype': "),
            ("generate tiny --seq-len 65", "seq_len is 65; this model has 64 latents"),
            ("generate tiny --solver euler", "unknown solver 'euler'; known solvers: ddim, ddpm, dpmpp_2m"),
            ("generate tiny --eta 0.5", "eta is 0.5; solver 'ddim' adds no noise, so it must be 0"),
            ("generate tiny --solver ddpm --eta nan", "eta is nan; it must lie between 0 and 2"),
            ("generate tiny --grid log_snr:a", "grid is 'log_snr:a'; it must be auto, t, log_snr:START:END, or times such as"),
            (
                "generate tiny --grid cosine",
                "grid is 'cosine'; it must be auto, t, log_snr:START:END, or times such as 1,0.5,0",
            ),
            ("generate tiny --steps 3 --grid 1,0", "the grid has 2 times; 3 steps need 4"),
            ("generate tiny --backend metal", "unknown backend 'metal'; known backends: auto, cuda, triton, torch"),
            ("generate tiny --device tpu", "unknown device 'tpu'; known devices: cpu, cuda, cuda:N"),
            ("generate tiny --device meta", "device is meta; it must be cpu, cuda or cuda:N"),
            ("generate ./missing", "./missing is not a folder that holds config.json and model.safetensors, and not a hub id"),
            ("generate missing.pt", "missing.pt is not a file"),
            ("convert missing.pt there", "missing.pt is not a file"),
            ("roofline --card gtx", "unknown card 'gtx'; known cards: h200, rtx5090, this"),
            ("generat", "No such command 'generat'."),
            ("info --colour", "No such option"),
            ("convert", "Missing argument "),
        ],
    )
    def test_arguments(self, arguments, expected):
        assert message(*arguments.split()).startswith(expected)

    @without_card
    @pytest.mark.parametrize("command", ["generate tiny", "bench --preset tiny", "info", "roofline"])
    def test_no_card(self, command):
        said = message(*command.split(), "--device", "cuda")
        assert said.startswith("device is cuda, and PyTorch sees no CUDA card on this machine")

    def test_a_backend_that_cannot_run(self, monkeypatch):
        monkeypatch.setattr("dllm_kernels.ops.dispatch.interpreting", lambda: False)
        said = message("generate", "tiny", "--device", "cpu", "--backend", "triton")
        assert said.startswith("attention cannot run on cpu with backend 'triton': ")

    def test_too_little_memory(self, monkeypatch):
        monkeypatch.setattr("dllm_kernels.inference.sampler.free_memory", lambda device: 10**8)
        monkeypatch.setattr("dllm_kernels.bench.baseline.free_memory", lambda device: 10**8)
        said = message("generate", "--device", "cpu")
        assert re.fullmatch(r"the plan needs about 2\.\d GB on cpu and 0\.1 GB are free", said)
        assert message("bench", "--device", "cpu") == "the model needs 2.8 GB on cpu and 0.1 GB are free"

    def test_a_damaged_checkpoint(self, folder, tmp_path):
        for name in ("config.json", "model.safetensors"):
            (tmp_path / name).write_bytes((folder / name).read_bytes()[:-100])
        assert message("generate", tmp_path).startswith(f"{tmp_path / 'config.json'} is not JSON: ")
        (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
        assert message("generate", tmp_path).startswith(f"{tmp_path / 'model.safetensors'} is damaged or is not a safetensors")
        (tmp_path / "model.safetensors").unlink()
        assert message("generate", tmp_path) == f"{tmp_path} has no model.safetensors"

    def test_weights_that_hold_nan(self, tmp_path):
        model = randomized(TINY)
        model.token_decoder.norm.bias.data[3] = float("nan")
        model.save_pretrained(tmp_path)
        assert message("generate", tmp_path, "--device", "cpu") == "token_decoder.norm.bias holds NaN or infinity"

    @pytest.mark.parametrize("command", [("generate",), ("convert",)])
    def test_a_pickle_that_holds_code(self, tmp_path, command):
        torch.save({"config": Opens(tmp_path / "ran")}, tmp_path / "evil.pt", pickle_module=pickle)
        said = message(*command, tmp_path / "evil.pt", *([tmp_path / "out"] if command == ("convert",) else []))
        assert said.startswith(f"{tmp_path / 'evil.pt'} holds more than tensors and plain values, and is not loaded")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.pt"]

    def test_a_truncated_open_dllm_file(self, published, tmp_path):
        (tmp_path / "short.pt").write_bytes(published.read_bytes()[:5000])
        said = message("convert", tmp_path / "short.pt", tmp_path / "out")
        assert said.startswith(f"{tmp_path / 'short.pt'} is damaged or is not a PyTorch checkpoint: ")

    def test_a_destination_that_cannot_be_written(self, published, tmp_path):
        (tmp_path / "file").write_text("kept")
        for target in (tmp_path / "file", tmp_path / "file" / "model"):
            assert str(tmp_path / "file") in message("convert", published, target, "--force")
        assert (tmp_path / "file").read_text() == "kept"

    def test_the_hub_does_not_have_it(self, monkeypatch):
        from huggingface_hub.errors import LocalEntryNotFoundError

        def fail(*arguments, **options):
            raise LocalEntryNotFoundError("cannot\n\nfind it")

        monkeypatch.setattr("dllm_kernels.model.checkpoint.snapshot_download", fail)
        assert message("generate", "no/such") == "no/such is no folder here, and the hub does not give it: cannot find it"

    def test_a_missing_tokenizer(self, tmp_path):
        pytest.importorskip("transformers")
        assert message("generate", "tiny", "--tokenizer", tmp_path).startswith(f"{tmp_path} gives no tokenizer: ")

    def test_transformers_is_not_installed(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        assert message("generate", "tiny", "--tokenizer", "gpt2").startswith("text needs transformers: pip install ")


class TestWhatIsNotBadInput:
    def test_an_interrupt(self, monkeypatch):
        def interrupt(*arguments, **options):
            raise KeyboardInterrupt

        monkeypatch.setattr("dllm_kernels.cli.generate.phase_times", interrupt)
        assert run("generate", "tiny", "--steps", 1, "--device", "cpu", code=130).stdout == ""

    @pytest.mark.parametrize("error", [ValueError, OSError, KeyError, RuntimeError])
    def test_a_bug_keeps_its_traceback(self, monkeypatch, error):
        def bug(*arguments, **options):
            raise error("a bug")

        monkeypatch.setattr("dllm_kernels.cli.generate.phase_times", bug)
        with pytest.raises(error, match="a bug"):
            run("generate", "tiny", "--steps", 1, "--device", "cpu")

    def test_no_command_is_a_request_for_help(self):
        for arguments in ((), ("--help",)):
            out = run(*arguments).stdout
            assert all(command in out for command in ("generate", "bench", "roofline", "info", "convert"))
