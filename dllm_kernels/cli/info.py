"""The command `info`."""

import platform
from typing import Annotated

import torch
import typer

from dllm_kernels import __version__
from dllm_kernels.cli import output
from dllm_kernels.cli.options import AsJson, Device
from dllm_kernels.cli.output import emit, machine_fields
from dllm_kernels.inference.load import device_for
from dllm_kernels.ops import extension
from dllm_kernels.ops.dispatch import explain
from dllm_kernels.utils.device import memory_size
from dllm_kernels.utils.machine import version
from dllm_kernels.utils.validation import user_input


def info(
    device: Device = None,
    kernels: Annotated[bool, typer.Option("--kernels", help="what the compiler made of each CUDA kernel instead")] = False,
    as_json: AsJson = False,
) -> None:
    """What the machine is, what is installed, and which implementation serves each op, and why."""
    with user_input():
        if kernels:
            from dllm_kernels.bench.machine_code import built  # Triton's wheel has the disassembler

            emit({"kernels": [kernel.summary() for kernel in built()]}, as_json, output.compiled_kernels)
            return
        on = device_for(device, "auto", None)
    try:
        built, reason = list(extension.architectures()), None
    except RuntimeError as error:
        built, reason = [], str(error)
    result = {
        **machine_fields(on),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(on))) if on.type == "cuda" else None,
        "memory_bytes": memory_size(on),
        "dllm_kernels": __version__,
        "python": platform.python_version(),
        "triton": version("triton"),
        "cuda": torch.version.cuda,
        "cuda_kernels": built,
        "cuda_kernels_unsupported_reason": reason,
        "ops": [dict(zip(("op", "backend", "why"), row, strict=True)) for row in explain(on)],
    }
    emit(result, as_json, output.information)
