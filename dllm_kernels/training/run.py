"""A training run: everything that is prepared, and the loop."""

import json
import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.model.encoder import Encoder
from dllm_kernels.model.layers import sdpa
from dllm_kernels.model.ldlm import LDLM
from dllm_kernels.ops.attention.op import attention
from dllm_kernels.training.checkpoints import Checkpoints
from dllm_kernels.training.data import Order, Source
from dllm_kernels.training.hidden import Cache, moments
from dllm_kernels.training.metrics import Mean, Metrics
from dllm_kernels.training.optimizer import Average, adamw, learning_rate
from dllm_kernels.training.randomness import HELD_OUT_STEP, draw
from dllm_kernels.training.recipe import JointTraining, encoder_share, global_sum, processes
from dllm_kernels.training.settings import Settings
from dllm_kernels.training.stopping import Stopped, stop_signals
from dllm_kernels.training.timesteps import AdaptiveTimesteps
from dllm_kernels.training.windows import windows
from dllm_kernels.utils.device import resolve_device
from dllm_kernels.utils.machine import Machine

MEASURED = 8192
"""Windows over which statistics are measured, at most."""

HELD_OUT_BATCHES = 4
"""Batches of held-out windows that are looked at, at most."""

MAY_CHANGE = {
    *("output", "checkpoint_every", "keep_checkpoints", "log_every", "held_out_every", "trackers"),
    *("data.cache", "data.cache_gb", "data.memory_share"),
}
"""Settings that a resumed run need not share with the one that it goes on with: places, and how often something is done."""

Progress = Callable[[str], None]


class NotFinite(Exception):
    """A loss that is NaN or infinite; the message says when, and what is left."""


class Run:
    """A run, prepared: encoder, windows, hidden states, model, optimizer, and the checkpoint that it goes on from.

    Args:
        settings: what is trained.
        resume: go on from the newest checkpoint in `settings.output`.
        device: "cpu", "cuda" or "cuda:N"; None for a card where there is one. Of several processes each has its own card.
        note: called with what is being prepared.
        log: called with each line of metrics, on the main process.

    Raises:
        ImportError: a package of the extra `train` is not installed.
        ValueError: something does not fit; one sentence. Nothing of an earlier run is touched.
    """

    def __init__(
        self,
        settings: Settings,
        resume: bool = False,
        device: str | None = None,
        note: Progress = lambda text: None,
        log: Callable[[dict[str, Any]], None] = lambda line: None,
    ):
        try:
            from accelerate import Accelerator
        except ImportError:
            raise ImportError("training needs more packages: pip install 'dllm-kernels[train]'") from None
        self.settings, self.output = settings, Path(settings.output)
        on = resolve_device(device)
        if device is not None and on.type == "cuda":
            torch.cuda.set_device(on)
        # Autocast is the step's own (recipe.py), so that one process, DDP and FSDP2 compute alike.
        self.accelerator = Accelerator(
            # Said outright, since without it a launch of several processes on CPUs is taken for one process.
            cpu=on.type == "cpu",
            mixed_precision="no",
            log_with=list(settings.trackers) or None,
            project_dir=self.output,
        )
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self._wait = self.accelerator.wait_for_everyone
        self.checkpoints = Checkpoints(self.output / "checkpoints", settings.keep_checkpoints, self.main, self._wait)
        self._check(resume)
        note("loading the encoder")
        self.encoder = Encoder(settings.encoder.path, settings.encoder.layer, self.device)
        self.encoder.check_fits(settings.model)
        note("cutting the text into windows")
        with self.accelerator.main_process_first():
            parts = windows(settings.data, settings.model.seq_len, settings.model.vocab_size, settings.seed, self.encoder)
        note("hidden states of the windows")
        cache = Cache(Path(settings.data.cache), int(settings.data.cache_gb * 1e9))
        more = self.encoder, settings.data, cache, (self.rank, self.world), self._wait
        sources = [Source(part, *more) for part in parts.values()]
        self.training, self.held_out = sources[0], sources[1] if len(sources[1]) else None
        self.order = Order(len(self.training), settings.seed, self.device)
        note("the model")
        self._build()
        self.step = self._load(self.checkpoints.steps()[-1]) if resume else 0
        self._start(log)

    def train(self, progress: Progress = lambda text: None) -> dict[str, Any]:
        """Trains to the last step; `progress` is called after each with what the last line of metrics said.

        Returns:
            The last line of metrics, with the folder of the model.

        Raises:
            NotFinite: a loss or a gradient was NaN or infinite; the checkpoints before it stay.
            Stopped: SIGTERM or SIGINT came; the last step is in a checkpoint. A second signal ends the process at once.
        """
        with stop_signals() as came:
            return self._train(progress, came)

    def _train(self, progress: Progress, came: list[int]) -> dict[str, Any]:
        settings, mean, begin, first = self.settings, Mean(), time.perf_counter(), self.step
        line, said = {"step": self.step}, ""
        if self.step == settings.optimizer.steps:
            # A kill may have come between the last checkpoint and the model.
            self._export()
        self.joint.train()
        while self.step < settings.optimizer.steps:
            found = self._update()
            mean.add(found)
            self.step += 1
            last = self.step == settings.optimizer.steps
            if self.step % settings.log_every == 0 or last:
                line = {"step": self.step, **mean.take(self._mean_over_processes), **self._rates()}
                seconds = time.perf_counter() - begin
                line |= {"seconds": seconds, "windows_per_s": (self.step - first) * settings.optimizer.batch_size / seconds}
                if not math.isfinite(line["loss"]):
                    raise NotFinite(f"the loss is {line['loss']} by step {self.step}; the newest checkpoint is from before")
                said = f"loss {line['loss']:.4f}"
            if settings.held_out_every and self.held_out and (self.step % settings.held_out_every == 0 or last):
                line = line if line["step"] == self.step else {}
                line |= {f"held_out_{name}": value for name, value in self._look().items()} | {"step": self.step}
            if line["step"] == self.step and self.main:
                self.metrics.write(line)
            stop = 0 if last else self._stop(came)
            if self.step % settings.checkpoint_every == 0 or last or stop:
                # A weight that is not finite gives such gradients, and such a gradient such weights.
                if not math.isfinite(found["gradient_norm"]):
                    norm = float(found["gradient_norm"])
                    raise NotFinite(f"the gradient's norm is {norm} at step {self.step}; the newest checkpoint is from before")
                self.checkpoints.save(self.step, self._state())
                self._export()
            progress(said)
            if stop:
                self.accelerator.end_training()
                kept = f"a checkpoint of step {self.step} is in {self.checkpoints.folder}; --resume goes on with it"
                raise Stopped(f"stopped by {signal.Signals(stop).name}: {kept}", stop)
        self.accelerator.end_training()
        return line | {"model": str(self.output / "model")}

    def _stop(self, came: list[int]) -> int:
        """The signal after which every process stops at this step, or 0."""
        if self.world == 1:
            return came[0] if came else 0
        # Processes hear of a signal at different steps. They agree where they wait for the device anyway.
        if self.step % self.settings.log_every:
            return 0
        heard = torch.zeros(signal.NSIG, device=self.device)
        if came:
            heard[came[0]] = 1
        heard = global_sum(heard)
        return int(heard.argmax()) if heard.any() else 0

    def _check(self, resume: bool) -> None:
        settings, steps = self.settings, self.checkpoints.steps()
        if settings.optimizer.batch_size % self.world:
            raise ValueError(f"optimizer.batch_size {settings.optimizer.batch_size} does not divide by {self.world} processes")
        for tracker in settings.trackers:
            if tracker not in [kind.value for kind in self.accelerator.log_with]:
                raise ValueError(f"the tracker {tracker} is not installed")
        if not resume:
            if steps:
                raise ValueError(f"{self.output} holds a run; --resume goes on with it, or name another output")
            return
        if not steps:
            raise ValueError(f"{self.output} holds no checkpoint to go on from")
        before = _dotted(Settings.recorded(json.loads((self.output / "settings.json").read_text())))
        now = _dotted(json.loads(json.dumps(settings.to_dict())))
        changed = [name for name in now if name not in MAY_CHANGE and now[name] != before.get(name)]
        if changed:
            raise ValueError(f"{self.output} was begun with other settings of {', '.join(changed)}; a run goes on as it began")

    def _build(self) -> None:
        settings = self.settings
        torch.manual_seed(settings.seed)
        # Made on the CPU, so that a seed's first weights do not depend on the device.
        model = LDLM(settings.model, attention if self.device.type == "cuda" else sdpa)
        if settings.model.standardize:
            measured = moments(self.training.hidden, self.training.windows.tokens, min(len(self.training), MEASURED))
            model.statistics.hidden_mean.copy_(measured[0])
            model.statistics.hidden_std.copy_(measured[1])
        joint = JointTraining(model, settings.recipe, settings.optimizer.precision == "bf16").to(self.device)
        if settings.optimizer.compile:
            # One process replays the step as CUDA graphs, since its launches take longer than its kernels; sharded weights
            # move between steps, and a graph would be recorded anew each time.
            joint.compile(mode="reduce-overhead" if self.world == 1 else "default")
        optimizer = adamw(joint, settings.optimizer, self.device)
        self.joint, self.optimizer = self.accelerator.prepare(joint, optimizer)
        self.average = Average(self.joint, settings.optimizer.ema)
        self.timesteps = AdaptiveTimesteps(self.device)

    def _start(self, log: Callable[[dict[str, Any]], None]) -> None:
        self._wait()
        if self.main:
            self.output.mkdir(parents=True, exist_ok=True)
            aside = self.output / ".settings.json.partial"
            about = self.settings.to_dict() | {"machine": Machine(self.device).describe() | {"processes": self.world}}
            aside.write_text(json.dumps(about, indent=2) + "\n")
            aside.replace(self.output / "settings.json")

        def also(line: dict[str, Any]) -> None:
            self.accelerator.log({k: v for k, v in line.items() if k != "step"}, step=line["step"])
            log(line)

        # A run never waits for a service: wandb writes here, and `wandb sync` sends it.
        os.environ.setdefault("WANDB_MODE", "offline")
        self.accelerator.init_trackers("dllm_kernels", init_kwargs={"wandb": {"dir": str(self.output)}})
        if self.main:
            self.metrics = Metrics(self.output / "metrics.jsonl", self.step, also)

    def _update(self) -> dict[str, Tensor]:
        """One step of the optimizer. Nothing in it waits for the device."""
        settings = self.settings
        size, share = settings.optimizer.batch_size, settings.optimizer.batch_size // self.world
        first = self.rank * share
        batch = self.training.batch(self.order(self.step * size + first, share))
        noisy = settings.recipe.self_conditioning_noise > 0
        draws = draw(settings.seed, self.step, size, first, share, self._shape, self.device, noisy)
        times = self.timesteps.times(draws.time) if settings.recipe.adaptive_timesteps else draws.time.double()
        losses = self.joint(batch, draws, times, torch.full((), self._encoder_share(), device=self.device))
        self.accelerator.backward(losses.total)
        norm = self.accelerator.clip_grad_norm_(self.joint.parameters(), settings.optimizer.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, settings.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.step)
        with torch.no_grad():
            self.timesteps.update(global_sum(self.timesteps.binned(times, losses.by_sample)))
        found = {"loss": losses.total, "diffusion": losses.diffusion, "hidden": losses.hidden, "words": losses.words}
        return found | {"accuracy": losses.accuracy, "gradient_norm": _whole(norm)}

    @torch.no_grad()
    def _look(self) -> dict[str, float]:
        """Losses of held-out windows under the averaged weights, at uniform times, the decoder's input without noise."""
        size = self.settings.optimizer.batch_size
        mean, looked = Mean(), min(len(self.held_out), HELD_OUT_BATCHES * size)
        # A multiple of eight, so that one, two, four and eight processes look at the same windows.
        looked -= looked % (math.lcm(8, self.world) if looked >= 8 * self.world else self.world)
        starts = range(0, looked, size)
        self.joint.eval()
        with self.average.applied(), _uncompiled():
            for start in starts:
                whole = min(size, looked - start)
                number = whole // self.world
                first = start + self.rank * number
                draws = draw(0, HELD_OUT_STEP, 1, first, number, self._shape, self.device)
                batch = self.held_out.batch(torch.arange(first, first + number, device=self.device))
                losses = self.joint(batch, draws, draws.time.double(), torch.ones((), device=self.device))
                found = {name: getattr(losses, name) for name in ("diffusion", "hidden", "words", "accuracy")}
                # Batches of unlike sizes weigh by their windows.
                mean.add({name: value * (whole * len(starts) / looked) for name, value in found.items()})
        self.joint.train()
        return mean.take(self._mean_over_processes) if starts else {}

    def _state(self) -> dict[str, Any]:
        return {
            "model": get_model_state_dict(self.joint),
            "optimizer": get_optimizer_state_dict(self.joint, self.optimizer.optimizer),
            "average": self.average.weights,
            "timesteps": self.timesteps.state_dict(),
        }

    def _load(self, step: int) -> int:
        state = self._state()
        self.checkpoints.load(step, state)
        set_model_state_dict(self.joint, state["model"])
        set_optimizer_state_dict(self.joint, self.optimizer.optimizer, state["optimizer"])
        return step

    @torch.no_grad()
    def _export(self) -> None:
        """Writes the averaged weights as a model, with the latents' statistics under these weights, and its tokenizer."""
        settings = self.settings
        self.joint.eval()
        with self.average.applied(), _uncompiled():
            measured = self._latent_moments() if settings.model.standardize else None
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            state = get_model_state_dict(self.joint, options=options)
            # While the averages are in place: on a CPU the state is the weights themselves.
            if self.main:
                with torch.device("meta"):
                    model = LDLM(self._exported())
                weights = {name.removeprefix("model."): tensor for name, tensor in state.items()}
                if measured is not None:
                    weights |= dict(zip(("statistics.latent_mean", "statistics.latent_std"), measured, strict=True))
                model.load_state_dict(weights, assign=True)
                # The tokenizer first: a folder with weights is then whole.
                self.encoder.tokenizer.save_pretrained(self.output / "model")
                model.save_pretrained(self.output / "model")
        self.joint.train()
        self._wait()

    def _exported(self) -> LDLMConfig:
        """The model's config as its folder has it: whether it saw prompts, and its encoder's folder seen from there."""
        settings, encoder = self.settings, self.settings.model.encoder
        if encoder == settings.encoder.path and Path(encoder).is_dir():
            encoder = os.path.relpath(Path(encoder).resolve(), (self.output / "model").resolve())
        saw = settings.data.prompt_tokens > 0 and settings.recipe.context_dropout < 1
        return replace(settings.model, encoder=encoder, trained_with_prompts=saw)

    def _latent_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [d_z] of the latents of the first windows of the order, in two passes."""
        size = self.settings.optimizer.batch_size // self.world
        count = max(1, min(len(self.training), MEASURED) // (size * self.world))
        batches = [
            self.training.batch(self.order(number * size * self.world + self.rank * size, size)) for number in range(count)
        ]
        values = count * size * self.world * self.settings.model.seq_len
        mean = global_sum(sum(self.joint(batch).double().sum((0, 1)) for batch in batches)) / values
        squares = sum((self.joint(batch).double() - mean).square().sum((0, 1)) for batch in batches)
        return mean.float().cpu(), (global_sum(squares) / values + 1e-6).sqrt().float().cpu()

    def _encoder_share(self) -> float:
        recipe = self.settings.recipe
        warmup = round(recipe.encoder_warmup * self.settings.optimizer.steps)
        return encoder_share(self.step, warmup, recipe.encoder_warmup_min, recipe.encoder_gradient)

    def _rates(self) -> dict[str, float]:
        return {"learning_rate": self.optimizer.param_groups[0]["lr"], "encoder_share": self._encoder_share()}

    def _mean_over_processes(self, values: Tensor) -> Tensor:
        return global_sum(values) / processes()

    @property
    def _shape(self) -> tuple[int, int]:
        return self.settings.model.seq_len, self.settings.model.latent_dim


def _dotted(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under names as `data.cache`."""
    found = {}
    for name, value in fields.items():
        found |= _dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _uncompiled() -> AbstractContextManager[None]:
    """For what is looked at now and then: other batch sizes would be compiled, and leave the step with dynamic shapes."""
    return torch.compiler.set_stance("force_eager")


def _whole(value: Tensor) -> Tensor:
    """A norm over sharded gradients as a plain tensor."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value
