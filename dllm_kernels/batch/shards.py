"""Which samples a file holds, and what is still to be made: the rule that lets a run be killed anywhere and go on.

A job of samples `first` to `first + count - 1` is cut into shards of `size` consecutive samples. A shard's file name follows
from its samples, and a file has that name only when it is whole. So what is done is what is listed, and nothing else says so:
no journal, no driver's memory. Two workers that make the same shard write the same content under the same name.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shard:
    """Samples first to first + count - 1."""

    first: int
    count: int

    @property
    def name(self) -> str:
        """The name of its file, which sorts by sample."""
        return f"samples-{self.first:015d}-{self.first + self.count - 1:015d}.parquet"

    def batches(self, batch_size: int) -> Iterator[tuple[int, int]]:
        """(first sample, samples kept) of each call of a sampler of `batch_size`; no batch crosses a shard."""
        for offset in range(0, self.count, batch_size):
            yield self.first + offset, min(batch_size, self.count - offset)


@dataclass(frozen=True)
class Shards:
    """A job's shards, in order; the last may be short.

    Raises:
        ValueError: a number does not fit; one sentence.
    """

    first: int
    count: int
    size: int

    def __post_init__(self):
        for name, least in (("first", 0), ("count", 1), ("size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.first + self.count > 10**15:
            raise ValueError(f"the last sample would be {self.first + self.count - 1}; file names hold 15 digits")

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def __getitem__(self, index: int) -> Shard:
        if not 0 <= index < len(self):
            raise IndexError(index)
        offset = index * self.size
        return Shard(self.first + offset, min(self.size, self.count - offset))

    def index(self, name: str) -> int | None:
        """The number of the shard whose file is called `name`, or None where it is no shard's."""
        digits = name.removeprefix("samples-")[:15]
        if not digits.isascii() or not digits.isdigit():
            return None
        index, rest = divmod(int(digits) - self.first, self.size)
        return index if rest == 0 and 0 <= index < len(self) and self[index].name == name else None

    def samples(self, indices: np.ndarray) -> int:
        """Samples of the shards `indices`, without repetition."""
        short = len(self) * self.size - self.count
        return len(indices) * self.size - (short if len(self) - 1 in indices else 0)

    def pending(self, listed: Iterable[str]) -> np.ndarray:
        """Numbers of the shards that no name in `listed` stands for, ascending, int64; a byte and then 8 for each shard."""
        missing = np.ones(len(self), dtype=bool)
        for name in listed:
            index = self.index(name)
            if index is not None:
                missing[index] = False
        return np.flatnonzero(missing)
