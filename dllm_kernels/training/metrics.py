"""What a run says of itself: metrics.jsonl, from which curves can be drawn, and Accelerate's trackers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Metrics:
    """A file of one JSON object a line, each with its step.

    Args:
        path: the file.
        start: lines of later steps, which a resumed run writes again, are taken out.
        also: called with each line's object.
    """

    def __init__(self, path: Path, start: int, also: Callable[[dict[str, Any]], None]):
        self._path, self._also = path, also
        kept = [line for line in path.read_text().splitlines() if _step(line) <= start] if path.exists() and start else []
        aside = path.with_name(f".{path.name}.partial")
        aside.write_text("".join(f"{line}\n" for line in kept))
        aside.replace(path)

    def write(self, values: dict[str, Any]) -> None:
        """Appends a line."""
        with self._path.open("a") as file:
            file.write(json.dumps(values) + "\n")
        self._also(values)


class Mean:
    """Means of scalars that stay on the device until they are asked for."""

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, values: dict[str, Tensor]) -> None:
        """Takes in a step's values."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().double()
        self._count += 1

    def take(self, over_processes: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means since the last call, over the processes too; the one place where the host waits for the device."""
        names, sums = list(self._sums), torch.stack(list(self._sums.values())) / max(1, self._count)
        self._sums, self._count = {}, 0
        return dict(zip(names, over_processes(sums).tolist(), strict=True))


def _step(line: str) -> float:
    """The step of a line; none of one that a kill cut short."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")
