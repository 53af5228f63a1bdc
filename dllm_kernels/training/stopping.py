"""How a signal ends a run: it is heard here, and the loop stops after the step that runs."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """SIGTERM or SIGINT ended a run after a step; the message says where its checkpoint is.

    Attributes:
        signal: the signal's number.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects the first SIGTERM or SIGINT, after which both do again what they did before.

    Only the main thread may handle signals; elsewhere none is collected.
    """
    came, before = [], {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def hear(number: int, frame: FrameType | None) -> None:
        came.append(number)
        restore()

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        restore()
