"""A model larger than a card: model/ under PyTorch's tensor parallelism (arXiv:1909.08053). A packed plan runs on one card.

Attention is split by heads and the MLP by its hidden features, so a layer needs one all-reduce after each `out` and `down`.
The modulation, the projections and the lm_head are split by outputs, which are gathered. Norms, learned vectors and the time
embedding are small, so each process has them whole.
"""

from fnmatch import fnmatch

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.model.layers import CrossAttention, SelfAttention
from dllm_kernels.model.ldlm import LDLM

BY_NAME: dict[str, tuple[type[ParallelStyle], dict]] = {
    "*.self_attention.qkv": (ColwiseParallel, {}),
    "*.cross_attention.query": (ColwiseParallel, {}),
    "*.cross_attention.key_value": (ColwiseParallel, {}),
    "*_attention.out": (RowwiseParallel, {}),
    "*.mlp.up": (ColwiseParallel, {}),
    "*.mlp.down": (RowwiseParallel, {}),
    "denoiser.blocks.*.modulation": (ColwiseParallel, {"output_layouts": Replicate()}),
    "denoiser.out_modulation": (ColwiseParallel, {"output_layouts": Replicate()}),
    "*.project_in": (ColwiseParallel, {"output_layouts": Replicate()}),
    "*.project_out": (ColwiseParallel, {"output_layouts": Replicate()}),
    "lm_head": (ColwiseParallel, {"output_layouts": Replicate()}),
}
"""How a linear layer is split, by a pattern of its name."""


def parallel_plan(model: LDLM) -> dict[str, ParallelStyle]:
    """The style of each linear layer that is split, by its full name."""
    found = {}
    for name, module in model.named_modules():
        pattern = next((pattern for pattern in BY_NAME if fnmatch(name, pattern)), None)
        if pattern is not None and isinstance(module, nn.Linear):
            style, options = BY_NAME[pattern]
            found[name] = style(**options)
    return found


def parallelize(model: LDLM, mesh: DeviceMesh) -> LDLM:
    """Splits a model over the processes of a mesh; each process keeps its own part on its device.

    Every process calls this with the same weights, on the CPU or mapped from a checkpoint (`LDLM.from_pretrained`). Parameters
    move to the device one at a time, so a card never holds more than its part and one whole parameter. Every process then calls
    the model with the same arguments, and gets the same whole results.

    Args:
        model: changed in place. Its state dict then holds DTensors, with rows of qkv and key_value in the order of the split.
        mesh: of one dimension.

    Returns:
        The model.

    Raises:
        ValueError: heads do not divide over the processes, or the mesh has more than one dimension.
    """
    if mesh.ndim != 1:
        raise ValueError(f"the mesh has {mesh.ndim} dimensions; tensor parallelism takes one of them")
    parts = mesh.size()
    _check(model.config, parts)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, SelfAttention):
                _by_heads(module.qkv, 3, module.heads, parts)
            elif isinstance(module, CrossAttention):
                _by_heads(module.key_value, 2, module.heads, parts)
            if isinstance(module, SelfAttention | CrossAttention):
                module.heads //= parts
    # Each process has the whole weights, so nothing is sent.
    parallelize_module(model, mesh, parallel_plan(model), src_data_rank=None)
    return model.to(mesh.device_type)


def _by_heads(linear: nn.Linear, kinds: int, heads: int, parts: int) -> None:
    """Reorders output features from (kind, head, feature) to (part, kind, head of the part, feature).

    A process's share of the rows is then contiguous. It holds the queries, keys and values of whole heads, in the order
    (kind, head of the part, feature) that the layer reshapes them to.
    """
    for name, tensor in list(linear.named_parameters(recurse=False)):
        rest = tensor.shape[1:]
        grouped = tensor.detach().reshape(kinds, parts, heads // parts, -1, *rest).transpose(0, 1)
        setattr(linear, name, nn.Parameter(grouped.reshape(tensor.shape), requires_grad=tensor.requires_grad))


def _check(config: LDLMConfig, parts: int) -> None:
    for name in ("num_heads", "token_decoder_heads"):
        heads = getattr(config, name)
        if heads % parts:
            raise ValueError(f"{name} is {heads}, which does not divide over {parts} processes")
