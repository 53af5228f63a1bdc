"""The modules that packing knows. It reads weights and never calls a module, so what a module does besides is refused here.

A part is taken over tensor by tensor into the module that its config describes, so packing sees nothing else.
"""

import functools
from types import FunctionType

import torch
from torch import Tensor, nn

from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.model.denoiser import Block, Denoiser, TimeEmbedding
from dllm_kernels.model.layers import MLP, CrossAttention, DecoderLayer, SelfAttention, sdpa
from dllm_kernels.model.ldlm import LDLM, build_module
from dllm_kernels.model.perceiver import Perceiver
from dllm_kernels.model.token_decoder import TokenDecoder
from dllm_kernels.ops.attention.op import attention
from dllm_kernels.ops.dispatch import FLOATING

WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
}
"""Modules that only call the one inside, by their full names, and the attribute that it is. Packing takes the one inside."""

_METHODS = ("encode", "denoise", "decode", "logits")
"""What an LDLM computes; a subclass that has none of them of its own computes the same."""

_LAYERS = (Block, Denoiser, TimeEmbedding, MLP, CrossAttention, DecoderLayer, SelfAttention, Perceiver, TokenDecoder)
_FORWARD = {kind: kind.forward for kind in (*_LAYERS, nn.Linear, nn.LayerNorm, nn.Identity)}
"""What each module computes, as it was when this file was imported."""

_MERGE = "packing reads weights alone and would leave that out: merge it into them first"


def unwrapped(module: nn.Module, name: str = "the model") -> nn.Module:
    """`module` without the WRAPPERS around it. Raises ValueError where one of them has a hook or a forward of its own."""
    while (inside := WRAPPERS.get(_kind(module))) is not None:
        _check_call(name, module)
        module = getattr(module, inside)
    return module


def known_model(model: nn.Module) -> LDLM:
    """The LDLM in `model`, which may be wrapped.

    Raises:
        ValueError: it is none, or it computes something else than an LDLM does; one sentence.
    """
    model = unwrapped(model)
    if not isinstance(model, LDLM):
        raise ValueError(
            f"the model is a {_kind(model)} and not an LDLM: merge its adapters and gather its shards into a plain LDLM first"
        )
    _check_call("the model", model)
    for method in _METHODS:
        if getattr(type(model), method) is not getattr(LDLM, method):
            raise ValueError(f"the model has a {method} of its own; {_MERGE}")
    return model


def known_part(name: str, part: nn.Module, config: LDLMConfig) -> nn.Module:
    """A part of a model as its config describes it, with the tensors of `part` themselves.

    Args:
        name: of the part (model/ldlm.py, MODULES).
        part: what the model has there.
        config: the model's.

    Raises:
        ValueError: a module or a tensor of `part` is not exactly what the config describes; names it.
    """
    with torch.device("meta"):
        known = build_module(name, config)
    _take(name, unwrapped(part, name), known)
    return known.eval()


def _take(name: str, found: nn.Module, known: nn.Module) -> None:
    """Puts the tensors of `found` into `known`, module by module."""
    if type(found) is not type(known):
        raise ValueError(f"{name} is a {_kind(found)} and not a {_kind(known)}; {_MERGE}")
    _check_call(name, found)
    if type(known) in _FORWARD and type(known).forward is not _FORWARD[type(known)]:
        raise ValueError(f"{name} has a forward of its own; {_MERGE}")
    for attribute, value in vars(known).items():
        if not attribute.startswith("_") and attribute != "training":
            _check_attribute(f"{name}.{attribute}", getattr(found, attribute, None), value)
    for kind in ("_parameters", "_buffers", "_modules"):
        theirs, ours = ({key: x for key, x in getattr(m, kind).items() if x is not None} for m in (found, known))
        for key in sorted(theirs.keys() ^ ours.keys()):
            raise ValueError(f"{name}.{key} is {'not in the model' if key in ours else 'not in its config'}; {_MERGE}")
        for key, expected in ours.items():
            if kind == "_modules":
                _take(f"{name}.{key}", unwrapped(theirs[key], f"{name}.{key}"), expected)
            else:
                _check_tensor(f"{name}.{key}", theirs[key], expected)
                getattr(known, kind)[key] = theirs[key]


def _check_call(name: str, module: nn.Module) -> None:
    """Raises ValueError where a call of `module` does more, or something else, than its class says."""
    if module._forward_hooks or module._forward_pre_hooks:
        kind = "hook" if module._forward_hooks else "pre-hook"
        raise ValueError(f"{name} has a forward {kind}; {_MERGE}")
    kinds = (kind for kind in type(module).__mro__ if kind not in (nn.Module, object))
    methods = {key for kind in kinds for key, value in vars(kind).items() if isinstance(value, FunctionType)}
    own = sorted(vars(module).keys() & (methods | {"forward", "_call_impl", "_wrapped_call_impl"}))
    if own and _kind(module) not in WRAPPERS:
        raise ValueError(f"{name} has a {own[0].strip('_')} of its own; {_MERGE}")


def _check_attribute(name: str, found: object, known: object) -> None:
    if isinstance(known, LDLMConfig):
        # All that a module reads of its config when it is called; the rest made the modules inside, which are checked.
        found, known, name = (*(getattr(c, "first_prediction", c) for c in (found, known)), f"{name}.first_prediction")
    if known is sdpa:
        function = found.func if isinstance(found, functools.partial) else found
        if function not in (sdpa, attention) or (function is not found and (found.args or found.keywords.keys() - {"backend"})):
            raise ValueError(f"{name} is a function of its own; packing knows model.layers.sdpa and ops.attention.op.attention")
    elif type(found) is not type(known) or found != known:
        raise ValueError(f"{name} is {found!r} and its config says {known!r}: packing computes with the latter")


def _check_tensor(name: str, found: Tensor, known: Tensor) -> None:
    if type(found) not in (Tensor, nn.Parameter):
        raise ValueError(f"{name} is a {_kind(found)} and not a plain tensor: gather or dequantize the weights first")
    if found.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values: load the weights first")
    if found.layout != torch.strided or found.is_quantized or found.dtype not in FLOATING:
        layout = "" if found.layout == torch.strided else f" {found.layout}"
        raise ValueError(f"{name} is {found.dtype}{layout}; it must be dense, {', '.join(map(str, FLOATING))}")
    if found.shape != known.shape:
        raise ValueError(f"{name} has shape {list(found.shape)} where the config asks for {list(known.shape)}")


def _kind(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
