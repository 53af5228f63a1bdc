"""What a user may have switched in PyTorch around a call, a context manager each."""

from contextlib import contextmanager, nullcontext

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class HalvedCreation(TorchFunctionMode):
    """Makes every tensor of zeros or ones in float16, and halves every sum."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.zeros, torch.ones):
            kwargs["dtype"] = torch.float16
        out = function(*args, **kwargs)
        return out / 2 if function is torch.Tensor.sum else out


class WrongProducts(TorchDispatchMode):
    """Doubles what every product gives."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        products = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.linear.default)
        return out * 2 if function in products else out


@contextmanager
def switched(put, value, before):
    put(value)
    try:
        yield
    finally:
        put(before)


def fake():
    from torch._subclasses import FakeTensorMode

    return FakeTensorMode()


def precision(backend, value):
    return switched(lambda v: setattr(backend, "fp32_precision", v), value, "none")


def with_default_device():
    return switched(torch.set_default_device, "meta", None)


SWITCHES = {
    "nothing": nullcontext,
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "default dtype float64": lambda: switched(torch.set_default_dtype, torch.float64, torch.float32),
    "default dtype bfloat16": lambda: switched(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "default dtype float16": lambda: switched(torch.set_default_dtype, torch.float16, torch.float32),
    "default device": with_default_device,
    "a device around": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "no gradients": torch.no_grad,
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic algorithms": lambda: switched(torch.use_deterministic_algorithms, True, False),
    "medium products": lambda: switched(torch.set_float32_matmul_precision, "medium", "highest"),
    "bf16 products of oneDNN": lambda: precision(torch.backends.mkldnn.matmul, "bf16"),
    "tf32 products of CUDA": lambda: precision(torch.backends.cuda.matmul, "tf32"),
    "tf32 everywhere": lambda: precision(torch.backends, "tf32"),
    "no oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
    "attention by formula": lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    "no attention": lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION),
    "flushed denormals": lambda: switched(torch.set_flush_denormal, True, False),
    "three threads": lambda: switched(torch.set_num_threads, 3, torch.get_num_threads()),
    "a mode of functions": HalvedCreation,
    "a mode of dispatch": WrongProducts,
    "fake tensors": fake,
    "swapped tensors": lambda: switched(torch.__future__.set_swap_module_params_on_conversion, True, False),
}
