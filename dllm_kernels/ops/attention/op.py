"""attention: out = softmax(q k^T / sqrt(D)) v for each head, over the keys that a query attends to.

A query that attends to nothing (its keys are all masked) yields 0, and so do its gradients: never NaN. What a masked key or
value holds does not matter, NaN included.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels.ops.attention.cuda import HEAD_DIM, attention_cuda
from dllm_kernels.ops.dispatch import FLOATING, Implementation, implementation, select, triton_unsupported_reason
from dllm_kernels.ops.extension import cuda_unsupported_reason

TRITON_HEAD_DIM, TRITON_BACKWARD_HEAD_DIM = 640, 128
"""The largest head dimensions of the Triton kernels; the backward of larger ones goes through PyTorch."""


CUDA_LENGTH, CUDA_WORK, CUDA_WORK_NARROW = 256, 2**23, 2**20
"""`auto` takes the CUDA kernel for up to this many queries and keys, and this much work: tiles of 16 queries of a head times
keys times the head dimension, less below a dimension of 128 (docs/kernels.md, as what follows)."""

TRITON_WORK, TRITON_FAST_HEAD_DIM = 2**23, 256
"""PyTorch's kernels were faster than Triton's forward beyond this work, without a mask, and beyond this head dimension."""

CROWD, CROWD_LENGTHS, CROWD_HEAD_DIM = 128, range(33, 129), 256
"""With as many heads of all samples Triton's forward was the fastest, or as fast, for 64 queries and keys and head dimensions
of 64, 128 and 256 (triton.py has tiles of 64 for them). Taken for these numbers of queries, which fill half of such
tiles, as many keys at most, and up to this head dimension."""

_DIFFERENTIABLE = "auto, differentiable"
"""The backend of `attention_forward` for `auto` where a gradient is wanted: the CUDA kernel has no backward."""


def reference(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """`attention` as explicit softmax arithmetic in the inputs' dtype; shapes as there."""
    attended, k, v = _attended(q, k, v, key_mask, causal)
    return torch.einsum("bhts,bshd->bthd", _weights(q, k, attended), v)


def _weights(q: Tensor, k: Tensor, attended: Tensor) -> Tensor:
    """The attention weights [B, H, T, S]; zero throughout where a query attends to nothing."""
    scores = torch.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5
    # The lowest finite score keeps a row without keys finite; its weights are zeroed after the softmax.
    return scores.masked_fill(~attended, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(~attended, 0)


def _attended(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Which pairs attend ([B or 1, 1, T or 1, S] bool), and k and v with zeros where a key is masked."""
    attended = torch.ones(1, 1, 1, k.shape[1], dtype=torch.bool, device=q.device)
    if key_mask is not None:
        attended = key_mask[:, None, None, :]
        k, v = (x.masked_fill(~key_mask[:, :, None, None], 0) for x in (k, v))
    if causal:
        attended = attended & torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).tril()
    return attended, k, v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, causal: bool) -> Tensor:
    """`attention` through PyTorch's fused kernels."""
    attended = None
    if key_mask is not None:
        attended, k, v = _attended(q, k, v, key_mask, causal)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attended, is_causal=causal and key_mask is None)
    if attended is not None:
        # What PyTorch gives for a row that attends to nothing depends on its kernel.
        out = out.masked_fill(~attended.any(-1, keepdim=True), 0)
    return out.transpose(1, 2)


@implementation(
    "attention",
    "cuda",
    cuda_unsupported_reason,
    f"bfloat16, head dimensions 32 to 640, up to {CUDA_LENGTH} queries and keys, where it was timed as the fastest",
)
def _cuda(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
    if _cuda_unsupported_reason(q):
        raise ValueError(_cuda_unsupported_reason(q))
    q, k, v = (_sixteen_byte_rows(x) for x in (q, k, v))
    key_mask = None if key_mask is None else key_mask.contiguous()
    # No log-sum-exp: the backward recomputes through PyTorch.
    return attention_cuda(q, k, v, key_mask, causal), q.new_empty(0, dtype=torch.float32)


@implementation("attention", "triton", triton_unsupported_reason)
def _triton(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
    if _triton_unsupported_reason(q):
        raise ValueError(_triton_unsupported_reason(q))
    from dllm_kernels.ops.attention.triton import attention_forward

    q, k, v = (_last_contiguous(x) for x in (q, k, v))
    with torch.cuda.device_of(q):
        return attention_forward(q, k, v, None if key_mask is None else key_mask.contiguous(), causal)


@implementation("attention", "torch")
def _torch(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
    if q.is_cuda:
        # PyTorch's kernels take views whose heads do not begin at multiples of 16 bytes, and fail (misaligned address, 2.11).
        q, k, v = (_sixteen_byte_rows(x) for x in (q, k, v))
    # No log-sum-exp: the backward recomputes through PyTorch.
    return _sdpa(q, k, v, key_mask, causal).contiguous(), q.new_empty(0, dtype=torch.float32)


def _triton_unsupported_reason(q: Tensor) -> str | None:
    """Why the Triton kernels have no code for q, or None."""
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"the triton implementation of attention computes bfloat16 and float16, and q is {q.dtype}"
    if q.shape[-1] > TRITON_HEAD_DIM:
        return f"the triton implementation of attention has head dimensions 1 to {TRITON_HEAD_DIM}, and q has {q.shape[-1]}"
    return None


def _cuda_unsupported_reason(q: Tensor) -> str | None:
    """Why the CUDA kernel has no code for q, or None."""
    if q.dtype != torch.bfloat16:
        return f"the cuda implementation of attention computes bfloat16, and q is {q.dtype}"
    if q.shape[-1] not in HEAD_DIM:
        return (
            "the cuda implementation of attention has the head dimensions from 32 to 640 that are multiples of 8, "
            f"and q has {q.shape[-1]}"
        )
    return None


def _fastest(q: Tensor, k: Tensor, key_mask: Tensor | None) -> str:
    """The backend that was timed as the fastest for these shapes."""
    batch, queries, heads, head_dim = q.shape
    work = batch * heads * -(-queries // 16) * k.shape[1] * head_dim
    short = queries in CROWD_LENGTHS and k.shape[1] <= CROWD_LENGTHS[-1]
    if short and batch * heads >= CROWD and head_dim <= CROWD_HEAD_DIM and _triton_supports(q):
        return "triton"
    few = max(queries, k.shape[1]) <= CUDA_LENGTH and work <= (CUDA_WORK if head_dim >= 128 else CUDA_WORK_NARROW)
    if few and not _cuda_unsupported_reason(q) and not cuda_unsupported_reason(q.device):
        return "cuda"
    # With a mask PyTorch takes passes over keys and values of its own.
    many = key_mask is None and work > TRITON_WORK
    return "torch" if many or head_dim > TRITON_FAST_HEAD_DIM else "triton"


def _select(q: Tensor, k: Tensor, key_mask: Tensor | None, backend: str) -> Implementation:
    if backend == "auto":
        backend = _fastest(q, k, key_mask)
    elif backend == _DIFFERENTIABLE:
        backend = "triton"
    else:
        return select("attention", q.device, backend)
    return select("attention", q.device, backend if backend != "triton" or _triton_supports(q) else "torch")


def _triton_supports(q: Tensor) -> bool:
    return q.is_cuda and not _triton_unsupported_reason(q) and triton_unsupported_reason(q.device) is None


def _sixteen_byte_rows(x: Tensor) -> Tensor:
    """x where it begins at a multiple of 16 bytes, and its heads do or it is contiguous; otherwise a contiguous copy."""
    apart = x.stride(-1) == 1 and all(stride * x.element_size() % 16 == 0 for stride in x.stride()[:3])
    if x.data_ptr() % 16 or not (apart or x.is_contiguous()):
        return x.clone(memory_format=torch.contiguous_format)
    # A dimension of size 1 may have any stride, which the CUDA kernel would look at.
    return x if apart else x.view(-1).view(x.shape)


def _last_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@torch.library.custom_op("dllm_kernels::attention_forward", mutates_args=())
def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, causal: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """`attention`, and what its backward needs.

    Returns:
        out as of `attention`, and the log-sum-exp (base 2) of each query's scaled scores, [B, H, T] float32, -inf for a query
        that attends to nothing; the log-sum-exp is empty where the backward does without: of PyTorch and of CUDA.
    """
    with torch.autocast(q.device.type, enabled=False):
        return _select(q, k, key_mask, backend).function(q, k, v, key_mask, causal)


@attention_forward.register_fake
def _(q, k, v, key_mask, causal, backend):
    batch, queries, heads, _ = q.shape
    shape = (batch, heads, queries) if _select(q, k, key_mask, backend).backend == "triton" else (0,)
    return q.new_empty(q.shape), q.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("dllm_kernels::attention_backward", mutates_args=())
def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (dq, dk, dv), contiguous, from out's gradient; out and lse as `attention_forward` gave them."""
    if lse.numel() > 0 and q.shape[-1] <= TRITON_BACKWARD_HEAD_DIM:
        from dllm_kernels.ops.attention.triton_backward import attention_backward as launch

        q, k, v = (_last_contiguous(x) for x in (q, k, v))
        mask = None if key_mask is None else key_mask.contiguous()
        with torch.cuda.device_of(q):
            return launch(grad.contiguous(), q, k, v, mask, out, lse, causal)
    with torch.autocast(q.device.type, enabled=False):
        return _backward_torch(grad, q, k, v, key_mask, out.dtype, causal)


def _backward_torch(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, dtype: torch.dtype, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    # PyTorch's fused kernels have no backward for some head dimensions and masks; this serves all.
    wide = torch.promote_types(q.dtype, torch.float32)
    attended, k, v = _attended(q, k, v, key_mask, causal)
    grad, q, k, v, scale = grad.to(wide), q.to(wide), k.to(wide), v.to(wide), q.shape[-1] ** -0.5
    weights = _weights(q, k, attended)
    grad_weights = torch.einsum("bthd,bshd->bhts", grad, v)
    grad_scores = scale * weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True))
    dq = torch.einsum("bhts,bshd->bthd", grad_scores, k)
    dk = torch.einsum("bhts,bthd->bshd", grad_scores, q)
    dv = torch.einsum("bhts,bthd->bshd", weights, grad)
    return tuple(g.to(dtype).contiguous() for g in (dq, dk, dv))


@attention_backward.register_fake
def _(grad, q, k, v, key_mask, out, lse, causal):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _setup_context(ctx, inputs, output):
    q, k, v, key_mask, ctx.causal, _ = inputs
    ctx.save_for_backward(q, k, v, key_mask, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    dq, dk, dv = attention_backward(grad, *ctx.saved_tensors, ctx.causal)
    return dq, dk, dv, None, None, None


attention_forward.register_autograd(_backward, setup_context=_setup_context)


def attention(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, causal: bool = False, backend: str = "auto"
) -> Tensor:
    """Scaled dot-product attention with scale D^-1/2: self, cross (Perceiver, prompt) or causal. Differentiable once.

    Args:
        q: [B, T, H, D] bfloat16, float16, float32 or float64, any strides: views of a packed [B, T, 3, H, D] are read in place.
        k, v: [B, S, H, D], dtype and device as q.
        key_mask: [B, S] bool, True where a key is attended to; None attends to all.
        causal: query t attends to keys up to t; needs T == S.
        backend: "auto"; "torch"; "triton", which computes bfloat16 and float16 with head dimensions up to 640, and gradients
            above 128 through PyTorch; or "cuda", which computes bfloat16 with the head dimensions from 32 to 640 that are
            multiples of 8, is made for few queries, and has its gradients through PyTorch.

    Returns:
        [B, T, H, D], contiguous, q's dtype; sums are float32 or wider. A query that attends to nothing yields 0.

    Raises:
        ValueError: a shape, dtype or device does not fit, or the backend is unknown or has no code for the head dimension.
        RuntimeError: the backend cannot run on q's device.
    """
    _validate(q, k, v, key_mask, causal)
    if backend == "auto" and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        backend = _DIFFERENTIABLE
    return attention_forward(q, k, v, key_mask, causal, backend)[0]


def _validate(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, causal: bool) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4 or x.numel() == 0 or x.dtype not in FLOATING:
            raise ValueError(f"{name} is {x.dtype} {list(x.shape)}; it must be floating-point [B, T, H, D] that is not empty")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"{name} is {x.dtype} on {x.device} and q {q.dtype} on {q.device}; they must be alike")
    batch, queries, heads, head_dim = q.shape
    keys = k.shape[1]
    if k.shape != (batch, keys, heads, head_dim) or v.shape != k.shape:
        raise ValueError(
            f"k is {list(k.shape)} and v {list(v.shape)}; for q {list(q.shape)} both must be [{batch}, S, {heads}, {head_dim}]"
        )
    if causal and queries != keys:
        raise ValueError(f"causal attention needs as many queries as keys, and there are {queries} and {keys}")
    if key_mask is not None and (key_mask.shape != (batch, keys) or key_mask.dtype != torch.bool):
        raise ValueError(f"key_mask is {key_mask.dtype} {list(key_mask.shape)}; it must be bool [{batch}, {keys}]")
    if key_mask is not None and key_mask.device != q.device:
        raise ValueError(f"key_mask is on {key_mask.device} and q on {q.device}; they must share a device")
