"""What a training run is told: one YAML file, read strictly. docs/training.md explains every key."""

import contextlib
import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dllm_kernels.model.config import LDLMConfig

TRACKERS = ("tensorboard", "wandb")


@dataclass(frozen=True)
class EncoderSettings:
    """The frozen language model.

    Attributes:
        path: folder or hub id.
        layer: which of its hidden states (encoder.py).
        name: what the trained model's config calls it; `path` where not given.
    """

    path: str
    layer: int = -3
    name: str | None = None


@dataclass(frozen=True)
class DataSettings:
    """Where the text comes from and how it is cut.

    Attributes:
        text: files (.jsonl, .json, .txt), or one hub id; may be absent once `windows` is there.
        windows: the folder that keeps the token windows.
        field: the column that holds the text.
        unit: what a plain text file's sample is: "document" (a file), "paragraph" or "line".
        subset, split: of a hub data set.
        prompt_tokens: the longest prompt, the tokens before a window in its document; 0 for none.
        held_out: share of the documents that is not trained on.
        stride: tokens from the beginning of a training window to that of the next in its document, at most T; None for T.
        max_windows: stop after this many training windows; 0 for all.
        cache: the folder of the hidden states' cache.
        cache_gb: the most that this folder may hold, in 1e9 bytes; 0 keeps none on disk.
        memory_share: share of the device's free memory that hidden states may fill; what does not fit is read or computed
            a batch at a time.
    """

    windows: str
    text: tuple[str, ...] = ()
    field: str = "text"
    unit: str = "document"
    subset: str | None = None
    split: str = "train"
    prompt_tokens: int = 0
    held_out: float = 0.01
    stride: int | None = None
    max_windows: int = 0
    cache: str = "hidden-states"
    cache_gb: float = 20.0
    memory_share: float = 0.5


@dataclass(frozen=True)
class RecipeSettings:
    """The four parts of the recipe, each of which can be left out, and prompts.

    Attributes:
        mse_decoder_loss: L_h with decoder-input noise; without it the decoder learns from the tokens' cross-entropy alone.
        encoder_warmup: share of the steps over which the encoder's part of L_diff's gradient grows to 1; 0 for 1 from the
            start.
        encoder_warmup_min: gamma_min.
        encoder_gradient: what gamma grows to; the paper's 1, or less where the latents lose too much to the denoiser's ease.
        adaptive_timesteps: p(t) proportional to dL/dt instead of uniform.
        self_conditioning: probability that the denoiser sees its own first prediction.
        self_conditioning_noise: standard deviation of the noise on the prediction that the denoiser sees (FastDiSS,
            arXiv:2604.05551), relative to that of the latents.
        context_dropout: probability that a prompt is replaced by the null context.
    """

    mse_decoder_loss: bool = True
    encoder_warmup: float = 0.5
    encoder_warmup_min: float = 0.01
    encoder_gradient: float = 1.0
    adaptive_timesteps: bool = True
    self_conditioning: float = 0.5
    self_conditioning_noise: float = 0.0
    context_dropout: float = 0.1


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW (TEncDM, arXiv:2402.19097: 2e-4, betas 0.9 and 0.98, EMA 0.9999, clip 1), a linear warm-up, then a cosine.

    Attributes:
        steps: updates in all.
        batch_size: windows a step, over all processes.
        learning_rate: at its highest.
        warmup_steps: over which it rises.
        final_share: of the learning rate at the last step.
        ema: decay of the averaged weights; at step s at most (1 + s) / (10 + s).
        precision: "bf16" for autocast, or "fp32".
        compile: torch.compile of the step.
    """

    steps: int
    batch_size: int
    learning_rate: float = 2e-4
    warmup_steps: int = 1000
    final_share: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.9999
    precision: str = "bf16"
    compile: bool = False


@dataclass(frozen=True)
class Settings:
    """A run. `output` gets model/ (averaged weights), checkpoints/ and metrics.jsonl.

    Attributes:
        checkpoint_every, log_every, held_out_every: in steps; 0 leaves held-out losses out.
        keep_checkpoints: the newest that stay.
        trackers: of 🤗 Accelerate, besides metrics.jsonl.
    """

    output: str
    model: LDLMConfig
    encoder: EncoderSettings
    data: DataSettings
    optimizer: OptimizerSettings
    recipe: RecipeSettings = field(default_factory=RecipeSettings)
    seed: int = 0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    log_every: int = 20
    held_out_every: int = 500
    trackers: tuple[str, ...] = ()

    def __post_init__(self):
        recipe, optimizer, data = self.recipe, self.optimizer, self.data
        for name in ("encoder_warmup", "encoder_warmup_min", "encoder_gradient", "self_conditioning", "context_dropout"):
            _between(f"recipe.{name}", getattr(recipe, name), 0, 1)
        if recipe.encoder_warmup_min > recipe.encoder_gradient:
            raise ValueError(
                f"recipe.encoder_warmup_min is {recipe.encoder_warmup_min!r}; "
                f"it must be at most recipe.encoder_gradient, {recipe.encoder_gradient!r}"
            )
        _between("recipe.self_conditioning_noise", recipe.self_conditioning_noise, 0, math.inf)
        if self.model.guidance_range and not recipe.self_conditioning:
            raise ValueError("model.guidance_range needs recipe.self_conditioning, since guidance compares with and without it")
        for name in ("steps", "batch_size"):
            _between(f"optimizer.{name}", getattr(optimizer, name), 1, math.inf)
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(optimizer, name) < math.inf:
                raise ValueError(f"optimizer.{name} is {getattr(optimizer, name)!r}; it must be positive and finite")
        _between("optimizer.warmup_steps", optimizer.warmup_steps, 0, math.inf)
        _between("optimizer.weight_decay", optimizer.weight_decay, 0, math.inf)
        _between("optimizer.final_share", optimizer.final_share, 0, 1)
        for name, value in (("ema", optimizer.ema), ("betas", min(optimizer.betas)), ("betas", max(optimizer.betas))):
            if not 0 <= value < 1:
                raise ValueError(f"optimizer.{name} has {value!r}; it must be at least 0 and below 1")
        _choice("optimizer.precision", optimizer.precision, ("bf16", "fp32"))
        _choice("data.unit", data.unit, ("document", "paragraph", "line"))
        for tracker in self.trackers:
            _choice("trackers", tracker, TRACKERS)
        for name in ("prompt_tokens", "max_windows", "cache_gb"):
            _between(f"data.{name}", getattr(data, name), 0, math.inf)
        _between("data.memory_share", data.memory_share, 0, 0.9)
        if data.stride is not None:
            _between("data.stride", data.stride, 1, self.model.seq_len)
        if not 0 <= data.held_out < 1:
            raise ValueError(f"data.held_out is {data.held_out!r}; it must be at least 0 and below 1")
        for name, least in (("checkpoint_every", 1), ("keep_checkpoints", 1), ("log_every", 1), ("held_out_every", 0)):
            _between(name, getattr(self, name), least, math.inf)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed!r}; it must be at least 0 and below 2^63")
        if not self.model.ada_ln:
            raise ValueError("model has ada_ln false; training is of the ldlm architecture, whose denoiser has ada_ln")
        if data.prompt_tokens and not self.model.context:
            raise ValueError(f"data.prompt_tokens is {data.prompt_tokens}, and the model takes no context")

    @classmethod
    def read(cls, path: Path) -> "Settings":
        """The settings in a YAML file.

        Raises:
            ImportError: PyYAML is not installed.
            OSError: the file cannot be read.
            ValueError: it is not YAML, or names the key that is unknown, missing or of the wrong kind, or the value out of
                range; one sentence.
        """
        try:
            import yaml
        except ImportError:
            raise ImportError("training needs more packages: pip install 'dllm-kernels[train]'") from None
        try:
            document = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(document, dict):
            raise ValueError(f"{path} holds no keys")
        try:
            return cls._from(document)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def _from(cls, document: dict) -> "Settings":
        model = document.get("model")
        if not isinstance(model, dict):
            raise ValueError("model must hold the keys of a model's config, or preset and what differs from it")
        named = {}
        if isinstance(document.get("encoder"), dict):
            encoder = _build(EncoderSettings, "encoder.", document["encoder"])
            named = {"encoder": encoder.name or encoder.path, "encoder_layer": encoder.layer}
            document = document | {"encoder": encoder}
        model = _values({"preset": str | None} | typing.get_type_hints(LDLMConfig), "model.", model)
        preset = model.pop("preset", None)
        base = LDLMConfig.preset(preset).to_dict() if preset is not None else {}
        return _build(cls, "", document | {"model": LDLMConfig.from_dict(base | model | named)})

    @classmethod
    def recorded(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """What `to_dict` gave in a run's settings.json, as it gives it now: a field that is newer than the run has its default.

        Raises:
            ValueError: the fields are not those of a run.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        return json.loads(json.dumps(cls._from({name: value for name, value in fields.items() if name in known}).to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON holds."""
        return dataclasses.asdict(self)


def _build(kind: type, prefix: str, document: Any) -> Any:
    """A settings object of `kind` from a mapping, each value checked against its field's type."""
    if not isinstance(document, dict):
        raise ValueError(f"{prefix.rstrip('.')} must hold keys, and is {document!r}")
    values = _values(typing.get_type_hints(kind), prefix, document)
    for f in dataclasses.fields(kind):
        if f.name not in document and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"the key {prefix}{f.name} is missing")
    return kind(**values)


def _values(hints: dict[str, Any], prefix: str, document: dict) -> dict[str, Any]:
    """The values of a mapping, each checked against its key's type."""
    for name in document:
        if name not in hints:
            raise ValueError(f"unknown key {prefix}{name}; known keys: {', '.join(prefix + n for n in hints)}")
    return {name: _value(hints[name], f"{prefix}{name}", value) for name, value in document.items()}


def _value(hint: Any, name: str, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else _build(hint, f"{name}.", value)
    if typing.get_origin(hint) is types.UnionType:
        if value is None:
            return None
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if typing.get_origin(hint) is tuple:
        items, kinds = [value] if isinstance(value, str) else value, typing.get_args(hint)
        if not isinstance(items, list) or (kinds[-1] is not ... and len(items) != len(kinds)):
            raise ValueError(f"{name} is {value!r}; it must be a list{'' if kinds[-1] is ... else f' of {len(kinds)} values'}")
        return tuple(_value(kinds[0], name, item) for item in items)
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        # YAML 1.1 reads 2e-4 as a string.
        with contextlib.suppress(ValueError, OverflowError):
            value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        words = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
        raise ValueError(f"{name} is {value!r}; it must be {words[hint]}")
    return value


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high or value == math.inf:
        above = "" if high == math.inf else f" and at most {high}"
        raise ValueError(f"{name} is {value!r}; it must be at least {low}{above}")


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
