"""Runs the CUDA kernels on a CPU: tests/emulator compiled with csrc/kernels as plain C++, under sanitizers.

A kernel has a line in tests/emulator/calls.cpp; its struct is read from csrc/include/dllm/kernels.h and filled from the
dataclass that the op has. A run is a process of its own: what a kernel does wrong ends it and is raised here.
"""

import ctypes
import fcntl
import functools
import hashlib
import os
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
EMULATOR = Path(__file__).parent
INCLUDES = [EMULATOR, CSRC / "include", CSRC / "kernels"]
BUILDS = ROOT / "build" / "emulate"
RUNNER, DESCRIBE = "tests/emulator/runner.cpp", "tests/emulator/describe.cpp"
COMPILER = shutil.which("g++")
FLAGS = ["-std=c++20", "-O1", "-g1", "-fno-strict-aliasing", "-ftrivial-auto-var-init=pattern"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
CARDS = {"portable": (), "hopper": ("-DDLLM_HOPPER=true",)}
"""Flags for what every card has, and with what only Hopper has."""
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


class EmulationError(Exception):
    """What the emulated machine or a sanitizer reported."""


KERNELS_H = "csrc/include/dllm/kernels.h"
C_TYPES = {
    "bool": ctypes.c_bool,
    "float": ctypes.c_float,
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "Dtype": ctypes.c_int,
}
DTYPES = {torch.float32: 0, torch.bfloat16: 1}


@functools.cache
def structure(name: str, path: str = KERNELS_H) -> type[ctypes.Structure]:
    """The C++ struct that `DLLM_CALL(name, LIST)` makes of a list of fields (csrc/include/dllm/call.h)."""
    text = re.sub(r"//.*|/\*.*?\*/", "", (ROOT / path).read_text()).replace("\\\n", " ")
    lists = dict(re.findall(r"#define (\w+)\(X\) *(.*)", text))
    (chosen,) = re.findall(rf"DLLM_CALL\({name}, (\w+)\)", text)
    fields = []
    for kind, pointer, field_name in re.findall(r"X\((?:const )?(\w+)(\*?), (\w+)\)", expanded(lists, chosen)):
        fields.append((field_name, ctypes.c_void_p if pointer else C_TYPES.get(kind) or structure(kind, path)))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def expanded(lists: dict[str, str], name: str) -> str:
    """A list of fields with the lists that it includes."""
    return re.sub(r"(DLLM_\w+)\(X\)", lambda match: expanded(lists, match[1]), lists[name])


@dataclass(frozen=True)
class Call:
    """A call to run.

    Attributes:
        kernel: its launcher's name.
        values: an object with the fields of the launcher's struct as attributes: a dataclass of dllm_kernels/ops.
        struct: the struct's name, where the object's class has another.
        path: the file that has the struct's list of fields.
        changed: fields that are other than the object's.
    """

    kernel: str
    values: Any
    struct: str | None = None
    path: str = KERNELS_H
    changed: dict[str, Any] = field(default_factory=dict)

    def packed(self) -> tuple[bytes, dict[int, Tensor]]:
        """The struct with null pointers, and the tensors that stand for them, by offset."""
        memory, tensors = structure(self.struct or type(self.values).__name__, self.path)(), {}
        for name, kind in memory._fields_:
            value = self.changed[name] if name in self.changed else getattr(self.values, name)
            if isinstance(value, Tensor):
                tensors[getattr(type(memory), name).offset] = value
            elif issubclass(kind, ctypes.Structure):
                setattr(memory, name, kind(**{part: getattr(value, part) for part, _ in kind._fields_}))
            else:
                setattr(memory, name, DTYPES.get(value, value) if isinstance(value, torch.dtype) else value)
        return bytes(memory), tensors


def planted(path: str, old: str, new: str) -> dict[str, str]:
    """`{path: text}` of a file with a fault in it, for `build`. `old` must occur exactly once."""
    text = (ROOT / path).read_text()
    assert text.count(old) == 1, f"{path} has {text.count(old)} times: {old}"
    return {path: text.replace(old, new)}


def switchable(path: str, faults: dict[int, tuple[str, str]]) -> dict[str, str]:
    """`{path: text}` of a file with many faults in it, for `build`; a run switches one on, so that all are compiled once.

    Args:
        faults: by number, from 1 on, a piece of the file that occurs once, in which «» enclose an expression, or statements
            with their semicolon; and what stands there when the fault is on.
    """
    text = (ROOT / path).read_text()
    places: dict[tuple[int, int], list[tuple[int, str]]] = {}
    for number, (piece, new) in faults.items():
        before, old, after = re.split("[«»]", piece)
        assert text.count(before + old + after) == 1, f"{path} has {text.count(before + old + after)} times: {piece}"
        begin = text.index(before + old + after) + len(before)
        places.setdefault((begin, begin + len(old)), []).append((number, new))
    end = len(text)
    for (begin, stop), variants in sorted(places.items(), reverse=True):
        assert stop <= end, f"faults overlap in {path}: {text[begin:stop]}"
        end, otherwise = begin, text[begin:stop]
        statements = otherwise.endswith(";")
        for number, new in variants:
            on = f"dllm::emulate::fault == {number}"
            form = "if ({}) {{ {} }} else {{ {} }}" if statements else "({} ? ({}) : ({}))"
            otherwise = form.format(on, new, otherwise)
        text = text[:begin] + otherwise + text[stop:]
    return {path: text}


def with_faults(faults: dict[str, tuple[str, str, str]]) -> dict[str, str]:
    """Files, by path, that have all of these faults; a run switches one on by its number, which counts from 1.

    Args:
        faults: by name, the file's path, the piece of it and what stands there instead (`switchable`).
    """
    numbered = {path: {} for path, _, _ in faults.values()}
    for number, (path, piece, new) in enumerate(faults.values(), 1):
        numbered[path][number] = (piece, new)
    replaced = {}
    for path, of_file in numbered.items():
        replaced |= switchable(path, of_file)
    return replaced


def build(
    *paths: str, replaced: dict[str, str] | None = None, flags: tuple[str, ...] = (), sanitize: bool = True
) -> "Emulator":
    """The emulator with these kernels; compiled once, until a source changes.

    Args:
        paths: sources, from the root of the repository: "csrc/kernels/linear_skinny.cu".
        replaced: texts that stand for files, for sources as well as for headers of csrc/include.
        flags: more of the compiler's, for these sources, e.g. ("-DNAME=1",).
        sanitize: with AddressSanitizer and UndefinedBehaviorSanitizer.
    """
    common = [*FLAGS, *(SANITIZERS if sanitize else [])]
    machine = [path for path in _sources(EMULATOR, ".cpp") if path != DESCRIBE]
    objects = [_compiled(path, common, {}) for path in machine]
    objects += [_compiled(path, [*common, *flags], replaced or {}) for path in paths]
    return Emulator(_linked("runner", common, objects))


def describe() -> str:
    """What all kernels say that they have code for, as JSON (csrc/include/dllm/describe.h)."""
    common = [*FLAGS, *SANITIZERS]
    machine = [path for path in _sources(EMULATOR, ".cpp") if path != RUNNER]
    objects = [_compiled(path, common, {}) for path in (*machine, *_sources(CSRC / "kernels", ".cu"))]
    return subprocess.run([_linked("describe", common, objects)], capture_output=True, text=True, check=True).stdout


def _sources(folder: Path, suffix: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in folder.glob(f"*{suffix}"))


def _linked(name: str, flags: list[str], objects: list[Path]) -> Path:
    program = BUILDS / f"{name}-{_digest(*map(str, objects))}"
    return _made(program, lambda target: [COMPILER, *flags, "-o", target, *objects])


def _compiled(path: str, flags: list[str], replaced: dict[str, str]) -> Path:
    """An object file of a source, with what is replaced before all else."""
    text = replaced.get(path) or (ROOT / path).read_text()
    digest = _digest(path, text, *_headers(text, {}).values(), *flags, *replaced, *replaced.values())
    target = BUILDS / f"{Path(path).stem}-{digest}.o"
    folder = target.with_suffix("")

    def command(target: Path) -> list:
        for name, content in replaced.items():
            copy = folder / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(content)
        source = folder / path if path in replaced else ROOT / path
        folders = [folder / "csrc" / "include", *INCLUDES]
        # nvcc includes cuda_runtime.h before all else.
        includes = [*(f"-I{path}" for path in folders), "-include", "cuda_runtime.h"]
        return [COMPILER, *flags, *includes, "-x", "c++", "-c", source, "-o", target]

    return _made(target, command)


def _headers(text: str, found: dict[Path, str]) -> dict[Path, str]:
    """The texts of our headers that a source with this text includes, in the order in which they are met."""
    for name in re.findall(r'#include [<"](.+)[>"]', text):
        path = next((folder / name for folder in INCLUDES if (folder / name).exists()), None)
        if path and path not in found:
            found[path] = path.read_text()
            _headers(found[path], found)
    return found


def _made(path: Path, command) -> Path:
    """`path`, made by `command(target)` unless it is there; test processes side by side make it once."""
    BUILDS.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            target = path.with_suffix(".part")
            result = subprocess.run(command(target), capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            target.rename(path)
    return path


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]


class Emulator:
    """A compiled runner."""

    def __init__(self, runner: Path):
        self.runner = runner

    def run(self, *calls: Call, seed: int, fault: int = 0, timeout: float = 120) -> None:
        """Queues the calls on one stream and runs it; the tensors are then as the kernels left them.

        Args:
            fault: the number of the fault that is on, where `switchable` planted some; 0 for none.

        Raises:
            EmulationError: a fault that the machine or a sanitizer found, a deadlock, no end within `timeout` seconds.
        """
        storages: dict[int, tuple[int, torch.UntypedStorage]] = {}
        request = b""
        for call in calls:
            packed, tensors = call.packed()
            pointers = []
            for place, tensor in tensors.items():
                storage = tensor.untyped_storage()
                number, _ = storages.setdefault(storage.data_ptr(), (len(storages), storage))
                pointers.append(struct.pack("=3Q", place, number, tensor.data_ptr() - storage.data_ptr()))
            request += _text(call.kernel.encode()) + _text(packed) + _count(len(pointers)) + b"".join(pointers)
        memory = [_bytes_of(storage) for _, storage in storages.values()]
        buffers = b"".join(_text(bytes(view)) for view in memory)
        options = b"".join(map(_count, (seed, fault, len(memory))))
        request = options + buffers + _count(len(calls)) + request
        try:
            result = subprocess.run(
                [self.runner], input=request, capture_output=True, timeout=timeout, env=os.environ | ENVIRONMENT
            )
        except subprocess.TimeoutExpired:
            raise EmulationError(f"no end within {timeout} s") from None
        if result.returncode:
            raise EmulationError(result.stderr.decode() or f"exit status {result.returncode}")
        begin = 0
        for view in memory:
            view[:] = result.stdout[begin : begin + len(view)]
            begin += len(view)


def _bytes_of(storage: torch.UntypedStorage) -> memoryview:
    """The memory of a storage, to read and to write."""
    return memoryview((ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())).cast("B")


def _count(number: int) -> bytes:
    return struct.pack("=Q", number)


def _text(content: bytes) -> bytes:
    return _count(len(content)) + content
