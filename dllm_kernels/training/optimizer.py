"""AdamW, its learning rate by step, and the exponential moving average of the weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from dllm_kernels.training.settings import OptimizerSettings


def adamw(module: nn.Module, settings: OptimizerSettings, device: torch.device) -> torch.optim.AdamW:
    """AdamW over the module's parameters; only matrices decay."""
    matrices = [p for p in module.parameters() if p.ndim == 2]
    others = [p for p in module.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, settings.learning_rate, settings.betas, fused=device.type == "cuda")


def learning_rate(step: int, settings: OptimizerSettings) -> float:
    """Of step 0, 1, ...: linear over the warm-up, then half a cosine down to `final_share` of it at the last step."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - 1 - settings.warmup_steps)
    share = settings.final_share + (1 - settings.final_share) * (1 + math.cos(math.pi * min(done, 1))) / 2
    return settings.learning_rate * share


class Average:
    """The weights' exponential moving average, the weights that are kept.

    Attributes:
        weights: by parameter name, placed and sharded as the parameters are.
    """

    def __init__(self, module: nn.Module, decay: float):
        self._decay = decay
        # Without the wrapper's name, so that a checkpoint of two processes is one of one process.
        self._parameters = {name.removeprefix("module."): p for name, p in module.named_parameters()}
        self._sharded = [m for m in module.modules() if isinstance(m, FSDPModule)]
        self.weights = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step 0, 1, ...; the decay starts low, so that the average forgets the initial weights."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.weights.values()), list(self._parameters.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module has the averaged weights; afterwards its own again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # FSDP2's root keeps the gathered weights of a pass without a backward, and would go on with those of before.
        for module in self._sharded:
            module.reshard()
        for name, parameter in self._parameters.items():
            own: Tensor = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(own)
