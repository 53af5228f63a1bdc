"""What a caller gives, checked in one sentence: numbers here, files and names under `user_input`."""

import operator
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError


class BadInput(Exception):
    """Input that does not fit; the message is one sentence."""


@contextmanager
def user_input() -> Iterator[None]:
    """Around what checks or reads input: there these exceptions say what does not fit; elsewhere they are bugs."""
    try:
        yield
    except (ValueError, OSError, MemoryError, SafetensorError, torch.OutOfMemoryError) as error:
        raise BadInput(str(error) or type(error).__name__) from error


def whole_number(name: str, value: object, least: int, most: int | None = None) -> int:
    """`value`, of whatever integer type, as an int.

    Raises:
        ValueError: it is no integer, or not from `least` to `most`.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} is {value!r}; it must be a whole number {allowed}")
    return number


def real_number(name: str, value: object, least: float | None = None) -> float:
    """`value` as a float, finite in float32.

    Raises:
        ValueError: it is no number, less than `least`, NaN, or more than float32 can hold.
    """
    try:
        number = float("nan") if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not abs(number) <= torch.finfo(torch.float32).max or (least is not None and number < least):
        allowed = "" if least is None else f" of at least {least:g}"
        raise ValueError(f"{name} is {value!r}; it must be a finite number{allowed}")
    return number
