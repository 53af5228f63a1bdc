"""Where samples go: a folder of Parquet files, one a shard, with a manifest that says what made them."""

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dllm_kernels.batch.shards import Shard

MANIFEST, ASIDE = "manifest.json", ".aside"


class ParquetFolder:
    """Shards of one job in a folder that every worker sees under the same path.

    A file is written aside, flushed to the disk and renamed, so a listed one is whole. Columns: sample (int64, k), tokens
    (list of int32), and where there are some, prompt and text (string). A row group is one batch, so that writing holds no
    more than that. The same rows give the same bytes.

    Raises:
        ValueError: pyarrow is not installed.
    """

    def __init__(self, folder: str | Path):
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise ValueError("samples are written with pyarrow: pip install 'dllm-kernels[scale]'") from None
        self.folder = Path(folder).absolute()

    @property
    def claimed(self) -> bool:
        """Whether the folder is some job's. Raises ValueError where it holds files and no manifest."""
        if (self.folder / MANIFEST).exists():
            return True
        names = self._names() if self.folder.exists() else ()
        stray = next((name for name in names if name not in (ASIDE, MANIFEST)), None)
        if stray is not None:
            raise ValueError(f"{self.folder} has no {MANIFEST} and is not empty (it holds {stray}); name a new folder")
        return False

    def claim(self, manifest: dict[str, Any]) -> None:
        """Makes the folder this job's, or finds that it is already.

        Raises:
            ValueError: the folder belongs to another job, naming what differs, or holds files but no manifest.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / MANIFEST
        if not self.claimed:
            (self.folder / ASIDE).mkdir(exist_ok=True)
            aside = self.folder / ASIDE / f"manifest-{uuid.uuid4().hex}"
            _write(aside, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
            try:
                # A link fails where the name is taken, so of two drivers that start at once one makes the manifest.
                os.link(aside, path)
            except FileExistsError:
                pass
            finally:
                aside.unlink(missing_ok=True)
            _flush(self.folder)
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        wanted = json.loads(json.dumps(manifest))
        for key in sorted(wanted.keys() | found.keys()):
            if wanted.get(key) != found.get(key):
                raise ValueError(
                    f"{self.folder} was begun with {key} {_short(found.get(key))}, and this run has {_short(wanted.get(key))}; "
                    f"name another folder"
                )

    def listed(self) -> Iterator[str]:
        """Names of the whole files."""
        return (name for name in self._names() if name.endswith(".parquet"))

    def has(self, shard: Shard) -> bool:
        """Whether the shard is there, whole."""
        return (self.folder / shard.name).exists()

    def write(self, shard: Shard, batches: Iterable[dict[str, Any]]) -> None:
        """Writes a shard: all of it or nothing. `batches` are columns by name; "tokens" is an int32 array [rows, T]."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        (self.folder / ASIDE).mkdir(parents=True, exist_ok=True)
        aside = self.folder / ASIDE / f"{shard.name}-{uuid.uuid4().hex}"
        writer, rows = None, 0
        try:
            for columns in batches:
                tokens = columns["tokens"]
                offsets = pa.array(range(0, tokens.size + 1, tokens.shape[1]), pa.int32())
                arrays = {name: pa.array(values) for name, values in columns.items() if name != "tokens"}
                arrays["tokens"] = pa.ListArray.from_arrays(offsets, pa.array(tokens.reshape(-1)))
                table = pa.table(arrays)
                # Tokens of a large vocabulary repeat too seldom for a dictionary.
                writer = writer or pq.ParquetWriter(aside, table.schema, compression="zstd", use_dictionary=False)
                writer.write_table(table)
                rows += len(table)
            writer.close()
            if rows != shard.count:
                raise RuntimeError(f"{shard.name} got {rows} rows")
            try:
                _flush(aside)
                os.rename(aside, self.folder / shard.name)
            except FileNotFoundError:
                # Another driver may have made this shard, finished the job and swept.
                if not self.has(shard):
                    raise
            _flush(self.folder)
        finally:
            if writer is not None:
                writer.close()
            aside.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Removes what killed workers left aside. For a job that is complete."""
        shutil.rmtree(self.folder / ASIDE, ignore_errors=True)

    def _names(self) -> Iterator[str]:
        with os.scandir(self.folder) as entries:
            for entry in entries:
                yield entry.name


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    _flush(path)


def _flush(path: Path) -> None:
    """Puts a file's content, or a folder's names, on the disk, so that a power cut cannot leave a listed file empty."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
