"""Keywords of calls that hand them on, and dtypes by their names."""

import difflib
from collections.abc import Sequence
from typing import Any

import torch

ALIASES = {"torch_dtype": "dtype"}
"""What other libraries call an argument of ours; it is taken by either name."""

_MEANT = {"device_map": "device", "variant": "revision", "num_inference_steps": "num_steps"}
"""What other libraries have in place of an argument of ours."""

_DTYPES = {
    torch.bfloat16: ("bf16", "bfloat16"),
    torch.float16: ("fp16", "float16", "half"),
    torch.float32: ("fp32", "float32", "float"),
    torch.float64: ("fp64", "float64", "double"),
}


def keywords(call: str, given: dict[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """The keywords of a call, by our names.

    Args:
        call: its name in messages.
        given: what the caller wrote.
        known: all that it may.

    Raises:
        TypeError: a keyword is not known, or is given by two names; says which was meant.
    """
    ours = {}
    for name, value in given.items():
        own = ALIASES.get(name, name)
        if own not in known:
            meant = [_MEANT[name]] if _MEANT.get(name) in known else difflib.get_close_matches(name, known, 1)
            hint = f" (did you mean {meant[0]!r}?)" if meant else ""
            raise TypeError(f"{call} has no argument {name!r}{hint}; its arguments: {', '.join(known)}")
        if own in ours:
            raise TypeError(f"{call} is given {own!r} by two names")
        ours[own] = value
    return ours


def as_dtype(value: torch.dtype | str) -> torch.dtype:
    """A dtype, which may be given by a short name, as the command line has it, or by PyTorch's. Raises ValueError."""
    if isinstance(value, torch.dtype):
        return value
    name = str(value).removeprefix("torch.")
    for dtype, names in _DTYPES.items():
        if name in names:
            return dtype
    raise ValueError(f"dtype is {value!r}; it must be one of {', '.join(name for names in _DTYPES.values() for name in names)}")
