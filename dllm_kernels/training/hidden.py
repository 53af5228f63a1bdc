"""The frozen encoder's hidden states of all windows: in memory, on disk, or computed when they are wanted.

On disk they stand in blocks of `BLOCK` rows, one safetensors file a block, named by a hash of what they depend on: the
encoder's identity, the tokens and the mask. A file is written aside and renamed, so what is there is whole. The folder never
holds more than its limit: the oldest blocks of other runs make room, and rows whose block has none are encoded anew.
"""

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dllm_kernels.model.encoder import Encoder

BLOCK = 256
DTYPE = torch.bfloat16
_HEADER = 4096
"""More bytes than a block's file holds besides its values."""
_BLOCK_FILE = re.compile(r"[0-9a-f]{64}\.safetensors(-[0-9]+)?")
"""Names of our blocks, whole or being written; any other file in the folder is somebody else's."""
_ABANDONED = 3600
"""Seconds after which a file that is being written is a killed run's."""

Rows = Callable[[Tensor | slice], tuple[Tensor, Tensor]]
"""Tokens [B, S] and mask [B, S] of rows by index."""


class Cache:
    """A folder of blocks under a limit, which all that a run keeps shares.

    Args:
        folder: made where it is not there.
        limit: bytes; 0 keeps nothing.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        self._reserved: set[str] = set()
        self._room = limit
        if limit:
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """Where a block is or would be."""
        return self.folder / f"{key}.safetensors"

    def reserve(self, keys: list[str], size: int) -> list[str]:
        """The keys, first come first served, that fit when each block takes `size` bytes."""
        kept = []
        for key in keys:
            if key not in self._reserved:
                if self._room < size + _HEADER:
                    break
                self._room -= size + _HEADER
                self._reserved.add(key)
            kept.append(key)
        return kept

    def make_room(self) -> None:
        """Deletes the oldest blocks of other runs as far as what is reserved needs their room."""
        wanted, room, others = {self.path(key) for key in self._reserved}, self._room, []
        for path in self.folder.glob("*.safetensors*") if self.limit else ():
            if not _BLOCK_FILE.fullmatch(path.name):
                continue
            # Other runs rename and delete here at the same time, and what they are writing is theirs.
            with contextlib.suppress(FileNotFoundError):
                about = path.stat()
                if path not in wanted and (path.suffix == ".safetensors" or about.st_mtime < time.time() - _ABANDONED):
                    others.append((about.st_mtime, about.st_size, path))
        for _, size, path in sorted(others, reverse=True):
            room -= size
            if room < 0:
                path.unlink(missing_ok=True)

    def write(self, key: str, hidden: Tensor) -> None:
        """Keeps a block."""
        aside = self.path(key).with_suffix(f".safetensors-{os.getpid()}")
        save_file({"hidden": hidden.contiguous()}, aside)
        aside.rename(self.path(key))

    def read(self, key: str) -> Tensor | None:
        """A block, through a memory map, or None where it is not there."""
        try:
            with safe_open(self.path(key), framework="pt") as file:
                return file.get_tensor("hidden")
        except FileNotFoundError:
            return None


class HiddenStates:
    """Hidden states [N, S, d_h] bfloat16 by row.

    Args:
        rows: gives tokens and masks.
        count: N.
        encoder: what computes them.
        cache: where blocks are kept.
        memory: bytes of the device's memory that they may fill; where all rows fit, they are held there.
        part: (rank, processes): which blocks this process computes where they are not on disk.
        wait: called when this process has written its blocks; returns when all have.
        progress: called after each block.
    """

    def __init__(
        self,
        rows: Rows,
        count: int,
        encoder: Encoder,
        cache: Cache,
        memory: int,
        part: tuple[int, int] = (0, 1),
        wait: Callable[[], None] = lambda: None,
        progress: Callable[[], None] = lambda: None,
    ):
        self._rows, self._encoder, self._cache = rows, encoder, cache
        tokens, _ = rows(slice(0, 1))
        self._block_bytes = BLOCK * tokens.shape[1] * encoder.hidden_dim * DTYPE.itemsize
        starts = range(0, count, BLOCK)
        identity = encoder.identity()
        self._keys = [self._key(identity, start) for start in starts]
        rank, processes = part
        self._on_disk = set(cache.reserve(self._keys, self._block_bytes))
        if rank == 0:
            cache.make_room()
        wait()
        self.resident = None
        if count * self._block_bytes // BLOCK <= memory:
            self.resident = torch.empty(count, tokens.shape[1], encoder.hidden_dim, dtype=DTYPE, device=encoder.device)
        for number, start in enumerate(starts):
            if (
                self._keys[number] in self._on_disk
                and number % processes == rank
                and not cache.path(self._keys[number]).exists()
            ):
                cache.write(self._keys[number], self._computed(slice(start, start + BLOCK)).cpu())
            progress()
        wait()
        if self.resident is not None:
            for number, start in enumerate(starts):
                block = self._block(number)
                self.resident[start : start + BLOCK] = block

    def __getitem__(self, index: Tensor) -> Tensor:
        """[B, S, d_h] bfloat16 of rows `index` [B] int64, on the encoder's device."""
        if self.resident is not None:
            return self.resident[index]
        parts: dict[int, Tensor] = {}
        for number in (index // BLOCK).unique().tolist():
            if self._keys[number] in self._on_disk:
                parts[number] = self._cache.read(self._keys[number])
        absent = torch.tensor([i for i in index.tolist() if parts.get(i // BLOCK) is None], dtype=torch.int64)
        computed = iter(self._computed(absent)) if len(absent) else iter(())
        rows = []
        for i in index.tolist():
            block = parts.get(i // BLOCK)
            rows.append(next(computed) if block is None else block[i % BLOCK].to(self._encoder.device))
        return torch.stack(rows)

    def _key(self, identity: str, start: int) -> str:
        tokens, mask = self._rows(slice(start, start + BLOCK))
        digest = hashlib.sha256(f"{identity} {DTYPE} {list(tokens.shape)}".encode())
        digest.update(tokens.masked_fill(~mask, 0).numpy().tobytes())
        digest.update(mask.numpy().tobytes())
        return digest.hexdigest()

    def _computed(self, index: Tensor | slice) -> Tensor:
        return self._encoder(*self._rows(index), batch_size=BLOCK).to(DTYPE)

    def _block(self, number: int) -> Tensor:
        block = self._cache.read(self._keys[number]) if self._keys[number] in self._on_disk else None
        return self._computed(slice(number * BLOCK, (number + 1) * BLOCK)) if block is None else block


def moments(states: HiddenStates, rows: Rows, count: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [d_h] float32 of each feature over the tokens of rows 0 to `count`, in two passes."""
    total, number = 0.0, 0
    chunks = [torch.arange(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]

    def values(chunk: Tensor) -> Tensor:
        _, mask = rows(chunk)
        return states[chunk.to(states._encoder.device)].double()[mask.to(states._encoder.device)]

    for chunk in chunks:
        tokens = values(chunk)
        total, number = total + tokens.sum(0), number + len(tokens)
    mean = total / number
    squares = sum((values(chunk) - mean).square().sum(0) for chunk in chunks)
    deviation = (squares / max(1, number)).sqrt()
    # A feature that never varies is left as it is, so that nothing is divided by zero.
    deviation = torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, 1.0)
    return mean.float(), deviation.float()
