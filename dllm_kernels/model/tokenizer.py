"""Tokens to text and back: the tokenizer whose files lie beside a model's weights, or any other of transformers."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from dllm_kernels.model.checkpoint import TOKENIZER_FILES


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer lies in a checkpoint folder."""
    return (folder / TOKENIZER_FILES[0]).is_file()


def vocabulary_hash(tokenizer) -> str:
    """A hash of a transformers tokenizer's vocabulary, 16 hexadecimal digits.

    Token windows store it, so that none is read with another tokenizer (training/windows.py).
    """
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]


class TextTokenizer:
    """A tokenizer of transformers, with what a generated sequence needs: its end, and text without special tokens.

    Several threads may share it.

    Args:
        path: a folder or hub id.

    Attributes:
        end_tokens: the tokenizer's end-of-sequence and separator tokens. A text ends at the first of them.

    Raises:
        ImportError: transformers is not installed.
        ValueError: `path` gives no tokenizer.
    """

    def __init__(self, path: str | Path):
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise ImportError("text needs transformers: pip install 'dllm-kernels[text]'") from None
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path)
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} gives no tokenizer: {error}") from error
        ends = (self._tokenizer.eos_token_id, self._tokenizer.sep_token_id)
        self.end_tokens = frozenset(token for token in ends if token is not None)
        self._special = frozenset(self._tokenizer.all_special_ids) - {self._tokenizer.unk_token_id}

    def vocabulary_hash(self) -> str:
        """`vocabulary_hash` of this tokenizer."""
        return vocabulary_hash(self._tokenizer)

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer's files into a folder."""
        self._tokenizer.save_pretrained(folder)

    def end(self, tokens: Sequence[int]) -> int | None:
        """The index of the first end token, or None where there is none."""
        return next((place for place, token in enumerate(tokens) if token in self.end_tokens), None)

    def words(self, tokens: Sequence[int]) -> list[int]:
        """The tokens of the text itself: up to the first end token, without padding and other special tokens."""
        return [token for token in tokens[: self.end(tokens)] if token not in self._special]

    def text(self, tokens: Sequence[int]) -> str:
        """The text of a sequence of tokens, up to its end, without special tokens."""
        return self._tokenizer.decode(self.words(tokens))

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text, of any length, without special tokens."""
        # A tokenizer warns of texts that are longer than its model reads; here they become windows.
        return self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
