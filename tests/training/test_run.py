"""A run of configs/tiny.yaml on a CPU: what it learns, that a kill changes nothing, and that two processes equal one."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dllm_kernels import LDLM, FusedSampler
from dllm_kernels.model.checkpoint import open_folder
from dllm_kernels.model.encoder import Encoder
from dllm_kernels.training.optimizer import Average, learning_rate
from dllm_kernels.training.recipe import JointTraining
from dllm_kernels.training.run import NotFinite, Run
from dllm_kernels.training.settings import OptimizerSettings, Settings
from tests.cli.command import message
from tests.cli.command import run as command
from tests.training.parts import lines, refusal, save_parts, tiny, write_config

ROOT = Path(__file__).parents[2]
SHORT = {"optimizer__steps": 12, "optimizer__learning_rate": 1e-3, "checkpoint_every": 5, "log_every": 1, "held_out_every": 6}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def trained(parts):
    """configs/tiny.yaml trained to its end, through the command line."""
    path = write_config(parts, "trained")
    result = command("train", "--config", path, "--device", "cpu")
    return Settings.read(path), lines(parts / "trained"), result


@pytest.fixture(scope="module")
def short(parts):
    """The first 12 steps in one process."""
    Run(tiny(parts, "short", trackers=["tensorboard"], **SHORT), device="cpu").train()
    return parts / "short"


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def process(*arguments, processes=1, module="dllm_kernels"):
    """The command line in processes of its own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "0"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    start = [sys.executable] if processes == 1 else launcher
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*start, "-m", module, *map(str, arguments)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def test_only_the_step_is_compiled_and_once(parts, monkeypatch):
    """Held-out batches of another size, and what the export measures, would each cost a compilation and then dynamic shapes."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    monkeypatch.setattr(JointTraining, "compile", lambda joint, mode: torch.nn.Module.compile(joint, backend=backend))
    torch.compiler.reset()
    changes = {"optimizer__steps": 3, "checkpoint_every": 1, "held_out_every": 1, "optimizer__compile": True}
    run = Run(tiny(parts, "compiled", **SHORT | changes), device="cpu")
    run._update()
    first = len(compiled)
    run.train()
    assert len(compiled) == first > 0


class TestTraining:
    def test_reaches_the_stated_loss(self, trained):
        """L at most 0.6 from 6.7 at first, and 93% of held-out tokens reconstructed, in 400 steps (0.32 to 0.35 and 98% to
        100% for the seeds 0 to 2)."""
        _, metrics, _ = trained
        first, last = metrics[0], metrics[-1]
        assert last["step"] == 400 and first["loss"] > 5
        assert last["loss"] < 0.6 and last["diffusion"] < 0.2 and last["hidden"] < 0.25 and last["words"] < 0.2
        assert last["held_out_accuracy"] > 0.93 and last["held_out_diffusion"] < 0.2
        assert first["encoder_share"] < 0.03 and last["encoder_share"] == 1

    def test_says_what_it_was_told_and_where_it_ran(self, trained, parts):
        settings, _, _ = trained
        told = json.loads((parts / "trained" / "settings.json").read_text())
        machine = told.pop("machine")
        assert told == json.loads(json.dumps(settings.to_dict()))
        assert machine["device"] == "cpu" and machine["processes"] == 1 and machine["torch"] == torch.__version__

    def test_the_model_is_the_averaged_weights_with_measured_statistics(self, trained, parts):
        settings, _, result = trained
        folder = parts / "trained" / "model"
        model = LDLM.from_pretrained(folder)
        assert model.config == replace(settings.model, encoder=str((parts / "encoder").resolve()))
        assert f"{folder}: step 400" in result.stdout
        encoder = Encoder.for_model(model.config, "cpu")
        texts = ["w9 w67 w5 w13 w30 w14 w36 w55", "w20 w8 w60 w20 w10 w5"]
        hidden, mask = encoder.encode(texts)
        latents = model.encode(
            torch.nn.functional.pad(hidden, (0, 0, 0, 8 - hidden.shape[1])),
            torch.nn.functional.pad(mask, (0, 8 - mask.shape[1])),
        )
        tokens = model.logits(model.decode(latents)).argmax(-1)
        assert encoder.tokenizer.decode(tokens[0]) == texts[0]
        assert encoder.tokenizer.decode(tokens[1, :6]) == texts[1]
        # Standardised by what was measured, latents have mean 0 and deviation 1 over the data.
        rows = (parts / "text.jsonl").read_text().splitlines()[:80]
        words = [row.split('"')[3].split()[:8] for row in rows]
        hidden, mask = encoder.encode([" ".join(row) for row in words])
        latents = model.encode(hidden, mask)
        assert abs(latents.mean()) < 0.1 and abs(latents.std() - 1) < 0.15

    def test_the_model_is_the_average_and_no_other(self, parts):
        run = Run(tiny(parts, "averaged", **SHORT), device="cpu")
        run.train()
        found = weights(parts / "averaged")
        average = {name.removeprefix("model."): tensor for name, tensor in run.average.weights.items()}
        assert average.keys() <= found.keys() and all(torch.equal(found[name], average[name]) for name in average)
        own = dict(run.joint.model.named_parameters())
        assert not any(torch.equal(average[name], own[name]) for name in average)

    def test_held_out_losses_between_lines(self, parts):
        Run(tiny(parts, "between", **SHORT | {"log_every": 4}), device="cpu").train()
        found = {line["step"]: line for line in lines(parts / "between")}
        assert sorted(found) == [4, 6, 8, 12] and "held_out_words" in found[12] and "loss" in found[12]
        assert "loss" in found[4] and "held_out_words" in found[6] and "loss" not in found[6]

    def test_samples_follow_the_language(self, trained, parts):
        """Each word allows 3 of 67 successors, 4.5%; four hundred steps teach a denoiser of two layers some of it."""
        sampler = FusedSampler.from_pretrained(
            parts / "trained" / "model", num_steps=50, batch_size=256, dtype=torch.float32, device="cpu"
        )
        tokens = sampler(seed=1).tokens
        pairs = [(a, b) for row in tokens.tolist() for a, b in itertools.pairwise(row) if a > 3 and b > 3]
        allowed = sum((b - 4 - 7 * a) % 67 < 3 for a, b in pairs) / len(pairs)
        assert len(pairs) > 1000 and allowed > 0.07

    def test_the_average_follows_the_weights(self):
        linear = torch.nn.Linear(2, 2)
        average = Average(linear, 0.9)
        start = linear.weight.detach().clone()
        with torch.no_grad():
            linear.weight += 1.0
        average.update(0)
        torch.testing.assert_close(average.weights["weight"], start + 0.9)
        average.update(1000)
        torch.testing.assert_close(average.weights["weight"], start + 0.91)
        with average.applied():
            torch.testing.assert_close(linear.weight.detach(), start + 0.91)
        torch.testing.assert_close(linear.weight.detach(), start + 1.0)

    def test_learning_rate(self):
        settings = OptimizerSettings(steps=101, batch_size=1, learning_rate=1.0, warmup_steps=10, final_share=0.1)
        found = [learning_rate(step, settings) for step in (0, 9, 10, 55, 100)]
        assert found == pytest.approx([0.1, 1.0, 1.0, 0.55, 0.1])


class TestResume:
    def test_a_run_of_an_older_version_goes_on(self, parts, short):
        """Its settings.json lacks the fields that are newer; they have their defaults."""
        shutil.copytree(short, parts / "older")
        path = parts / "older" / "settings.json"
        told = json.loads(path.read_text())
        del told["recipe"]["self_conditioning_noise"], told["model"]["guidance_range"], told["model"]["sampled_guidance"]
        path.write_text(json.dumps(told | {"output": str(parts / "older")}))
        Run(tiny(parts, "older", **SHORT), resume=True, device="cpu")
        told["recipe"]["self_conditioning"] = 0.25
        path.write_text(json.dumps(told | {"output": str(parts / "older")}))
        with pytest.raises(ValueError, match=r"other settings of recipe[.]self_conditioning; a run goes on"):
            Run(tiny(parts, "older", **SHORT), resume=True, device="cpu")

    def test_a_killed_run_ends_with_the_same_weights(self, parts, short):
        """SIGKILL somewhere after the first checkpoint; what is resumed has the weights and metrics of a run that was not."""
        path = write_config(parts, "killed", **SHORT)
        running = process("train", "--config", path, "--device", "cpu")
        checkpoints, deadline = parts / "killed" / "checkpoints", time.monotonic() + 120
        while not (checkpoints / "step-00000005").exists():
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        running.wait()
        running.stderr.close()
        assert not (checkpoints / "step-00000012").exists()
        resumed = Run(Settings.read(path), resume=True, device="cpu")
        assert resumed.step in (5, 10)
        resumed.train()
        expected, found = weights(short), weights(parts / "killed")
        assert expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
        timeless = [
            [{k: v for k, v in line.items() if k not in ("seconds", "windows_per_s")} for line in lines(folder)]
            for folder in (short, parts / "killed")
        ]
        assert timeless[0] == timeless[1] and len(timeless[0]) == 12

    def test_a_kill_between_the_last_checkpoint_and_the_model(self, parts, short, monkeypatch):
        class Killed(BaseException):
            pass

        def export(run):
            raise Killed

        settings = tiny(parts, "at the end", **SHORT | {"checkpoint_every": 100})
        with monkeypatch.context() as patch:
            patch.setattr(Run, "_export", export)
            with pytest.raises(Killed):
                Run(settings, device="cpu").train()
        Run(settings, resume=True, device="cpu").train()
        expected, found = weights(short), weights(parts / "at the end")
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_every_part_of_the_state_is_in_a_checkpoint(self, parts, short):
        """Each part of the state, left out of what is loaded, changes the weights that follow."""
        expected = weights(short)
        for part in ("model", "optimizer", "average", "timesteps"):
            output = f"without-{part}"
            shutil.copytree(short, parts / output)
            shutil.rmtree(parts / output / "checkpoints" / "step-00000012")
            settings = tiny(parts, output, **SHORT)
            (parts / output / "settings.json").write_text(
                (short / "settings.json").read_text().replace('/short"', f'/{output}"')
            )
            run = Run(settings, resume=True, device="cpu")
            assert run.step == 10
            fresh = Run(tiny(parts, f"fresh-{part}", **SHORT), device="cpu")
            state, blank = run._state(), fresh._state()
            if part == "optimizer":
                for entry in run.optimizer.optimizer.state.values():
                    entry["exp_avg"].zero_()
            else:
                for name, tensor in state[part].items():
                    tensor.copy_(blank[part][name])
            run.train()
            found = weights(parts / output)
            assert any(not torch.equal(found[name], expected[name]) for name in expected), part

    def test_a_finished_run_is_said_to_be_finished(self, trained, parts):
        settings, metrics, _ = trained
        result = command("train", "--config", parts / "trained.yaml", "--resume", "--device", "cpu")
        assert " ".join(result.stdout.split()) == f"{parts / 'trained' / 'model'}: step 400, finished already"
        assert lines(settings.output) == metrics

    def test_trackers_get_the_metrics(self, short):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(next(short.glob("**/events*")).parent)).Reload()
        found = {event.step: event.value for event in events.Scalars("diffusion")}
        assert found == pytest.approx({line["step"]: line["diffusion"] for line in lines(short)}, rel=1e-6)

    def test_old_checkpoints_go(self, short):
        assert sorted(path.name for path in (short / "checkpoints").iterdir()) == ["step-00000010", "step-00000012"]


@pytest.mark.parametrize("module", ("dllm_kernels", "tests.training.fsdp_on_cpu"), ids=("ddp", "fsdp2"))
def test_two_processes_equal_one(parts, short, module):
    path = write_config(parts, module, **SHORT)
    running = process("train", "--config", path, "--device", "cpu", processes=2, module=module)
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 0, errors.decode()[-3000:]
    one, two = lines(short), lines(parts / module)
    assert len(one) == len(two) == 12
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "diffusion", "hidden", "words", "gradient_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-5), (a["step"], name)
    assert two[-1]["held_out_words"] == pytest.approx(one[-1]["held_out_words"], rel=1e-5)
    assert one[0]["loss"] > one[-1]["loss"] + 0.1
    # Adam makes much of gradients that are nothing but rounding, so single weights differ by more than their losses do.
    expected, found = weights(short), weights(parts / module)
    difference = sum((found[name] - tensor).square().sum() for name, tensor in expected.items()).sqrt()
    assert difference < 1e-2 * sum(tensor.square().sum() for tensor in expected.values()).sqrt()

    # One process goes on from the two processes' checkpoint.
    shutil.rmtree(parts / module / "checkpoints" / "step-00000012")
    Run(Settings.read(path), resume=True, device="cpu").train()
    resumed = lines(parts / module)
    assert [line["step"] for line in resumed] == list(range(1, 13))
    for a, b in zip(one[10:], resumed[10:], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


class TestSwitches:
    """Each part of the recipe, left out of a run, changes what it should from the first step, and nothing else."""

    def found(self, parts, key, value):
        output = f"without-{key}"
        changes = SHORT | {"optimizer__steps": 3, "held_out_every": 0, f"recipe__{key}": value}
        Run(tiny(parts, output, **changes), device="cpu").train()
        return lines(parts / output)

    def test_mse_decoder_loss(self, parts, short):
        without, whole = self.found(parts, "mse_decoder_loss", False), lines(short)
        assert without[0]["loss"] == pytest.approx(without[0]["diffusion"] + without[0]["words"], rel=1e-6)
        assert without[0]["diffusion"] == whole[0]["diffusion"] and without[0]["hidden"] != whole[0]["hidden"]

    def test_encoder_warmup(self, parts, short):
        without, whole = self.found(parts, "encoder_warmup", 0.0), lines(short)
        assert [line["encoder_share"] for line in without] == [1.0] * 3 and whole[0]["encoder_share"] < 0.02
        assert without[0]["loss"] == whole[0]["loss"] and without[2]["loss"] != whole[2]["loss"]

    def test_adaptive_timesteps(self, parts, short):
        without, whole = self.found(parts, "adaptive_timesteps", False), lines(short)
        # Before the first losses the adaptive times are uniform too.
        assert without[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-5)
        assert abs(without[2]["diffusion"] / whole[2]["diffusion"] - 1) > 1e-6

    def test_self_conditioning(self, parts, short):
        without, whole = self.found(parts, "self_conditioning", 0.0), lines(short)
        # A new denoiser predicts zeros, so its first prediction changes nothing yet.
        assert without[0]["loss"] == whole[0]["loss"] and without[2]["diffusion"] != whole[2]["diffusion"]

    def test_self_conditioning_noise(self, parts, short):
        noised, whole = self.found(parts, "self_conditioning_noise", 0.5), lines(short)
        # Drawn with the step's other noise, so the values of all change, and nothing of their distribution.
        assert noised[0]["loss"] == pytest.approx(whole[0]["loss"], rel=0.1) and noised[0]["loss"] != whole[0]["loss"]

    def test_guidance(self, parts):
        """The model that a run with the input writes is sampled at the scale of its config."""
        changes = SHORT | {"optimizer__steps": 3, "model__guidance_range": [0.5, 4.0], "model__sampled_guidance": 2.0}
        result = Run(tiny(parts, "guided", **changes), device="cpu").train()
        model = LDLM.from_pretrained(result["model"])
        assert model.config.guidance_range == (0.5, 4.0) and model.config.sampled_guidance == 2.0
        assert model.denoiser.guidance_embedding.down.weight.any()
        options = {"num_steps": 2, "dtype": torch.float32, "device": "cpu"}
        guided = FusedSampler(model, **options)(seed=1)
        other = dataclasses.replace(model.config, sampled_guidance=0.5)
        model.config = model.denoiser.config = other
        assert not torch.equal(FusedSampler(model, **options)(seed=1).latents, guided.latents)


class TestBadInput:
    def test_a_run_is_not_written_over(self, parts, short):
        before = (short / "metrics.jsonl").read_text()
        found = refusal(lambda: Run(tiny(parts, "short", **SHORT), device="cpu"))
        assert found == f"{short} holds a run; --resume goes on with it, or name another output"
        changed = SHORT | {"optimizer__learning_rate": 2e-3}
        found = refusal(lambda: Run(tiny(parts, "short", **changed), resume=True, device="cpu"))
        assert found == f"{short} was begun with other settings of optimizer.learning_rate; a run goes on as it began"
        found = refusal(lambda: Run(tiny(parts, "none"), resume=True, device="cpu"))
        assert found == f"{parts / 'none'} holds no checkpoint to go on from"
        assert (short / "metrics.jsonl").read_text() == before

    def test_an_encoder_that_does_not_fit(self, parts):
        found = refusal(lambda: Run(tiny(parts, "wide", model__hidden_dim=32), device="cpu"))
        assert "has hidden states of width 64, and the model's hidden_dim is 32" in found
        found = refusal(lambda: Run(tiny(parts, "words", model__vocab_size=70), device="cpu"))
        assert "has 71 tokens, and the model's vocab_size is 70" in found

    def test_a_loss_that_is_not_finite_ends_the_run(self, parts):
        settings = tiny(parts, "infinite", **(SHORT | {"optimizer__learning_rate": 1e30, "optimizer__warmup_steps": 0}))
        with pytest.raises(NotFinite, match=r"^the loss is (nan|inf) by step \d+; the newest checkpoint is from before$"):
            Run(settings, device="cpu").train()
        assert not (parts / "infinite" / "model").exists()

    def test_no_checkpoint_holds_what_is_not_finite(self, parts):
        changes = {"optimizer__learning_rate": 1e30, "optimizer__warmup_steps": 0, "log_every": 100}
        with pytest.raises(NotFinite, match=r"^the gradient's norm is nan at step 5; the newest checkpoint is from before$"):
            Run(tiny(parts, "late", **SHORT | changes), device="cpu").train()
        assert not (parts / "late" / "checkpoints").exists()

    def test_windows_of_an_encoder_that_does_not_fit(self, parts):
        said = message("train", "--prepare", "--config", write_config(parts, "few words", model__vocab_size=70))
        assert "has 71 tokens, and the model's vocab_size is 70" in said

    def test_the_model_loads_strictly(self, short):
        config, stored = open_folder(short / "model")
        assert config.encoder_layer == -2 and "statistics.latent_std" in stored.names
