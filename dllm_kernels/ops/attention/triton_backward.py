"""Attention backward in Triton, for head dimensions up to 128 in one padded piece (FlashAttention-2, arXiv:2307.08691).

With p the weights, dp = do v^T and delta = rowsum(do * out): ds = p (dp - delta), dv = p^T do, dk = scale ds^T q and
dq = scale ds k. One kernel owns tiles of keys and loops over queries for dk and dv, one owns tiles of queries and loops over
keys for dq: no atomics, so it is deterministic.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels.ops.ahead_of_time import Specialization
from dllm_kernels.ops.attention.triton import Config, dot, load_piece, lookup, narrow, specialization, store_piece, strides

# By WIDTH, the head dimension padded to a power of two. Chosen within 99 KB of shared memory and without spills on sm_90 and
# sm_120, with Triton 3.6 and 3.9; not timed.
KEY_TILES = {64: Config(64, 64, 8, 2), 128: Config(32, 64, 8, 2)}
QUERY_TILES = {64: Config(64, 32, 4, 2), 128: Config(64, 32, 8, 2)}
DELTA_ROWS = 16


@triton.jit(do_not_specialize=["rows"])
def attention_delta_kernel(out, grad, delta, rows, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """delta = rowsum(grad * out) of contiguous rows."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    valid = first + row < rows
    o = load_piece(out + first * D, D, row, valid, D, 0, WIDTH).to(tl.float32)
    g = load_piece(grad + first * D, D, row, valid, D, 0, WIDTH).to(tl.float32)
    tl.store(delta + first + row, tl.sum(o * g, 1), mask=valid)


@triton.jit(do_not_specialize=["T", "S", "H"])
def attention_backward_keys_kernel(
    q,
    k,
    v,
    key_mask,
    grad,
    lse,
    delta,
    dk,
    dv,
    T,
    S,
    H,
    q_sample_stride,
    q_token_stride,
    q_head_stride,
    k_sample_stride,
    k_token_stride,
    k_head_stride,
    v_sample_stride,
    v_token_stride,
    v_head_stride,
    scale,
    CAUSAL: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """dk and dv; grad, dk, dv are contiguous, lse is [B, H, T] and delta [B, T, H]."""
    tiles = tl.cdiv(S, KEYS)
    first = tl.program_id(0) % tiles * KEYS
    head = (tl.program_id(0) // tiles % H).to(tl.int64)
    sample = (tl.program_id(0) // tiles // H).to(tl.int64)
    row = tl.arange(0, ROWS)
    key = tl.arange(0, KEYS)
    k_valid = first + key < S
    attended = k_valid
    if key_mask is not None:
        attended = tl.load(key_mask + sample * S + first + key, mask=k_valid, other=0) != 0
    q += sample * q_sample_stride + head * q_head_stride
    k += sample * k_sample_stride + head * k_head_stride + first.to(tl.int64) * k_token_stride
    v += sample * v_sample_stride + head * v_head_stride + first.to(tl.int64) * v_token_stride
    grad += (sample * T * H + head) * D
    k_block = load_piece(k, k_token_stride, key, attended, D, 0, WIDTH)
    v_block = load_piece(v, v_token_stride, key, attended, D, 0, WIDTH)
    dk_block = tl.zeros([KEYS, WIDTH], tl.float32)
    dv_block = tl.zeros([KEYS, WIDTH], tl.float32)
    begin = 0
    if CAUSAL:
        begin = first // ROWS * ROWS
    for start in range(begin, T, ROWS):
        # Rows past T load zeros, and so add nothing.
        q_valid = start + row < T
        q_tile = q + tl.cast(start, tl.int64) * q_token_stride
        grad_tile = grad + tl.cast(start, tl.int64) * H * D
        q_block = load_piece(q_tile, q_token_stride, row, q_valid, D, 0, WIDTH)
        grad_block = load_piece(grad_tile, H * D, row, q_valid, D, 0, WIDTH)
        scores = dot(k_block, tl.trans(q_block))
        dp = dot(v_block, tl.trans(grad_block))
        row_lse = tl.load(lse + (sample * H + head) * T + start + row, mask=q_valid, other=0.0)
        row_delta = tl.load(delta + (sample * T + start + row) * H + head, mask=q_valid, other=0.0)
        pairs = attended[:, None]
        if CAUSAL:
            pairs = pairs & (first + key[:, None] <= start + row[None, :])
        p = tl.where(pairs, tl.exp2(scores * (scale * 1.4426950408889634) - row_lse[None, :]), 0.0)
        ds = narrow(p * (dp - row_delta[None, :]), q_block.dtype)
        p = narrow(p, q_block.dtype)
        dv_block = dot(p, grad_block, dv_block)
        dk_block = dot(ds, q_block, dk_block)

    offset = ((sample * S + first) * H + head) * D
    store_piece(dk + offset, H * D, key, k_valid, dk_block * scale, D, 0, WIDTH)
    store_piece(dv + offset, H * D, key, k_valid, dv_block, D, 0, WIDTH)


@triton.jit(do_not_specialize=["T", "S", "H"])
def attention_backward_queries_kernel(
    q,
    k,
    v,
    key_mask,
    grad,
    lse,
    delta,
    dq,
    T,
    S,
    H,
    q_sample_stride,
    q_token_stride,
    q_head_stride,
    k_sample_stride,
    k_token_stride,
    k_head_stride,
    v_sample_stride,
    v_token_stride,
    v_head_stride,
    scale,
    CAUSAL: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """dq; grad and dq are contiguous, lse is [B, H, T] and delta [B, T, H]."""
    tiles = tl.cdiv(T, ROWS)
    first = tl.program_id(0) % tiles * ROWS
    head = (tl.program_id(0) // tiles % H).to(tl.int64)
    sample = (tl.program_id(0) // tiles // H).to(tl.int64)
    row = tl.arange(0, ROWS)
    key = tl.arange(0, KEYS)
    q_valid = first + row < T
    q += sample * q_sample_stride + head * q_head_stride + first.to(tl.int64) * q_token_stride
    k += sample * k_sample_stride + head * k_head_stride
    v += sample * v_sample_stride + head * v_head_stride
    offset = ((sample * T + first) * H + head) * D
    q_block = load_piece(q, q_token_stride, row, q_valid, D, 0, WIDTH)
    grad_block = load_piece(grad + offset, H * D, row, q_valid, D, 0, WIDTH)
    dq_block = tl.zeros([ROWS, WIDTH], tl.float32)
    row_lse = tl.load(lse + (sample * H + head) * T + first + row, mask=q_valid, other=0.0)
    row_delta = tl.load(delta + (sample * T + first + row) * H + head, mask=q_valid, other=0.0)
    end = S
    if CAUSAL:
        end = tl.minimum(S, first + ROWS)
    for start in range(0, end, KEYS):
        attended = start + key < S
        if key_mask is not None:
            attended = tl.load(key_mask + sample * S + start + key, mask=attended, other=0) != 0
        k_tile = k + tl.cast(start, tl.int64) * k_token_stride
        v_tile = v + tl.cast(start, tl.int64) * v_token_stride
        k_block = load_piece(k_tile, k_token_stride, key, attended, D, 0, WIDTH)
        v_block = load_piece(v_tile, v_token_stride, key, attended, D, 0, WIDTH)
        scores = dot(q_block, tl.trans(k_block))
        dp = dot(grad_block, tl.trans(v_block))
        pairs = attended[None, :]
        if CAUSAL:
            pairs = pairs & (start + key[None, :] <= first + row[:, None])
        p = tl.where(pairs, tl.exp2(scores * (scale * 1.4426950408889634) - row_lse[:, None]), 0.0)
        ds = narrow(p * (dp - row_delta[:, None]), k_block.dtype)
        dq_block = dot(ds, k_block, dq_block)

    store_piece(dq + offset, H * D, row, q_valid, dq_block * scale, D, 0, WIDTH)


def padded(head_dim: int) -> int:
    """The power of two, at least 16, that holds head_dim."""
    return max(16, triton.next_power_of_2(head_dim))


def configs(head_dim: int) -> tuple[Config, Config]:
    """Launch configurations of the kernels for keys and for queries."""
    return lookup(KEY_TILES, padded(head_dim)), lookup(QUERY_TILES, padded(head_dim))


def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the three kernels: (dq, dk, dv), contiguous; shapes as in op.py, grad and out contiguous."""
    batch, queries, heads, head_dim = q.shape
    keys = k.shape[1]
    delta = torch.empty((batch, queries, heads), dtype=torch.float32, device=q.device)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    attention_delta_kernel[(triton.cdiv(delta.numel(), DELTA_ROWS),)](
        out,
        grad,
        delta,
        delta.numel(),
        D=head_dim,
        WIDTH=padded(head_dim),
        ROWS=DELTA_ROWS,
        num_warps=4,
        enable_fp_fusion=True,
    )
    by_keys, by_queries = configs(head_dim)
    for kernel, config, tiles, gradients in (
        (attention_backward_keys_kernel, by_keys, triton.cdiv(keys, by_keys.keys), (dk, dv)),
        (attention_backward_queries_kernel, by_queries, triton.cdiv(queries, by_queries.rows), (dq,)),
    ):
        kernel[(tiles * heads * batch,)](
            q,
            k,
            v,
            key_mask,
            grad,
            lse,
            delta,
            *gradients,
            queries,
            keys,
            heads,
            *strides(q, k, v),
            head_dim**-0.5,
            CAUSAL=causal,
            D=head_dim,
            WIDTH=padded(head_dim),
            ROWS=config.rows,
            KEYS=config.keys,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=True,
        )
    return dq, dk, dv


def backward_specializations(head_dim: int, dtype: torch.dtype, masked: bool, causal: bool) -> list[Specialization]:
    """How `attention_backward` launches the kernels for keys and for queries for these arguments."""
    kernels = (attention_backward_keys_kernel, attention_backward_queries_kernel)
    return [
        specialization(kernel, config, dtype, masked, CAUSAL=causal, D=head_dim, WIDTH=padded(head_dim))
        for kernel, config in zip(kernels, configs(head_dim), strict=True)
    ]


def ahead_of_time():
    """Training at head dimension 64 with a masked prompt, and at 128 with a causal token decoder."""
    types = dict(out="*bf16", grad="*bf16", delta="*fp32", rows="i32", D="constexpr", WIDTH="constexpr", ROWS="constexpr")
    constants = dict(D=128, WIDTH=128, ROWS=DELTA_ROWS)
    yield Specialization("attention_delta[bf16, head_dim=128]", attention_delta_kernel, types, constants, 4, 1)
    yield from backward_specializations(64, torch.bfloat16, masked=True, causal=False)
    yield from backward_specializations(128, torch.bfloat16, masked=False, causal=True)
