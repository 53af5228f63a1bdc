"""Small models with every tensor random: a zero or a one left in place hides a missing bias or gain."""

import torch

from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.model.ldlm import LDLM


@torch.no_grad()
def randomized(config: LDLMConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> LDLM:
    """A model whose biases, gains, modulations and statistics are random and have a non-zero mean."""
    generator = torch.Generator().manual_seed(seed)
    model = LDLM(config)
    for name, tensor in model.state_dict().items():
        values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if name.endswith("_std"):
            values = 0.5 + values.abs()
        elif "norm" in name and name.endswith("weight"):
            values = 1 + 0.2 * values
        elif tensor.ndim == 2:
            values = (values + 0.02) * (4 if name == "lm_head.weight" else 1) * tensor.shape[1] ** -0.5
        else:
            values = 0.2 * values + 0.05
        tensor.copy_(values)
    return model.to(dtype).eval()
