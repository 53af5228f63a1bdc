"""Text to windows of T tokens, each with the tokens before it in its document as a prompt.

A document is its tokens and an end token, cut into consecutive windows; the last one is padded. Training windows may begin
closer to each other than T, so that a model meets a text at several places of a window. A window's prompt is the end of what
stands before it: its length is drawn uniformly from 1 to `prompt_tokens`, or to what there is, so that a model meets
prompts of every length, encoded as they will be. The first window of a document has none.

The windows are kept in a folder as rows of integers, written as the text streams by, so that no corpus has to fit into
memory, and a machine without the text or without 🤗 Datasets can train on them.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dllm_kernels.model.encoder import Encoder
from dllm_kernels.model.tokenizer import vocabulary_hash
from dllm_kernels.training.settings import DataSettings

ABOUT_FILE, PARTS = "windows.json", ("training", "held_out")
_TOGETHER = 256
"""Documents that are tokenised together."""


@dataclass(frozen=True)
class Windows:
    """Rows on disk, read through a memory map: [N, 2 + T + P] of length, prompt length, tokens, prompt tokens."""

    rows: np.ndarray
    seq_len: int

    def __len__(self) -> int:
        return len(self.rows)

    def tokens(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """The windows' tokens [B, T] int64 and masks [B, T]."""
        return self._part(index, 0, 2, self.seq_len)

    def prompts(self, index: Tensor | slice) -> tuple[Tensor, Tensor] | None:
        """The prompts' tokens [B, P] int64 and masks [B, P], or None where there are no prompts."""
        width = self.rows.shape[1] - 2 - self.seq_len
        return self._part(index, 1, 2 + self.seq_len, width) if width else None

    def _part(self, index: Tensor | slice, length: int, first: int, width: int) -> tuple[Tensor, Tensor]:
        rows = self.rows[index if isinstance(index, slice) else index.cpu().numpy()]
        tokens, lengths = (torch.from_numpy(x.astype(np.int64)) for x in (rows[:, first : first + width], rows[:, length]))
        return tokens, torch.arange(width) < lengths.unsqueeze(1)


def windows(data: DataSettings, seq_len: int, vocab_size: int, seed: int, encoder: Encoder) -> dict[str, Windows]:
    """The training and held-out windows in `data.windows`, made from the text where the folder is not there.

    Raises:
        ImportError: the text has to be read and 🤗 Datasets is not installed.
        ValueError: the folder was made from other settings; there is no text; too little of it; one sentence.
    """
    folder = Path(data.windows)
    recipe = _recipe(data, seq_len, vocab_size, seed, encoder)
    if not folder.exists():
        _write(folder, recipe, data, seq_len, seed, encoder)
    return read(folder, recipe)


def read(folder: Path, recipe: dict[str, Any]) -> dict[str, Windows]:
    """The windows in a folder, which must have been made by `recipe`."""
    try:
        about = json.loads((folder / ABOUT_FILE).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no token windows: {error}") from error
    differ = [f"{key} was {about['recipe'].get(key)!r} and is {value!r}" for key, value in recipe.items()]
    differ = [line for line, key in zip(differ, recipe, strict=True) if about["recipe"].get(key) != recipe[key]]
    if differ:
        raise ValueError(f"{folder} was made from other settings ({'; '.join(differ)}); name another folder, or remove it")
    found = {}
    for part in PARTS:
        shape = about["rows"][part], 2 + recipe["seq_len"] + recipe["prompt_tokens"]
        path = folder / f"{part}.bin"
        if path.stat().st_size != shape[0] * shape[1] * np.dtype(about["dtype"]).itemsize:
            raise ValueError(f"{path} is damaged: it does not hold {shape[0]} rows")
        rows = np.memmap(path, about["dtype"], "r", shape=shape) if shape[0] else np.empty(shape, about["dtype"])
        found[part] = Windows(rows, recipe["seq_len"])
    return found


def cut(
    tokens: list[int], seq_len: int, stride: int, prompt_tokens: int, generator: np.random.Generator
) -> Iterator[list[list[int]]]:
    """A document's windows, one every `stride` tokens until its end is in one, and the prompt of each."""
    for start in range(0, max(1, len(tokens) - (seq_len - stride)), stride):
        longest = min(prompt_tokens, start)
        length = int(generator.integers(1, longest + 1)) if longest else 0
        yield [tokens[start : start + seq_len], tokens[start - length : start]]


def documents(data: DataSettings) -> Iterator[str]:
    """The texts, streamed through 🤗 Datasets.

    Raises:
        ImportError: 🤗 Datasets is not installed.
        ValueError: no text is named, a file is absent or of an unknown kind, or a text is not in the field.
    """
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
        from datasets.utils.logging import disable_progress_bar
    except ImportError:
        raise ImportError("reading text needs more packages: pip install 'dllm-kernels[train]'") from None
    disable_progress_bar()
    try:
        if _is_hub(data):
            rows: Iterable = load_dataset(data.text[0], data.subset, split=data.split, streaming=True)
        else:
            plain = Path(data.text[0]).suffix == ".txt"
            options = {"sample_by": data.unit} if plain else {}
            kind = "text" if plain else "json"
            rows = load_dataset(kind, data_files=list(data.text), split="train", streaming=True, **options)
        for row in rows:
            text = row.get("text" if not _is_hub(data) and plain else data.field)
            if not isinstance(text, str):
                raise ValueError(f"a row of {data.text[0]} has no text in the field {data.field!r}; it has {', '.join(row)}")
            yield text
    except (DatasetsError, OSError) as error:
        raise ValueError(f"{', '.join(data.text)} cannot be read: {str(error).splitlines()[0]}") from error


def _is_hub(data: DataSettings) -> bool:
    """Whether the text is a data set on the hub rather than files. Raises ValueError where it is neither."""
    if not data.text:
        raise ValueError(f"{data.windows} is not there, and data.text names nothing to make it from")
    suffixes = {Path(name).suffix for name in data.text}
    if suffixes <= {".jsonl", ".json"} or suffixes == {".txt"}:
        absent = [name for name in data.text if not Path(name).is_file()]
        if absent:
            raise ValueError(f"data.text names {absent[0]}, which is not a file")
        return False
    if len(data.text) > 1 or data.text[0].startswith((".", "/", "~")):
        raise ValueError("data.text must be .jsonl or .json files, .txt files, or one hub id")
    return True


def _recipe(data: DataSettings, seq_len: int, vocab_size: int, seed: int, encoder: Encoder) -> dict[str, Any]:
    """What the windows depend on."""
    if encoder.tokenizer is None:
        raise ValueError(f"the encoder {encoder.path} has no tokenizer")
    recipe = {name: getattr(data, name) for name in ("field", "unit", "subset", "split", "prompt_tokens", "held_out", "stride")}
    texts = [Path(name).name for name in data.text]
    return recipe | {
        "text": texts,
        "max_windows": data.max_windows,
        "seq_len": seq_len,
        "vocab_size": vocab_size,
        "seed": seed,
        "vocabulary": vocabulary_hash(encoder.tokenizer),
        "end_token": encoder.end_token,
    }


def _write(folder: Path, recipe: dict[str, Any], data: DataSettings, seq_len: int, seed: int, encoder: Encoder) -> None:
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    dtype = np.dtype(np.uint16 if recipe["vocab_size"] <= 2**16 else np.int32)
    generator, counts, texts = np.random.default_rng(seed), dict.fromkeys(PARTS, 0), hashlib.sha256()
    files = {part: (aside / f"{part}.bin").open("wb") for part in PARTS}
    try:
        for tokens in _tokenized(data, encoder, texts):
            part = PARTS[generator.random() < data.held_out]
            stride = data.stride or seq_len if part == "training" else seq_len
            rows = list(cut(tokens, seq_len, stride, data.prompt_tokens, generator))
            block = np.full((len(rows), 2 + seq_len + data.prompt_tokens), encoder.pad_token, dtype)
            for row, (window, prompt) in zip(block, rows, strict=True):
                row[:2] = len(window), len(prompt)
                row[2 : 2 + len(window)] = window
                row[2 + seq_len : 2 + seq_len + len(prompt)] = prompt
            if part == "training" and data.max_windows:
                block = block[: data.max_windows - counts[part]]
            files[part].write(block.tobytes())
            counts[part] += len(block)
            if data.max_windows and counts["training"] >= data.max_windows:
                break
    finally:
        for file in files.values():
            file.close()
    if not counts["training"] or (data.held_out and not counts["held_out"]):
        raise ValueError(
            f"the text gives {counts['training']} training and {counts['held_out']} held-out windows; "
            "give more text, smaller documents (data.unit) or another data.held_out"
        )
    about = {"recipe": recipe, "rows": counts, "dtype": dtype.name, "text_sha256": texts.hexdigest()}
    (aside / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside.rename(folder)


def _tokenized(data: DataSettings, encoder: Encoder, texts: "hashlib._Hash") -> Iterator[list[int]]:
    """The documents' tokens with an end token after each; empty ones are left out."""
    ends = [] if encoder.end_token is None else [encoder.end_token]
    together: list[str] = []

    def tokenized() -> Iterator[list[int]]:
        for tokens in encoder.tokenizer(together, add_special_tokens=False, verbose=False)["input_ids"]:
            if tokens:
                yield tokens + ends
        together.clear()

    for text in documents(data):
        texts.update(text.encode() + b"\0")
        together.append(text)
        if len(together) == _TOGETHER:
            yield from tokenized()
    if together:
        yield from tokenized()
