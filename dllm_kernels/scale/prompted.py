"""The frozen encoder in a worker: prompts to the hidden states that a sampler takes as its context."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dllm_kernels.config import LDLMConfig

Encode = Callable[[list[str]], tuple[Tensor, Tensor]]
"""Prompts to hidden states [B, P, d_h] and mask [B, P] bool."""


def check_prompts(config: LDLMConfig, prompt_len: int) -> None:
    """Raises ValueError where prompts are asked of a model that takes none or names no encoder to read them."""
    if prompt_len and not config.context:
        raise ValueError("this model takes no prompt: its config has context=False")
    if prompt_len and config.encoder is None:
        raise ValueError("a prompt needs the model's frozen encoder, and its config names none")


def load_encoder(config: LDLMConfig, prompt_len: int, device: torch.device) -> Encode:
    """The encoder that the config names, for the first `prompt_len` tokens of a prompt.

    On a CPU it reads a prompt at a time, since PyTorch's products there give a row other bits by what stands beside it.

    Raises:
        ValueError: the encoder is not there or cannot be read here.
    """
    try:
        from dllm_kernels.encoder import Encoder

        encoder = Encoder.for_model(config, device)
    except ImportError as error:
        raise ValueError(f"a prompt needs the frozen encoder, which cannot be loaded here: {error}") from None
    return lambda prompts: encode(encoder, prompts, prompt_len, at_once=1 if device.type == "cpu" else len(prompts))


def encode(encoder: Any, prompts: list[str], prompt_len: int, at_once: int) -> tuple[Tensor, Tensor]:
    """Hidden states [B, P, d_h] and mask [B, P] of `prompts`, read `at_once` together.

    Longer prompts are cut: one of a billion does not stop a job. P is always the same, so that a prompt's bits do not depend
    on the others'.
    """
    length = min(prompt_len, encoder.max_tokens or prompt_len)
    rows = [row[:length] for row in encoder.tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"]]
    mask = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
    tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    hidden = encoder(tokens, mask, at_once)
    return hidden, mask.to(hidden.device)
