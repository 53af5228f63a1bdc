"""Prompts: how long they may be, and the frozen encoder in a worker, which makes a sampler's context of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dllm_kernels.model.config import LDLMConfig

Encode = Callable[[list[str]], tuple[Tensor, Tensor]]
"""Prompts to hidden states [B, P, d_h] and mask [B, P] bool."""


def takes_prompts(config: LDLMConfig) -> bool:
    """Whether a model with this config reads prompts, and names the encoder for them."""
    return config.context and config.trained_with_prompts and config.encoder is not None


class PromptLimit:
    """Refuses prompts that are too long, by the tokenizer of the frozen encoder, without the encoder's weights.

    Args:
        config: of a model.
        prompt_len: the most tokens of a prompt; None for the model's T, or for what its encoder reads where that is less.

    Attributes:
        most: the most tokens of a prompt.

    Raises:
        ValueError: the model takes no prompts, its encoder is not there, or it reads less than `prompt_len`; one sentence.
    """

    def __init__(self, config: LDLMConfig, prompt_len: int | None = None):
        if not config.context:
            raise ValueError("this model takes no prompt: its config has context=False")
        if not config.trained_with_prompts:
            raise ValueError("this model takes no prompt: it was trained without prompts")
        if config.encoder is None:
            raise ValueError("a prompt needs the model's frozen encoder, and its config names none")
        try:
            from dllm_kernels.model.encoder import prompt_tokenizer

            self._tokenizer, reads = prompt_tokenizer(config.encoder)
        except ImportError as error:
            raise ValueError(f"a prompt needs the frozen encoder, which cannot be loaded here: {error}") from None
        if prompt_len is not None and reads is not None and prompt_len > reads:
            raise ValueError(f"prompt_len is {prompt_len}, and the encoder {config.encoder} reads at most {reads} tokens")
        self.most = min(config.seq_len, reads or config.seq_len) if prompt_len is None else prompt_len

    def __call__(self, prompts: list[str], place: Callable[[int], str] = "prompt {}".format) -> None:
        """Raises ValueError unless each prompt is text of 1 to `most` tokens; `place` says where the one that is not stands."""
        _tokens(self._tokenizer, prompts, self.most, place)


def load_encoder(config: LDLMConfig, prompt_len: int, device: torch.device) -> Encode:
    """The encoder that the config names, for prompts of at most `prompt_len` tokens.

    On a CPU it reads a prompt at a time, since PyTorch's products there give a row other bits by what stands beside it.

    Raises:
        ValueError: the encoder is not there or cannot be read here.
    """
    try:
        from dllm_kernels.model.encoder import Encoder

        encoder = Encoder.for_model(config, device)
    except ImportError as error:
        raise ValueError(f"a prompt needs the frozen encoder, which cannot be loaded here: {error}") from None
    return lambda prompts: encode(encoder, prompts, prompt_len, at_once=1 if device.type == "cpu" else len(prompts))


def encode(encoder: Any, prompts: list[str], prompt_len: int, at_once: int) -> tuple[Tensor, Tensor]:
    """Hidden states [B, P, d_h] and mask [B, P] of `prompts`, read `at_once` together.

    P is `prompt_len` for all, so that a prompt's bits do not depend on the others'.

    Raises:
        ValueError: a longer prompt, which a PromptLimit refuses before anything runs.
    """
    rows = _tokens(encoder.tokenizer, prompts, prompt_len, "prompt {} of a batch".format)
    mask = torch.arange(prompt_len) < torch.tensor([len(row) for row in rows])[:, None]
    tokens = torch.tensor([row + [0] * (prompt_len - len(row)) for row in rows])
    hidden = encoder(tokens, mask, at_once)
    return hidden, mask.to(hidden.device)


def _tokens(tokenizer: Any, prompts: list[str], most: int, place: Callable[[int], str]) -> list[list[int]]:
    for number, prompt in enumerate(prompts):
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{place(number)} is not Unicode text: it holds half a surrogate pair") from None
    # A tokenizer warns of texts longer than its model reads.
    rows = tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"]
    for number, row in enumerate(rows):
        if not 0 < len(row) <= most:
            raise ValueError(f"{place(number)} has {len(row)} tokens; prompt_len allows from 1 to {most}")
    return rows
