"""Signals that stop a run, what may change when it goes on, and the config of the model that it leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dllm_kernels import FusedSampler, LDLMPipeline
from dllm_kernels.inference.encode import PromptLimit
from dllm_kernels.model.checkpoint import open_folder
from dllm_kernels.training.run import Run
from dllm_kernels.training.stopping import Stopped
from tests.training.parts import refusal, save_parts, tiny, write_config

ROOT = Path(__file__).parents[2]
SHORT = {"optimizer__steps": 6, "checkpoint_every": 5, "log_every": 1, "held_out_every": 0}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def short(parts):
    """Six steps in one process, without a signal."""
    Run(tiny(parts, "short", **SHORT), device="cpu").train()
    return parts / "short"


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


class TestStopping:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_saves_a_checkpoint_and_the_resumed_run_has_the_same_weights(self, parts, short, number):
        output = f"stopped-{number}"
        run = Run(tiny(parts, output, **SHORT), device="cpu")
        before = signal.getsignal(number)
        with pytest.raises(Stopped) as stopped:
            run.train(lambda said: os.kill(os.getpid(), number) if run.step == 2 else None)
        folder = parts / output / "checkpoints"
        assert str(stopped.value) == (
            f"stopped by {number.name}: a checkpoint of step 3 is in {folder}; --resume goes on with it"
        )
        assert stopped.value.signal == number and signal.getsignal(number) is before
        assert [path.name for path in folder.iterdir()] == ["step-00000003"]
        Run(tiny(parts, output, **SHORT), resume=True, device="cpu").train()
        expected, found = weights(short), weights(parts / output)
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_the_command_ends_with_128_and_the_signal(self, parts):
        changes = SHORT | {"optimizer__steps": 100_000, "checkpoint_every": 100_000, "held_out_every": 0}
        path = write_config(parts, "command-stopped", **changes)
        running = subprocess.Popen(
            [sys.executable, "-m", "dllm_kernels", "train", "--config", str(path), "--device", "cpu"],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        metrics, deadline = parts / "command-stopped" / "metrics.jsonl", time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text()):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        _, error = running.communicate(timeout=60)
        assert running.returncode == 143 and b"stopped by SIGTERM: a checkpoint of step" in error


class TestResumingElsewhere:
    def test_places_may_change(self, parts, short):
        shutil.copytree(short, parts / "moved")
        moved = tiny(parts, "moved", data__cache=str(parts / "other"), data__cache_gb=1.0, **SHORT)
        assert Run(moved, resume=True, device="cpu").step == 6

    def test_what_may_not_is_named(self, parts, short):
        changed = tiny(parts, "short", optimizer__clip=0.5, data__held_out=0.5, **SHORT)
        names = "data.held_out, optimizer.clip"
        found = refusal(lambda: Run(changed, resume=True, device="cpu"))
        assert found == f"{short} was begun with other settings of {names}; a run goes on as it began"


class TestTheModelsConfig:
    def test_a_relative_encoder_is_seen_from_the_models_folder(self, parts, short, monkeypatch, tmp_path):
        fields = json.loads((short / "model" / "config.json").read_text())
        assert fields["encoder"] == os.path.join("..", "..", "encoder")
        monkeypatch.chdir(tmp_path)
        config, _ = open_folder(short / "model")
        assert config.encoder == str((parts / "encoder").resolve())

    def test_a_model_trained_without_prompts_refuses_them(self, parts, short):
        changes = SHORT | {"optimizer__steps": 1, "data__windows": str(parts / "promptless-windows")}
        settings = tiny(parts, "promptless", data__prompt_tokens=0, **changes)
        Run(settings, device="cpu").train()
        folder = parts / "promptless" / "model"
        sentence = "this model takes no prompt: it was trained without prompts"
        config, _ = open_folder(folder)
        assert refusal(lambda: PromptLimit(config)) == sentence
        assert refusal(lambda: FusedSampler.from_pretrained(folder, num_steps=2, context_len=4, device="cpu")) == sentence
        assert refusal(lambda: LDLMPipeline.from_pretrained(folder, device="cpu")("w4")) == sentence
