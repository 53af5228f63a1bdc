"""Compiles Triton kernels for cards that this machine does not have, and reads what the compiler made of them.

Each kernels/<op>.py lists in `ahead_of_time()` the specializations that the presets launch; tests hold them to `violations`.
"""

import importlib
import pkgutil
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dllm_kernels import ops

SHARED_BYTES = {90: 232_448, 120: 101_376}
"""Shared memory that one block may have, in bytes, by compute capability (CUDA C++ Programming Guide, Compute Capabilities)."""


@dataclass(frozen=True)
class Specialization:
    """One way in which a kernel is launched.

    Attributes:
        name: for people, e.g. "attention_forward[bf16, head_dim=256, causal]".
        kernel: the function decorated with triton.jit.
        signature: the type of every argument by name: "*bf16", "i32", "fp32", "constexpr", ...
        constants: values of the constexpr arguments.
        num_warps: warps of a block.
        num_stages: depth of the software pipeline.
        capabilities: of the cards that it is launched on.
    """

    name: str
    kernel: triton.JITFunction
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    capabilities: tuple[int, ...] = tuple(SHARED_BYTES)


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a specialization.

    Attributes:
        shared_bytes: shared memory that a launch asks for, in bytes a block.
        registers: registers of a thread.
        stack: bytes of stack of a thread.
        local: bytes of local memory of a thread.
        sass_spills: LDL and STL instructions in the machine code.
        cubin: the binary.
    """

    shared_bytes: int
    registers: int
    stack: int
    local: int
    sass_spills: int
    cubin: bytes


def specializations() -> list[Specialization]:
    """What every op's Triton modules list in their `ahead_of_time()`."""
    names = [m.name for m in pkgutil.walk_packages(ops.__path__, f"{ops.__name__}.") if ".triton" in m.name]
    modules = [importlib.import_module(name) for name in names]
    return [s for module in modules if hasattr(module, "ahead_of_time") for s in module.ahead_of_time()]


def compile_for(specialization: Specialization, capability: int) -> Compiled:
    """Compiles for compute capability `capability` (90, 120), through Triton's cache.

    Pointers and integers count as divisible by 16, as in the presets, except integers on which the kernel is not specialized.
    So loads are wide and pipelined ones go through shared memory, which is the most that a launch can ask for.

    Raises:
        RuntimeError: this process runs Triton's interpreter, which has no compiler.
    """
    kernel = specialization.kernel
    if not isinstance(kernel, triton.JITFunction):
        raise RuntimeError("kernels cannot be compiled in a process that runs Triton's interpreter (TRITON_INTERPRET=1)")
    divisible = {
        (parameter.num,): [["tt.divisibility", 16]]
        for parameter in kernel.params
        if re.fullmatch(r"\*.*|[iu]\d+", specialization.signature[parameter.name])
        and not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
    }
    source = ASTSource(kernel, specialization.signature, specialization.constants, divisible)
    options = {
        "num_warps": specialization.num_warps,
        "num_stages": specialization.num_stages,
        "enable_fp_fusion": True,
    }
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return _inspect(compiled.asm["cubin"], compiled.metadata.shared)


def violations(compiled: Compiled, capability: int) -> list[str]:
    """A line for every way in which `compiled` breaks the budget of `capability`; empty if none."""
    limit = SHARED_BYTES[capability]
    checks = (
        (compiled.shared_bytes <= limit, f"{compiled.shared_bytes:,} B of shared memory, the limit is {limit:,}"),
        (compiled.stack == 0, f"{compiled.stack} B of stack"),
        (compiled.local == 0, f"{compiled.local} B of local memory"),
        (compiled.sass_spills == 0, f"{compiled.sass_spills} LDL and STL instructions"),
    )
    return [message for kept, message in checks if not kept]


def _inspect(cubin: bytes, shared_bytes: int) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = cuobjdump("-res-usage", path)
        sass = cuobjdump("-sass", path)
    registers, stack, local = (int(re.search(rf"\b{field}:(\d+)", usage)[1]) for field in ("REG", "STACK", "LOCAL"))
    return Compiled(shared_bytes, registers, stack, local, len(spill_instructions(sass)), cubin)


def cuobjdump(*arguments: str | Path) -> str:
    """What CUDA's cuobjdump, from Triton's wheel, prints."""
    command = [triton.knobs.nvidia.cuobjdump.path, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def spill_instructions(sass: str) -> list[str]:
    """The loads from and stores to local memory in a listing of machine code."""
    return re.findall(r"\b(?:LDL|STL)\b[^;]*;", sass)
