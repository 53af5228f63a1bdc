"""Checkpoints of a run, through torch.distributed.checkpoint: the same files for one process, DDP and FSDP2.

A checkpoint is a folder that is written aside and renamed, so a folder that is there is whole, whenever the run was killed.
"""

import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed
import torch.distributed.checkpoint as dcp


class Checkpoints:
    """The newest checkpoints of a run.

    Args:
        folder: holds one folder a checkpoint.
        keep: how many stay.
        main: whether this process renames and deletes.
        wait: returns when every process has called it.
    """

    def __init__(self, folder: Path, keep: int, main: bool = True, wait: Callable[[], None] = lambda: None):
        self.folder, self._keep, self._main, self._wait = folder, keep, main, wait

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, in order."""
        names = re.compile(r"step-([0-9]{8,})")
        steps = (
            int(found[1]) for path in self.folder.glob("step-*") if (found := names.fullmatch(path.name)) and path.is_dir()
        )
        # What a person copied here under another name is theirs.
        return sorted(step for step in steps if self._path(step).is_dir())

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Writes a checkpoint, then deletes what is too old."""
        aside = self.folder / f".partial-{step}"
        if self._main:
            for left in self.folder.glob(".partial-*"):
                if re.fullmatch(r"\.partial-[0-9]+", left.name):
                    shutil.rmtree(left)
            aside.mkdir(parents=True)
        self._wait()
        with _alone() as alone:
            dcp.save(state, checkpoint_id=aside, no_dist=alone)
        self._wait()
        if self._main:
            shutil.rmtree(self._path(step), ignore_errors=True)
            aside.rename(self._path(step))
            for old in self.steps()[: -self._keep]:
                shutil.rmtree(self._path(old))
        self._wait()

    def load(self, step: int, state: dict[str, Any]) -> None:
        """Fills the tensors of `state` from the checkpoint of `step`.

        Raises:
            ValueError: it does not fit.
        """
        try:
            with _alone() as alone:
                dcp.load(state, checkpoint_id=self._path(step), no_dist=alone)
        except (dcp.api.CheckpointException, RuntimeError, ValueError) as error:
            raise ValueError(f"{self._path(step)} does not fit this run: {' '.join(str(error).split())[:300]}") from error

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"


@contextmanager
def _alone() -> Iterator[bool]:
    """Whether this is the only process, which PyTorch warns of although it is told so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield not torch.distributed.is_initialized()
