"""A kernel's call as one dataclass: PyTorch's custom op is made from its fields, and the kernel is filled from it by name.

The dataclass has the fields of the C++ struct in csrc/include/dllm/kernels.h, as fields or as properties (sizes that shapes
give). What the kernel writes is marked `written`: the op does not take it, its implementation allocates it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", int: "int", bool: "bool", str: "str"}
WRITTEN = {"written": True}
"""Metadata of a field that the kernel writes, None until the implementation allocates it."""


def _given(call_type: type) -> list[dataclasses.Field]:
    """The fields that an op takes."""
    return [field for field in dataclasses.fields(call_type) if not field.metadata]


def custom_op(
    name: str,
    call_type: type,
    run: Callable[[Any], Any],
    fake: Callable[[Any], Any],
    returns: str,
    mutates: tuple[str, ...] = (),
) -> Callable[[Any], Any]:
    """Registers dllm_kernels::`name`, whose arguments are the fields of `call_type`.

    Args:
        run: computes a call.
        fake: gives the shapes and dtypes of what `run` returns, for torch.compile.
        returns: of the schema, "Tensor" or "(Tensor, Tensor)".
        mutates: tensors that are written in place.

    Returns:
        A function that sends a call through PyTorch's dispatcher.
    """
    fields, letters = _given(call_type), iter("abcdefgh")

    def declared(field: dataclasses.Field) -> str:
        if dataclasses.is_dataclass(field.type):
            return f"int[] {field.name}"
        kind = _TYPES[field.type]
        kind = f"Tensor({next(letters)}!){kind.removeprefix('Tensor')}" if field.name in mutates else kind
        return f"{kind} {field.name}"

    def unpacked(arguments: tuple) -> Any:
        pairs = zip(fields, arguments, strict=True)
        return call_type(**{f.name: f.type(*value) if dataclasses.is_dataclass(f.type) else value for f, value in pairs})

    def op(*arguments):
        return run(unpacked(arguments))

    schema = f"({', '.join(declared(field) for field in fields)}) -> {returns}"
    defined = torch.library.custom_op(f"dllm_kernels::{name}", op, mutates_args=mutates, schema=schema)
    defined.register_fake(lambda *arguments: fake(unpacked(arguments)))

    def send(call: Any) -> Any:
        values = (getattr(call, field.name) for field in fields)
        return defined(*(list(dataclasses.astuple(v)) if dataclasses.is_dataclass(v) else v for v in values))

    return send


def none_as_empty(like: Tensor, tensor: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
    """What an op returns for a tensor that nobody asked for, since it always returns as many tensors."""
    return like.new_empty(0, dtype=dtype) if tensor is None else tensor
