"""Rows of a measurement, and the JSON file of a group: written after every case, taken up again where it was left."""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

SCHEMA = "dllm-kernels bench 1"


@dataclass
class Row:
    """One contender at one case. What does not apply, or could not be measured, is None.

    Attributes:
        case: what was run, by name: preset, steps, batch, ... of a generation; preset, op, shape of an op.
        contender: who ran it.
        ms, p20_ms, p80_ms, rounds: median and fifths of the times, and of how many.
        ratio: speed relative to the baseline of the same case in the same run; of the baseline itself 1.
        tokens_per_s, gb_per_s, tflops: tokens generated, weights read, operations done in the median time.
        streaming_share: gb_per_s over what the machine streams, measured in the same run.
        floor_ms, floor_share: the roofline's floor of the case, and its share of the median time.
        launches: kernels, copies and fills that one run puts on a card.
        peak_memory_bytes: the most held for building and a first run, with the weights it reads.
        joules_per_token, watts: of the card, over a second of runs; of an op joules per launch are not told.
        max_error: the largest difference from float64, relative to the largest value there.
        token_agreement: share of tokens that are those of float64.
        first_s: the first run, with what it compiles and captures; building apart in build_s.
        sm_mhz: the median SM clock.
        unstable: why the case's times cannot be compared, or None.
        reason: why there is no time, or None.
        phases_ms: milliseconds of each phase of a generation.
    """

    case: dict[str, Any]
    contender: str
    ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    rounds: int | None = None
    ratio: float | None = None
    tokens_per_s: float | None = None
    gb_per_s: float | None = None
    tflops: float | None = None
    streaming_share: float | None = None
    floor_ms: float | None = None
    floor_share: float | None = None
    launches: int | None = None
    peak_memory_bytes: int | None = None
    joules_per_token: float | None = None
    watts: float | None = None
    max_error: float | None = None
    token_agreement: float | None = None
    build_s: float | None = None
    first_s: float | None = None
    sm_mhz: float | None = None
    unstable: str | None = None
    reason: str | None = None
    phases_ms: dict[str, float] | None = None


@dataclass
class Result:
    """A group's file.

    Attributes:
        group: its name.
        command: what was typed.
        machine: `Machine.describe`.
        reached: bytes and operations a second, measured before the group began.
        left_out: what was not measured here, and why, a sentence each.
        complete: whether every case was measured.
    """

    group: str
    command: str
    machine: dict[str, Any]
    reached: dict[str, float]
    day: str = field(default_factory=lambda: date.today().isoformat())
    baseline: str = ""
    left_out: list[str] = field(default_factory=list)
    complete: bool = False
    took_s: float = 0.0
    rows: list[Row] = field(default_factory=list)

    def has(self, case: dict[str, Any]) -> bool:
        """Whether the case is measured already."""
        return any(row.case == case for row in self.rows)

    def of(self, **wanted: Any) -> list[Row]:
        """The rows whose case has these values."""
        return [row for row in self.rows if wanted.items() <= row.case.items()]

    def fields(self) -> dict[str, Any]:
        """As JSON: with the schema, and without what is None in a row."""
        fields = {"schema": SCHEMA} | dataclasses.asdict(self)
        fields["rows"] = [{k: v for k, v in row.items() if v is not None} for row in fields["rows"]]
        return fields

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".partial")
        aside.write_text(json.dumps(self.fields(), indent=1) + "\n")
        aside.replace(path)


def check_place(path: Path) -> None:
    """Raises the OSError that writing a result to `path` would, before it is measured; makes its folder."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; a result is a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    aside.touch()
    aside.unlink()


def read(path: Path) -> Result:
    """The result in a file.

    Raises:
        ValueError: the file is not JSON, or not a result of this harness, or lacks fields; names the file.
        OSError: it cannot be read.
    """
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(fields, dict) or fields.pop("schema", None) != SCHEMA:
        raise ValueError(f"{path} is not a result of the benchmark harness ({SCHEMA!r})")
    try:
        return Result(**fields | {"rows": [Row(**row) for row in fields["rows"]]})
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} does not have the fields of {SCHEMA!r}: {error}") from error


def resumed(path: Path, new: Result) -> Result:
    """What a file holds of `new`'s measurement, where commit and machine are the same and the code is committed; else `new`."""
    if not path.exists():
        return new
    old = read(path)
    commit = new.machine["commit"]
    same = all(
        old.machine.get(key) == new.machine.get(key) for key in ("name", "device", "torch", "driver", "commit", "threads")
    )
    return old if same and commit is not None and not commit.endswith("-dirty") else new


def file_name(result: Result) -> str:
    """<date>-<machine>-<group>.json, with the machine's name as one word of letters, digits and dashes."""
    machine = re.sub(r"[^a-z0-9]+", "-", result.machine["name"].lower()).strip("-")
    return f"{result.day}-{machine}-{result.group}.json"
