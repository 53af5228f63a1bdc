"""Plans whose layers are packed for the CUDA kernels, on a CPU, where PyTorch stands in for the kernels."""

import torch

from dllm_kernels import LDLMConfig
from dllm_kernels.inference.fold import Numerics
from dllm_kernels.inference.pack import PackedModel, PlanOptions, pack_model
from dllm_kernels.inference.weights import LiveModel
from dllm_kernels.model.config import open_dllm_config
from tests.models import randomized

TIMES = torch.tensor([1.0, 0.6, 0.3], dtype=torch.float64)
CONFIGS = {
    "ldlm": LDLMConfig.preset("tiny", seq_len=13, dim=128, hidden_dim=192, latent_dim=96, vocab_size=101, num_heads=4),
    "open-dllm": open_dllm_config(128, 101, 16, perceiver_layers=2, denoiser_layers=2),
    "open-dllm with proj_in": open_dllm_config(128, 101, 16, proj_in=True, perceiver_layers=2, denoiser_layers=2),
}
CARD = Numerics(torch.bfloat16, torch.bfloat16, torch.float32, torch.device("cpu"))
"""The dtypes of a plan on a card, on a CPU."""


def pack(config: LDLMConfig, numerics: Numerics = CARD, batch_size: int = 2, **options) -> tuple[PackedModel, PlanOptions]:
    """A random model, packed for TIMES."""
    options = PlanOptions(config.seq_len, batch_size, numerics, **options)
    return pack_model(config, LiveModel(randomized(config)), TIMES, options), options
