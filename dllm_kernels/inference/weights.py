"""Where a plan's weights come from: a live model, a checkpoint read part by part, or random numbers made part by part."""

import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode

from dllm_kernels.inference.known import known_model
from dllm_kernels.model import checkpoint
from dllm_kernels.model.config import PRESETS, LDLMConfig
from dllm_kernels.model.ldlm import LDLM, build_module
from dllm_kernels.utils.ambient import unaffected
from dllm_kernels.utils.keywords import keywords

PACKED_MODULES = ("denoiser", "latent_decoder", "token_decoder", "lm_head")
"""The parts that a generation reads; the latent encoder is not among them."""

Watch = Callable[[], str | None]
"""Gives the name of the first tensor or module that was written or replaced since the watch began, or None."""


class LiveModel:
    """A model in memory. Its parts are read as they are, and watched for changes.

    Args:
        model: the model, in whatever wrapper of known.WRAPPERS; a plan copies what it needs.

    Raises:
        ValueError: it is no LDLM, or computes something else than one.
    """

    def __init__(self, model: nn.Module):
        self.model = known_model(model)
        self.config = self.model.config

    def __call__(self, name: str) -> nn.Module:
        """The part `name` itself."""
        return getattr(self.model, name)

    def watch(self) -> Watch:
        """A watch that sees writes which autograd counts, replaced parts, new hooks, and optimizers' steps.

        It does not see what is written through `.data`, through NumPy, or to tensors made in inference mode.
        """
        return _Changes(self.model)


class _Changes:
    """A watch of a live model."""

    def __init__(self, model: LDLM):
        # Every call compares all entries, so the modules are walked over once, here.
        self._slots = [
            (f"{prefix}.{key}".removeprefix("."), holder, key)
            for prefix, module in model.named_modules()
            if not prefix.startswith("latent_encoder")
            for holder in (module._modules, module._parameters, module._buffers)
            for key, entry in holder.items()
            if entry is not None and key != "latent_encoder"
        ]
        parts = ((prefix, module) for prefix, module in model.named_modules() if not prefix.startswith("latent_encoder"))
        self._calls = [(prefix or "the model", module) for prefix, module in parts]
        self._before, self._stepped = self._state(), None
        self._names = {id(holder[key]): name for name, holder, key in self._slots}
        # Fused optimizers write without telling autograd. The hook keeps no watch alive.
        note = weakref.WeakMethod(self._after_step)
        hook = register_optimizer_step_post_hook(lambda optimizer, *_: _call(note(), optimizer))
        weakref.finalize(self, hook.remove)

    def __call__(self) -> str | None:
        now = self._state()
        if now == self._before:
            return self._stepped
        return next(slot[0] for slot, a, b in zip(self._slots + self._calls, now, self._before, strict=True) if a != b)

    def _state(self) -> list:
        entries = [_fingerprint(holder.get(key)) for _, holder, key in self._slots]
        calls = [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for _, m in self._calls]
        return entries + calls

    def _after_step(self, optimizer: Optimizer) -> None:
        stepped = (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
        self._stepped = self._stepped or next((self._names[id(p)] for p in stepped if id(p) in self._names), None)


def _fingerprint(entry: Tensor | nn.Module | None) -> tuple[int, int]:
    """What changes when a tensor is written or an entry replaced; nothing counts the writes to a tensor of inference mode."""
    if type(entry) not in (Tensor, nn.Parameter) or entry.layout != torch.strided:
        return id(entry), 0
    return entry.data_ptr(), 0 if entry.is_inference() else entry._version


def _call(function: Callable | None, *arguments) -> None:
    if function is not None:
        function(*arguments)


class StoredModel:
    """A checkpoint folder, hub id or bundled model, read part by part, so that the whole model is never in memory.

    Args:
        model_id: as of `LDLM.from_pretrained`.
        hub_options: revision, token, cache_dir, force_download, local_files_only.

    Attributes:
        config: the model's.
        folder: where its files are.

    Raises:
        FileNotFoundError, ValueError: as `checkpoint.open_folder` and `checkpoint.load_into` do.
        TypeError: another option.
    """

    def __init__(self, model_id: str | Path, **hub_options):
        self.folder = checkpoint.resolve(model_id, **keywords("StoredModel", hub_options, checkpoint.HUB_OPTIONS))
        self.config, self._weights = checkpoint.open_folder(self.folder)

    @unaffected()
    def __call__(self, name: str) -> nn.Module:
        """The part `name`, with its weights mapped from the file."""
        with torch.device("meta"):
            module = build_module(name, self.config)
        checkpoint.load_into(module, self._weights.read(f"{name}."), f"{name}.")
        return module.eval()

    def watch(self) -> Watch:
        """Nothing to watch: a stored model is read once."""
        return lambda: None


class RandomModel:
    """Random weights of a config, made part by part, to measure speed without a trained model.

    Args:
        config: the model's.
        seed: of the weights. A part depends on it alone, not on what was built before.
        dtype: of the weights.
    """

    def __init__(self, config: LDLMConfig, seed: int = 0, dtype: torch.dtype = torch.bfloat16):
        self.config, self._seed, self._dtype = config, seed, dtype

    @unaffected()
    def __call__(self, name: str) -> nn.Module:
        """The part `name`, newly made. Layers that adaLN-Zero starts at zero are random too, so that results depend on them."""
        with _Drawn(self._seed, self._dtype):
            module = build_module(name, self.config)
            for part in module.modules():
                if isinstance(part, nn.Linear) and not part.weight.any():
                    part.reset_parameters()
        return module.eval()

    def watch(self) -> Watch:
        """Nothing to watch: the weights exist only in the plan."""
        return lambda: None


Source = RandomModel | StoredModel | LiveModel


def pretrained(model_id: str | Path, dtype: torch.dtype = torch.bfloat16, **hub_options) -> Source:
    """The source of `from_pretrained`: a preset by its name, with random weights of `dtype`, otherwise a StoredModel."""
    if str(model_id) in PRESETS:
        return RandomModel(LDLMConfig.preset(str(model_id)), dtype=dtype)
    return StoredModel(model_id, **hub_options)


def source_of(model: nn.Module | LDLMConfig | Source | str | Path, dtype: torch.dtype = torch.bfloat16) -> Source:
    """Where the weights of a model come from.

    Args:
        model: a model in memory, a config or a preset's name (random weights), a checkpoint folder, a hub id, a bundled
            model, an open-dllm file, or a source of parts, which is given back.
        dtype: of random weights.

    Raises:
        ValueError, FileNotFoundError: a name does not fit; one sentence.
    """
    if isinstance(model, nn.Module):
        return LiveModel(model)
    if isinstance(model, LDLMConfig):
        return RandomModel(model, dtype=dtype)
    if not isinstance(model, (str, Path)):
        if not (callable(model) and isinstance(getattr(model, "config", None), LDLMConfig)):
            raise ValueError(f"the model is {type(model).__name__}; it must be an LDLM, an LDLMConfig, a name or a source")
        return model
    name = str(model)
    if name in PRESETS:
        return RandomModel(LDLMConfig.preset(name), dtype=dtype)
    if is_open_dllm(name):
        return LiveModel(LDLM.from_open_dllm(name))
    if Path(name).exists() or "/" in name or name in checkpoint.bundled_models():
        return stored_model(name)
    raise ValueError(
        f"unknown preset {name!r}, and no such file or folder; known presets: {', '.join(PRESETS)}; "
        f"models in this package: {', '.join(checkpoint.bundled_models()) or 'none'}"
    )


def is_open_dllm(model: str) -> bool:
    """Whether a model's name stands for an open-dllm file."""
    return Path(model).is_file() or Path(model).suffix in (".pt", ".pth")


def stored_model(model: str) -> StoredModel:
    """The checkpoint folder, hub id or bundled model. Raises ValueError or FileNotFoundError."""
    try:
        return StoredModel(model)
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(f"{model} is no folder here, and the hub does not give it: {error}") from error


class _Drawn(TorchFunctionMode):
    """On this thread tensors are made on the CPU in `dtype`, and drawn from a generator of their own."""

    def __init__(self, seed: int, dtype: torch.dtype):
        super().__init__()
        self._generator, self._dtype = torch.Generator().manual_seed(seed), dtype

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.empty, torch.zeros, torch.ones):
            kwargs |= {"device": "cpu", "dtype": self._dtype}
        if "generator" in kwargs:
            kwargs["generator"] = self._generator
        return function(*args, **kwargs)
