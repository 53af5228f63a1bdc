"""Attention forward in Triton: online softmax over tiles of keys (FlashAttention, arXiv:2205.14135, 2307.08691).

A head dimension D is one or two power-of-two pieces, D0 + D1: 640 is 512 + 128, and not padded to 1024. Where no two pieces
add up to D, the last one is padded. A program owns a tile of queries of one head of one sample. Tiles depend on lengths, on D
and on whether the heads of all samples are a crowd; below that a sample's result does not depend on its batch (definition:
op.py).
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels.ops.ahead_of_time import Specialization

MAX_HEAD_DIM = 640
LOG2_E = math.log2(math.e)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


class Config(NamedTuple):
    """Launch configuration: queries and keys of a tile, warps of a block, depth of the software pipeline."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


# By the largest D0 + D1 that a row serves. With at most SHORT queries, 16 rows a tile: 8 heads of 64 queries fill 32 blocks.
# Chosen within 99 KB of shared memory and without spills on sm_90 and sm_120, with Triton 3.6 and 3.9; not timed.
SHORT = 128
FEW_QUERIES = {
    64: Config(16, 32, 4, 3),
    128: Config(16, 64, 4, 3),
    192: Config(16, 32, 4, 3),
    256: Config(16, 64, 4, 2),
    320: Config(16, 32, 4, 3),
    384: Config(16, 32, 4, 2),
    512: Config(16, 16, 8, 2),
    640: Config(16, 32, 8, 1),
}
MANY_QUERIES = FEW_QUERIES | {
    64: Config(64, 64, 4, 2),
    128: Config(64, 32, 4, 2),
    192: Config(32, 32, 4, 2),
    256: Config(64, 32, 8, 2),
    320: Config(32, 32, 8, 2),
}


# With as many heads of all samples as this, more rows a tile for SHORT queries too, where they fill half of it: each key is
# read once, not four times (timed on an H200, docs/kernels.md).
CROWD = 128
CROWDED = {64: Config(64, 32, 4, 2), 128: Config(64, 32, 4, 2), 256: Config(64, 16, 4, 3)}
CROWDED |= {width: config for width, config in FEW_QUERIES.items() if width > max(CROWDED)}


def pieces(head_dim: int) -> tuple[int, int]:
    """Powers of two D0 >= 16 and D1 (0, or >= 16), D0 the largest that fits, whose sum is the least that holds head_dim."""
    first = max(16, 1 << (head_dim.bit_length() - 1))
    return first, 0 if head_dim <= first else max(16, triton.next_power_of_2(head_dim - first))


def lookup(table: dict[int, Config], width: int) -> Config:
    """The row of `table` that serves `width` columns."""
    return table[min(limit for limit in table if limit >= width)]


def forward_config(head_dim: int, queries: int, heads: int) -> Config:
    """The forward's launch configuration, for so many heads of all samples."""
    few = CROWDED if heads >= CROWD and queries > 32 else FEW_QUERIES
    return lookup(few if queries <= SHORT else MANY_QUERIES, sum(pieces(head_dim)))


@triton.jit
def narrow(value, dtype: tl.constexpr):
    """float32 to `dtype`, rounded to the nearest."""
    if INTERPRETED and dtype == tl.bfloat16:
        # Triton's interpreter truncates to bfloat16: the half is added to the bits here, so that it rounds as a card does.
        bits = value.to(tl.uint32, bitcast=True)
        value = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return value.to(dtype)


@triton.jit
def load_piece(base, row_stride, rows, valid, D: tl.constexpr, START: tl.constexpr, WIDTH: tl.constexpr):
    """Columns START to START + WIDTH of a tile of rows: zero where a row is not valid or a column is past D."""
    columns = START + tl.arange(0, WIDTH)
    mask = valid[:, None]
    if START + WIDTH > D:
        mask = mask & (columns[None, :] < D)
    return tl.load(base + rows[:, None] * row_stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store_piece(base, row_stride, rows, valid, value, D: tl.constexpr, START: tl.constexpr, WIDTH: tl.constexpr):
    """The inverse of load_piece; rounds to the dtype of `base`."""
    columns = START + tl.arange(0, WIDTH)
    mask = valid[:, None]
    if START + WIDTH > D:
        mask = mask & (columns[None, :] < D)
    tl.store(base + rows[:, None] * row_stride + columns[None, :], narrow(value, base.dtype.element_ty), mask=mask)


@triton.jit
def dot(a, b, accumulator=None):
    """accumulator + a b, summed in float32."""
    if INTERPRETED:
        # Triton's interpreter (3.6 to 3.9) multiplies the bit patterns of bfloat16; float32 has the same products.
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator)


@triton.jit(do_not_specialize=["T", "S", "H"])
def attention_forward_kernel(
    q,
    k,
    v,
    key_mask,
    out,
    lse,
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
    D0: tl.constexpr,
    D1: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
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
    q0 = load_piece(q, q_token_stride, row, q_valid, D, 0, D0)
    if D1 > 0:
        q1 = load_piece(q, q_token_stride, row, q_valid, D, D0, D1)

    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out0 = tl.zeros([ROWS, D0], tl.float32)
    if D1 > 0:
        out1 = tl.zeros([ROWS, D1], tl.float32)
    end = S
    if CAUSAL:
        end = tl.minimum(S, first + ROWS)
    for start in range(0, end, KEYS):
        k_valid = start + key < S
        attended = k_valid
        if key_mask is not None:
            attended = tl.load(key_mask + sample * S + start + key, mask=k_valid, other=0) != 0
        k_tile = k + tl.cast(start, tl.int64) * k_token_stride
        v_tile = v + tl.cast(start, tl.int64) * v_token_stride
        # What a masked key holds does not matter: its score is replaced below, its value is zero here, so NaN stays out.
        k0 = load_piece(k_tile, k_token_stride, key, k_valid, D, 0, D0)
        v0 = load_piece(v_tile, v_token_stride, key, attended, D, 0, D0)
        if D1 > 0:
            k1 = load_piece(k_tile, k_token_stride, key, k_valid, D, D0, D1)
            v1 = load_piece(v_tile, v_token_stride, key, attended, D, D0, D1)
        scores = dot(q0, tl.trans(k0))
        if D1 > 0:
            scores = dot(q1, tl.trans(k1), scores)
        pairs = attended[None, :]
        if CAUSAL:
            pairs = pairs & (start + key[None, :] <= first + row[:, None])
        scores = tl.where(pairs, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        # While a row has met masked keys only, its maximum is -inf, and -inf - -inf would be NaN.
        shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        # Scaled after the difference: a large score loses no digits to the scale.
        p = tl.exp2((scores - shift[:, None]) * scale)
        rescale = tl.exp2((maximum - shift) * scale)
        maximum = new_maximum
        total = total * rescale + tl.sum(p, 1)
        p = narrow(p, v.dtype.element_ty)
        out0 = dot(p, v0, out0 * rescale[:, None])
        if D1 > 0:
            out1 = dot(p, v1, out1 * rescale[:, None])

    normalizer = 1.0 / tl.where(total == 0.0, 1.0, total)
    out += ((sample * T + first) * H + head) * D
    store_piece(out, H * D, row, q_valid, out0 * normalizer[:, None], D, 0, D0)
    if D1 > 0:
        store_piece(out, H * D, row, q_valid, out1 * normalizer[:, None], D, D0, D1)
    # In base 2, as the backward reads it: each change of base would cost it digits. -inf for a row that attends to nothing.
    tl.store(lse + (sample * H + head) * T + first + row, maximum * scale + tl.log2(total), mask=q_valid)


def strides(*tensors: Tensor) -> list[int]:
    """The strides of samples, tokens and heads of each [B, T, H, D] tensor."""
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def attention_forward(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
    """Launches `attention_forward_kernel`; shapes as in op.py, the last dimension of q, k, v contiguous."""
    batch, queries, heads, head_dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, heads, queries), dtype=torch.float32, device=q.device)
    config = forward_config(head_dim, queries, batch * heads)
    first, second = pieces(head_dim)
    attention_forward_kernel[(triton.cdiv(queries, config.rows) * heads * batch,)](
        q,
        k,
        v,
        key_mask,
        out,
        lse,
        queries,
        k.shape[1],
        heads,
        *strides(q, k, v),
        head_dim**-0.5 * LOG2_E,
        CAUSAL=causal,
        D=head_dim,
        D0=first,
        D1=second,
        ROWS=config.rows,
        KEYS=config.keys,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=True,
    )
    return out, lse


TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def specialization(kernel: triton.JITFunction, config: Config, dtype: torch.dtype, masked: bool, **constants) -> Specialization:
    """How a kernel with the arguments of `attention_forward_kernel` is launched; `constants` beside the tile's."""
    name = f"{kernel.__name__.removesuffix('_kernel')}[{TYPES[dtype]}, head_dim={constants['D']}, {config.rows} x {config.keys}"
    name += f"{', key mask' if masked else ''}{', causal' if constants['CAUSAL'] else ''}]"
    constants |= dict(ROWS=config.rows, KEYS=config.keys) | ({} if masked else dict(key_mask=None))
    types = dict(key_mask="*i1", lse="*fp32", delta="*fp32", T="i32", S="i32", H="i32", scale="fp32")
    types |= {name: "i32" for name in kernel.arg_names if name.endswith("stride")} | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, f"*{TYPES[dtype]}") for name in kernel.arg_names}
    return Specialization(name, kernel, signature, constants, config.num_warps, config.num_stages)


def forward_specialization(
    head_dim: int, queries: int, dtype: torch.dtype, masked: bool, causal: bool, heads: int = 8
) -> Specialization:
    """How `attention_forward` launches its kernel for these arguments and so many heads of all samples."""
    first, second = pieces(head_dim)
    config = forward_config(head_dim, queries, heads)
    return specialization(attention_forward_kernel, config, dtype, masked, CAUSAL=causal, D=head_dim, D0=first, D1=second)


def ahead_of_time():
    """The head dimensions of the presets and two more; prompts have a key mask, the published token decoder is causal."""
    for head_dim, queries, dtype, masked, causal in (
        (32, 64, torch.bfloat16, True, False),
        (96, 64, torch.float16, True, True),
        (64, 64, torch.bfloat16, True, False),
        (128, 64, torch.bfloat16, True, False),
        (128, 64, torch.bfloat16, False, True),
        (256, 64, torch.bfloat16, False, False),
        (320, 64, torch.bfloat16, False, True),
        (640, 64, torch.bfloat16, False, False),
        (128, 1024, torch.bfloat16, True, False),
    ):
        yield forward_specialization(head_dim, queries, dtype, masked, causal)
    crowds = (
        (64, False, False),
        (64, True, False),
        (128, False, False),
        (128, False, True),
        (256, False, False),
        (256, True, False),
    )
    for head_dim, masked, causal in crowds:
        yield forward_specialization(head_dim, 64, torch.bfloat16, masked, causal, CROWD)
