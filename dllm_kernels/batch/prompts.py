"""Prompts from a file or a dataset, read a shard at a time, so that no process ever holds more than a shard of them."""

import hashlib
import json
from pathlib import Path

import numpy as np

STRIDE = 1024
COLUMNS = ("prompt", "text")


class Prompts:
    """Prompts in the order of their source; prompt i is that of sample first + i.

    Args:
        path: a .jsonl file of objects, a .parquet file, a folder that `datasets.Dataset.save_to_disk` wrote, or a dataset as
            the hub has it, by its hub id OWNER/NAME or its folder here; :SPLIT may follow, and "train" is read where it does
            not. The field "prompt" is read, or "text" where there is no such field.

    Attributes:
        count: how many there are.
        digest: SHA-256 of the file, or the dataset's fingerprint: what a resumed run compares.

    Raises:
        ValueError, FileNotFoundError: one sentence that names what does not fit, and the line where it is a line.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        if Path(path).suffix in (".jsonl", ".json"):
            self._open_lines()
        elif Path(path).suffix == ".parquet":
            self._open_parquet()
        else:
            self._open_dataset()
        if self.count == 0:
            raise ValueError(f"{self.path} holds no prompts")

    def read(self, first: int, count: int) -> list[str]:
        """Prompts first to first + count - 1."""
        return self._read(first, count)

    def place(self, number: int) -> str:
        """Where prompt `number` stands, for a sentence."""
        return f"line {number + 1} of {self.path}" if self._read == self._read_lines else f"row {number} of {self.path}"

    # Lines of JSON: the byte where every STRIDE-th line begins is kept.

    def _open_lines(self) -> None:
        digest, offsets, position, self.column = hashlib.sha256(), [], 0, None
        number = -1
        with open(self.path, "rb") as file:
            for number, line in enumerate(file):
                digest.update(line)
                if number % STRIDE == 0:
                    offsets.append(position)
                position += len(line)
                self._prompt_of(line, number)
        self.count, self.digest, self._offsets = number + 1, digest.hexdigest(), np.array(offsets, dtype=np.int64)
        self._read = self._read_lines

    def _prompt_of(self, line: bytes, number: int) -> str:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number + 1} of {self.path} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number + 1} of {self.path} is not a JSON object")
        if self.column is None:
            self.column = self._column(row)
        prompt = row.get(self.column)
        if not isinstance(prompt, str):
            raise ValueError(f"line {number + 1} of {self.path} has no text in its field {self.column!r}")
        if not prompt.strip():
            raise ValueError(f"line {number + 1} of {self.path} has an empty prompt")
        return prompt

    def _read_lines(self, first: int, count: int) -> list[str]:
        start = first - first % STRIDE
        with open(self.path, "rb") as file:
            file.seek(self._offsets[start // STRIDE])
            for _ in range(start, first):
                file.readline()
            return [self._prompt_of(file.readline(), number) for number in range(first, first + count)]

    # Parquet: only the row groups that hold the rows are read.

    def _open_parquet(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(self.path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{self.path} is no Parquet file: {error}") from error
        with file, open(self.path, "rb") as content:
            self.column = self._column(file.schema_arrow.names)
            kind = file.schema_arrow.field(self.column).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise ValueError(f"the column {self.column!r} of {self.path} holds {kind}, not text")
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            self.digest = hashlib.file_digest(content, "sha256").hexdigest()
        self._starts = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
        self.count = int(self._starts[-1])
        self._read = self._read_parquet

    def _read_parquet(self, first: int, count: int) -> list[str]:
        import pyarrow.parquet as pq

        groups = range(
            int(np.searchsorted(self._starts, first, "right")) - 1, int(np.searchsorted(self._starts, first + count, "left"))
        )
        with pq.ParquetFile(self.path) as file:
            rows = file.read_row_groups(list(groups), columns=[self.column])[self.column]
        return self._texts(rows.slice(first - int(self._starts[groups[0]]), count).to_pylist(), first)

    # A Hugging Face dataset: mapped into memory from the disk, by the library.

    def _open_dataset(self) -> None:
        try:
            import datasets
        except ImportError:
            raise ValueError("prompts of a dataset need datasets: pip install 'dllm-kernels[scale]'") from None
        name, _, split = self.path.partition(":")
        if not name.strip("/"):
            # Nothing, or the root: datasets looks for a name in it.
            raise ValueError(f"prompts is {self.path!r}; it must be a .jsonl or .parquet file, a dataset's folder or hub id")
        if any(Path(self.path, written).is_file() for written in ("state.json", "dataset_dict.json")):
            self._dataset = datasets.load_from_disk(self.path)
        elif Path(name).is_dir() or (name.count("/") == 1 and not name.startswith((".", "/", "~"))):
            try:
                self._dataset = datasets.load_dataset(name, split=split or "train")
            except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
                where = "is no dataset" if Path(name).is_dir() else "is no file or folder here, and the hub does not give it"
                raise ValueError(f"{self.path} {where}: {error}") from error
        else:
            raise FileNotFoundError(f"{self.path} is no .jsonl or .parquet file, no dataset's folder and no hub id")
        if not isinstance(self._dataset, datasets.Dataset):
            raise ValueError(f"{self.path} holds the splits {', '.join(self._dataset)}; name the folder of one")
        self.column = self._column(self._dataset.column_names)
        if self._dataset.features[self.column].dtype not in ("string", "large_string"):
            raise ValueError(f"the column {self.column!r} of {self.path} is not text")
        self.count, self.digest = len(self._dataset), self._dataset._fingerprint
        self._read = self._read_dataset

    def _read_dataset(self, first: int, count: int) -> list[str]:
        return self._texts(list(self._dataset[first : first + count][self.column]), first)

    def _texts(self, prompts: list[str | None], first: int) -> list[str]:
        for number, prompt in enumerate(prompts, first):
            if prompt is None or not prompt.strip():
                raise ValueError(f"row {number} of {self.path} has no text in its column {self.column!r}")
        return prompts

    def _column(self, names) -> str:
        found = next((column for column in COLUMNS if column in names), None)
        if found is None:
            raise ValueError(f"{self.path} has no field {' or '.join(map(repr, COLUMNS))}; it has {', '.join(names) or 'none'}")
        return found
