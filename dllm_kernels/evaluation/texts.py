"""Text files, and the token windows of a training run, as documents; documents as windows of equal length."""

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

from dllm_kernels.model.tokenizer import TextTokenizer
from dllm_kernels.training.windows import ABOUT_FILE, read

_TOGETHER = 1000


def documents(path: Path) -> Iterator[str]:
    """The documents of a file: "text" of each line of a .jsonl, the paragraphs between blank lines of any other.

    Raises:
        ValueError: a line that is not JSON or has no text; names the file and the line.
        OSError: the file cannot be read.
    """
    with path.open(encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            for number, line in enumerate(file, 1):
                try:
                    text = json.loads(line)["text"]
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"{path}, line {number} is not a JSON object with a text: {error}") from error
                yield text
            return
        for blank, lines in itertools.groupby(file, lambda line: not line.strip()):
            if not blank:
                yield "".join(lines).strip()


def tokenised(path: Path, tokenizer: TextTokenizer, part: str) -> Iterator[list[int]]:
    """The tokens of each document of a file, without special ones, or of `part` of a folder of token windows.

    Args:
        part: "training" or "held_out", for a folder that `dllm-kernels train` made of the text it was given.
    """
    if path.is_dir():
        yield from _joined(path, tokenizer, part)
        return
    found = documents(path)
    # Some documents together, so that any file fits into memory.
    while some := list(itertools.islice(found, _TOGETHER)):
        yield from tokenizer.tokens(some)


def windows(path: Path, tokenizer: TextTokenizer, length: int, seed: int) -> list[list[int]]:
    """Stretches of exactly `length` held-out tokens that do not overlap and lie within one document, in a random order."""
    cut = [
        tokens[start : start + length]
        for tokens in tokenised(path, tokenizer, "held_out")
        for start in range(0, len(tokens) - length + 1, length)
    ]
    random.Random(seed).shuffle(cut)
    return cut


def _joined(folder: Path, tokenizer: TextTokenizer, part: str) -> Iterator[list[int]]:
    """Documents put together again from their windows, which follow each other, may overlap, and end with an end token."""
    try:
        recipe = json.loads((folder / ABOUT_FILE).read_text())["recipe"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} holds no token windows: {error}") from error
    if recipe["vocabulary"] != tokenizer.vocabulary_hash():
        raise ValueError(f"{folder} was made with another vocabulary than that of the model's tokenizer")
    stored, document = read(folder, recipe)[part], []
    stride = recipe.get("stride") if part == "training" else None
    known = 0 if stride is None else recipe["seq_len"] - stride
    if known and recipe["end_token"] is None:
        raise ValueError(f"the windows of {folder} overlap and have no end token, so where a document ends is not known")
    for first in range(0, len(stored), _TOGETHER):
        rows, masks = stored.tokens(slice(first, first + _TOGETHER))
        for row, mask in zip(rows, masks, strict=True):
            document += row[mask][known if document else 0 :].tolist()
            if not mask.all() or document[-1] == recipe["end_token"]:
                yield [token for token in document if token != recipe["end_token"]]
                document = []
    if document:
        yield document
