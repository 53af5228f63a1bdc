"""What the compiler made of the CUDA kernels: registers, shared memory, and the instructions that the source meant."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm_kernels.ops import extension
from dllm_kernels.ops.ahead_of_time import cuobjdump, spill_instructions

INSTRUCTIONS = {
    "HMMA": r"\bHMMA\b",
    "HGMMA": r"\bHGMMA\b",
    "UBLKCP": r"\bUBLKCP\b",
    "UTMALDG": r"\bUTMALDG\b",
    "LDGSTS.128": r"\bLDGSTS\S*\.128\b",
    "LDSM.4": r"\bLDSM\.16\.M88\.4\b",
    "LDS.128": r"\bLDS\.128\b",
    "LDG.128": r"\bLDG\S*\.128\b",
}
"""The instructions that the sources mean, as regular expressions of SASS: matrix products by a warp and by four, bulk and
tensor copies, copies of 16 bytes, loads of four tiles and of 16 bytes."""


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel.

    Attributes:
        architecture: e.g. "sm_90a".
        name: as the linker knows it.
        usage: registers a thread (REG), bytes of stack (STACK), local memory (LOCAL) and so on, as cuobjdump has them.
        sass: the machine code.
    """

    architecture: str
    name: str
    usage: dict[str, int]
    sass: str

    @property
    def title(self) -> str:
        """Its name for people: the function and its template's numbers and types, e.g. "linear_skinny<64, 256, 32, 1, 8>"."""
        function = re.search(r"\d([a-z][a-z_]*)_kernel", self.name)
        arguments = re.findall(r"L[a-z](\d+)E|(?<=I|E)(f)(?=[fLE1-9])|\d+(__nv_bfloat16)", self.name[function.end() :])
        names = (number or ("float" if wide else "bf16") for number, wide, _ in arguments)
        return f"{function[1]}<{', '.join(names)}>" if arguments else function[1]

    def defects(self) -> list[str]:
        """How it breaks the rule: no stack, no local memory, no spills."""
        memory = [f"{field}:{self.usage[field]}" for field in ("STACK", "LOCAL") if self.usage[field]]
        return memory + spill_instructions(self.sass)

    @property
    def empty(self) -> bool:
        """Whether nothing is left of it: the source has it for other architectures only."""
        return set(re.findall(r"/\*[0-9a-f]{4}\*/\s+(\w+)", self.sass)) <= {"LDC", "EXIT", "BRA", "NOP"}

    def count(self, instruction: str) -> int:
        """How many of one of INSTRUCTIONS its code has."""
        return len(re.findall(INSTRUCTIONS[instruction], self.sass))

    def summary(self) -> dict[str, Any]:
        """The row of `dllm-kernels info --kernels`."""
        return {
            "kernel": self.title,
            "architecture": self.architecture,
            "registers": self.usage["REG"],
            "stack_bytes": self.usage["STACK"],
            "local_bytes": self.usage["LOCAL"],
            "spills": len(spill_instructions(self.sass)),
            "instructions": {name: self.count(name) for name in INSTRUCTIONS},
        }


def kernels(binary: Path) -> list[Kernel]:
    """Every kernel in a cubin, an object file or an extension module that is not empty."""
    usage, sass, architecture = {}, {}, ""
    for found in re.finditer(r"arch = (\S+)|Function (\S+):\s+(REG:.*)", cuobjdump("-res-usage", binary)):
        architecture = found[1] or architecture
        if found[2]:
            usage[architecture, found[2]] = {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", found[3])}
    # An architecture may be announced by more than one line; the listing of a function reaches to the next announcement.
    listing = re.split(r"arch = (\S+)|Function : (\S+)", cuobjdump("-sass", binary))
    for new_architecture, name, text in zip(listing[1::3], listing[2::3], listing[3::3], strict=True):
        architecture = new_architecture or architecture
        if name:
            sass[architecture, name] = text
    if usage.keys() != sass.keys():
        raise RuntimeError(f"{binary}: cuobjdump lists other kernels in its resource usage than in its machine code")
    found = (Kernel(*key, usage[key], sass[key]) for key in sorted(usage))
    return [kernel for kernel in found if not kernel.empty]


def built() -> list[Kernel]:
    """The kernels of the extension.

    Raises:
        ValueError: there is none, with the reason.
    """
    try:
        module = extension.load()
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    return kernels(Path(module.__file__))
