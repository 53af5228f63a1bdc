"""What a caller has switched in PyTorch, for its thread or for the process, kept out of our own computations.

`unaffected` is the one place that does so. Loading, packing, sampling and the frozen encoder run inside it.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.overrides import _pop_mode, _push_mode

_C = torch._C
_PRECISIONS = (("generic", "all"), ("cuda", "all"), ("cuda", "matmul"), ("mkldnn", "all"), ("mkldnn", "matmul"))
"""Where PyTorch keeps the precision of float32 products, the more general first: the later ones inherit from it."""


def _legacy_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        # PyTorch refuses to name what was set through its newer interface, which _PRECISIONS covers.
        return "highest"


def _set_deterministic(mode: tuple[bool, bool]) -> None:
    _C._set_deterministic_algorithms(mode[0], warn_only=mode[1])


def _deterministic() -> tuple[bool, bool]:
    return _C._get_deterministic_algorithms(), _C._get_deterministic_algorithms_warn_only()


Switch = tuple[Callable[[], Any], Callable[[Any], None], tuple]
"""(get, set, values) of a switch of the process. Ours is the first of the values; another of them does the same."""


def _switches(*names_and_values: tuple[str, Any]) -> Iterator[Switch]:
    """Switches of torch._C by the names of their functions; those that this PyTorch does not have are left out."""
    for name, value in names_and_values:
        get, put = getattr(_C, f"_get_{name}", None), getattr(_C, f"_set_{name}", None)
        if get and put:
            yield get, put, (value,)


def _cublas_reductions() -> Iterator[Switch]:
    """Reductions below float32 within cuBLAS: allowed or not; newer versions also say whether K may be split."""
    for dtype in ("fp16", "bf16"):
        for get, put, _ in _switches((f"cublas_allow_{dtype}_reduced_precision_reduction", None)):
            if isinstance(get(), tuple):
                yield get, lambda value, put=put: put(*value), ((True, True),)
            else:
                yield get, put, (True,)


def _precisions() -> Iterator[Switch]:
    for key in _PRECISIONS if hasattr(_C, "_get_fp32_precision_getter") else ():
        yield partial(_C._get_fp32_precision_getter, *key), partial(_C._set_fp32_precision_setter, *key), ("none", "ieee")


_cuda = torch.backends.cuda
PROCESS: tuple[Switch, ...] = (
    (_legacy_precision, torch.set_float32_matmul_precision, ("highest",)),
    *_precisions(),
    (_deterministic, _set_deterministic, ((False, False), (False, True))),
    (_cuda.flash_sdp_enabled, _cuda.enable_flash_sdp, (True,)),
    (_cuda.mem_efficient_sdp_enabled, _cuda.enable_mem_efficient_sdp, (True,)),
    (_cuda.math_sdp_enabled, _cuda.enable_math_sdp, (True,)),
    (_cuda.cudnn_sdp_enabled, _cuda.enable_cudnn_sdp, (True,)),
    (_cuda.fp16_bf16_reduction_math_sdp_allowed, _cuda.allow_fp16_bf16_reduction_math_sdp, (False,)),
    *_switches(
        ("mkldnn_enabled", True),
        ("mkldnn_deterministic", False),
        ("cublas_allow_fp16_accumulation", False),
    ),
    *(
        (get, put, (get(),))
        for get, put, _ in _switches(("sdp_priority_order", None), ("cpu_allow_fp16_reduced_precision_reduction", None))
    ),
    *_cublas_reductions(),
)
"""The switches of the process that change what is computed."""


class _Process:
    """The process's switches at PyTorch's own defaults while at least one thread computes; then as they were."""

    def __init__(self):
        self._lock, self._threads, self._changed = threading.Lock(), 0, []

    def __enter__(self):
        with self._lock:
            self._threads += 1
            if self._threads == 1:
                for get, put, values in PROCESS:
                    if (found := get()) not in values:
                        put(values[0])
                        self._changed.append((get, put, values[0], found))

    def __exit__(self, *_):
        with self._lock:
            self._threads -= 1
            while self._threads == 0 and self._changed:
                get, put, ours, before = self._changed.pop()
                # What someone has set meanwhile stays.
                if get() == ours:
                    put(before)


_process = _Process()


@contextmanager
def unaffected(process: bool = True) -> Iterator[None]:
    """Around what must not depend on how its caller has switched PyTorch; also a decorator.

    Args:
        process: whether the process's switches matter too; not to a captured graph, which is the same whatever they are.

    Inside, this thread has no autocast, gradients, inference mode, default device, modes of functions or of dispatch, and it
    keeps denormal numbers. The process has the defaults of PROCESS until no thread is inside. The default dtype stays, since
    what runs inside names its dtypes. So does the number of threads: on a CPU it changes the last bits of a library's sums.
    """
    modes = [_pop_mode() for _ in range(_C._len_torch_function_stack())]
    smallest = sys.float_info.min
    flushes = smallest / 2 == 0
    if flushes:
        torch.set_flush_denormal(False)
    try:
        with (
            _no_dispatch_modes() if _C._len_torch_dispatch_stack() else nullcontext(),
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            _process if process else nullcontext(),
        ):
            yield
    finally:
        if flushes:
            torch.set_flush_denormal(True)
        for mode in reversed(modes):
            _push_mode(mode)


def _no_dispatch_modes():
    # Imported where it is needed: it brings PyTorch's tracer along.
    from torch.utils._python_dispatch import _disable_current_modes

    return _disable_current_modes()
