"""Where a plan's weights come from: a live model, a checkpoint read part by part, or random numbers made part by part."""

from pathlib import Path

import torch
from torch import Tensor, nn

from dllm_kernels import checkpoint
from dllm_kernels.config import LDLMConfig
from dllm_kernels.model.ldlm import LDLM, build_module

PACKED_MODULES = ("denoiser", "latent_decoder", "token_decoder", "lm_head")
"""The parts that a generation reads; the latent encoder is not among them."""


class LiveModel:
    """The parts of a model in memory, which stay as they are and are watched for changes."""

    def __init__(self, model: LDLM):
        self.model, self.config = model, model.config
        self.mark_packed()

    def __call__(self, name: str) -> nn.Module:
        """The part `name` itself."""
        return getattr(self.model, name)

    def mark_packed(self) -> None:
        """Takes the model's tensors as they are now for the packed ones."""
        # Every call compares all of them, so the walk over the modules is done here, once.
        self._slots = [
            (f"{prefix}.{key}".removeprefix("."), holder, key)
            for prefix, module in self.model.named_modules()
            if not prefix.startswith("latent_encoder")
            for holder in (module._modules, module._parameters, module._buffers)
            for key, entry in holder.items()
            if entry is not None and key != "latent_encoder"
        ]
        self._packed = self._state()

    def changed(self) -> str | None:
        """The first tensor or module that was written or replaced since packing, or None."""
        now = self._state()
        if now == self._packed:
            return None
        return next(slot[0] for slot, a, b in zip(self._slots, now, self._packed, strict=True) if a != b)

    def _state(self) -> list[tuple[int, int]]:
        entries = [holder.get(key) for _, holder, key in self._slots]
        return [(e.data_ptr(), e._version) if isinstance(e, Tensor) else (id(e), 0) for e in entries]


class StoredModel:
    """A checkpoint folder, hub id or bundled model, read part by part, so that the whole model is never in memory.

    Attributes:
        folder: where its files lie.

    Raises:
        FileNotFoundError, ValueError: as `checkpoint.open_folder` and `checkpoint.load_into` do.
    """

    def __init__(self, model_id: str | Path, **hub_options):
        self.folder = checkpoint.resolve(model_id, **hub_options)
        self.config, self._weights = checkpoint.open_folder(self.folder)

    def __call__(self, name: str) -> nn.Module:
        """The part `name`, with its weights mapped from the file."""
        with torch.device("meta"):
            module = build_module(name, self.config)
        checkpoint.load_into(module, self._weights.read(f"{name}."), f"{name}.")
        return module.eval()

    def changed(self) -> None:
        """None: a stored model is read once."""

    def mark_packed(self) -> None:
        """Nothing to watch."""


class RandomModel:
    """Random weights of a config, part by part: what a speed is measured on where nothing was trained.

    Args:
        seed: part `name` is the same for the same seed, whatever was built before it.
        dtype: of the weights.
    """

    def __init__(self, config: LDLMConfig, seed: int = 0, dtype: torch.dtype = torch.bfloat16):
        self.config, self._seed, self._dtype = config, seed, dtype

    def __call__(self, name: str) -> nn.Module:
        """The part `name`, newly made. Layers that adaLN-Zero starts at zero are random here, so that they do their work."""
        default = torch.get_default_dtype()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            torch.set_default_dtype(self._dtype)
            try:
                module = build_module(name, self.config)
                for part in module.modules():
                    if isinstance(part, nn.Linear) and not part.weight.any():
                        part.reset_parameters()
            finally:
                torch.set_default_dtype(default)
        return module.eval()

    def changed(self) -> None:
        """None: the weights exist only in the plan."""

    def mark_packed(self) -> None:
        """Nothing to watch."""
