"""What a sampler and its calls are told, checked without packing anything."""

import torch

from dllm_kernels.diffusion.noise import SAMPLES
from dllm_kernels.ops.dispatch import BACKENDS
from dllm_kernels.utils.validation import real_number, whole_number


def check_options(config, num_steps, batch_size, seq_len, context_len, guidance, backend, dtype, device) -> None:
    """Raises the ValueError that a sampler of these options would, on a machine that may lack the device."""
    for name, value, least in (
        ("num_steps", num_steps, 1),
        ("batch_size", batch_size, 1),
        ("seq_len", seq_len, 1),
        ("context_len", context_len, 0),
    ):
        whole_number(name, value, least)
    if seq_len > config.seq_len:
        raise ValueError(f"seq_len is {seq_len}; this model has {config.seq_len} latents")
    if context_len and not config.context:
        raise ValueError("context_len needs a model with context=True in its config")
    if context_len and not config.trained_with_prompts:
        raise ValueError("this model takes no prompt: it was trained without prompts")
    if guidance and not context_len:
        raise ValueError("guidance needs context_len of at least 1: it compares with and without a prompt")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known backends: {', '.join(BACKENDS)}")
    allowed = (torch.bfloat16, torch.float16, torch.float32) + ((torch.float64,) if device.type == "cpu" else ())
    if dtype not in allowed:
        raise ValueError(f"dtype is {dtype}; on {device.type} it must be one of {', '.join(str(d) for d in allowed)}")


def checked_call(
    batch_size: int, seed: int, first_sample: int, temperature: float, guidance_scale: float = 1.0
) -> tuple[int, int, float, float]:
    """The numbers of a call as it takes them. Raises the ValueError that a call with them would."""
    return (
        whole_number("seed", seed, -(2**63), 2**64 - 1),
        whole_number("first_sample", first_sample, 0, SAMPLES - batch_size),
        real_number("temperature", temperature, least=0),
        real_number("guidance_scale", guidance_scale),
    )
