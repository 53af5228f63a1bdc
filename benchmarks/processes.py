"""Processes that Ray started for an experiment or a test, known by a variable that they inherit, so that no other is harmed."""

import os
import uuid
from pathlib import Path

_NAME = "DLLM_KERNELS_EXPERIMENT"


def mark() -> str:
    """Marks whatever this process starts from now on; gives the mark."""
    value = uuid.uuid4().hex
    os.environ[_NAME] = value
    return f"{_NAME}={value}"


def marked(title: str, mark: str) -> list[int]:
    """Ids of the processes with `title` in their command line that inherited `mark`."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if (
                title.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
                and mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
            ):
                found.append(int(pid))
        except OSError:
            continue
    return found
