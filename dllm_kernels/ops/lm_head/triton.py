"""lm_head in Triton: a GEMM whose epilogue keeps, of a tile of logits, one candidate a row (definition: reference.py).

`lm_head_tile_kernel` streams a tile of the weight once for up to 128 rows and writes, for every row and tile, the best value
and its index, and for log-probabilities that entry's logit, the largest logit m and sum exp(logit - m). Many rows are read
through tensor descriptors, where the card has them and shared memory for a tile of their own.
`lm_head_reduce_kernel` merges a row's tiles in a fixed order. Neither uses atomics, so equal calls give equal bits.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from dllm_kernels.diffusion.noise import GUMBEL_NOISE
from dllm_kernels.ops.noise.triton_philox import gumbel, philox_words
from dllm_kernels.utils.device import shared_memory


@dataclass(frozen=True)
class Tile:
    """How the GEMM is divided: `rows` of hidden by `vocab` of the weight by `width` of the sum, and how a program runs it.

    `group` tiles of rows go through the whole vocabulary together. Of a tile's logits `pieces` parts are looked at in turn.
    """

    rows: int
    vocab: int
    width: int
    num_warps: int
    num_stages: int
    group: int = 16
    pieces: int = 1

    @property
    def piece(self) -> int:
        """Entries of the vocabulary in a piece."""
        return self.vocab // self.pieces

    @property
    def constants(self) -> dict[str, int]:
        """The kernel's constexprs."""
        sizes = {"ROWS": self.rows, "VOCAB": self.vocab, "PIECE": self.piece, "WIDTH": self.width}
        return sizes | {"GROUP": self.group}


# The first whose rows hold the call's, else the last. Sized by resource use on sm_120 (99 KB, no spills), not by timings yet.
_HALF_TILES = (Tile(16, 128, 64, 4, 4), Tile(32, 128, 64, 4, 4), Tile(64, 128, 64, 4, 3), Tile(128, 128, 64, 8, 3))
_FLOAT_TILES = (Tile(16, 64, 32, 4, 3), Tile(64, 64, 32, 8, 3))
# Of nine that were timed at 512, 4,096 and 16,384 rows on an H100, through descriptors and without (docs/kernels.md).
_WIDE_TILE, _WIDE_SHARED_BYTES, _WIDE_ROWS = Tile(128, 256, 64, 8, 4, pieces=2), 200 * 1024, 129
# The one tile of batch-invariant calls: a row's sum must not depend on the rows beside it.
_INVARIANT_HALF, _INVARIANT_FLOAT = _HALF_TILES[2], _FLOAT_TILES[1]
_REDUCE_BLOCK, _REDUCE_WARPS = 1024, 4


# Neither 1 row nor a multiple of 16 may compile another kernel, or change how a row is computed.
@triton.jit(do_not_specialize=["rows", "length", "vocab_size"])
def lm_head_tile_kernel(
    hidden,
    weight,
    bias,
    temperature,
    seed,
    first_sample,
    partial,
    partial_index,
    rows,
    length,
    vocab_size,
    width,
    LOGPROBS: tl.constexpr,
    OPERAND: tl.constexpr,
    WEIGHT_EVICTION: tl.constexpr,
    STREAM: tl.constexpr,
    ROWS: tl.constexpr,
    VOCAB: tl.constexpr,
    PIECE: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    # Neighbouring programs share a tile of the weight, which is then read from memory once; a group's rows stay in L2.
    tiles = tl.cdiv(vocab_size, VOCAB)
    first = tl.program_id(0) // (GROUP * tiles) * GROUP
    place, group = tl.program_id(0) % (GROUP * tiles), tl.minimum(tl.cdiv(rows, ROWS) - first, GROUP)
    tile = place // group
    first_row = (first + place % group) * ROWS
    row = first_row + tl.arange(0, ROWS)

    logits = tl.zeros((ROWS, VOCAB), tl.float32)
    if DESCRIPTORS:
        for start in range(0, width, WIDTH):
            x, w = hidden.load([first_row, start]), weight.load([tile * VOCAB, start])
            logits = tl.dot(x.to(OPERAND), w.T.to(OPERAND), logits, input_precision="ieee")
    else:
        entry, column = tile * VOCAB + tl.arange(0, VOCAB), tl.arange(0, WIDTH)
        real_row, real_entry = row < rows, entry < vocab_size
        hidden_at = hidden + row.to(tl.int64)[:, None] * width + column[None, :]
        weight_at = weight + entry.to(tl.int64)[None, :] * width + column[:, None]
        for start in range(0, width, WIDTH):
            real_column = column < width - start
            x = tl.load(hidden_at, mask=real_row[:, None] & real_column[None, :], other=0.0)
            real = real_entry[None, :] & real_column[:, None]
            w = tl.load(weight_at, mask=real, other=0.0, eviction_policy=WEIGHT_EVICTION)
            logits = tl.dot(x.to(OPERAND), w.to(OPERAND), logits, input_precision="ieee")
            hidden_at += WIDTH
            weight_at += WIDTH
    # A piece at a time, since the noise needs registers of its own.
    what = row, bias, temperature, seed, first_sample, partial, partial_index, rows, length, vocab_size
    if PIECE == VOCAB:
        _keep(logits, tile, what, LOGPROBS, STREAM)
    else:
        lower, upper = _halves(logits)
        _keep(lower, 2 * tile, what, LOGPROBS, STREAM)
        _keep(upper, 2 * tile + 1, what, LOGPROBS, STREAM)


@triton.jit
def _halves(x):
    """The first and the second half of the columns."""
    return tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def _keep(logits, piece, what, LOGPROBS: tl.constexpr, STREAM: tl.constexpr):
    """Writes what is kept of a piece of the vocabulary, of whose logits the bias is missing."""
    row, bias, temperature, seed, first_sample, partial, partial_index, rows, length, vocab_size = what
    PIECE: tl.constexpr = logits.shape[1]
    entry = piece * PIECE + tl.arange(0, PIECE)
    real_entry = entry < vocab_size
    logits += tl.load(bias + entry, mask=real_entry, other=0.0).to(tl.float32)[None, :]
    logits = tl.where(real_entry[None, :], logits, -float("inf"))

    values = logits
    scale = tl.load(temperature)
    if scale > 0:
        # A row of the noise begins a Philox call, so a thread turns each call's words into four neighbours.
        groups = row % length * tl.cdiv(vocab_size, 4)
        block = groups[:, None] + (piece * (PIECE // 4) + tl.arange(0, PIECE // 4))[None, :]
        sample = (tl.load(first_sample) + row // length)[:, None]
        word0, word1, word2, word3 = philox_words(tl.load(seed), block, block * 0, sample, STREAM)
        # join makes a new last dimension, so the even and the odd values meet first.
        even, odd = tl.join(gumbel(word0), gumbel(word2)), tl.join(gumbel(word1), gumbel(word3))
        values += scale * tl.reshape(tl.join(even, odd), logits.shape)
    values = tl.where(values != values, float("inf"), values)
    best, index = tl.max(values, 1, return_indices=True)

    pieces = tl.cdiv(vocab_size, PIECE)
    at = row.to(tl.int64) * pieces + piece
    # The last tile may go on past the vocabulary's last piece.
    real = row < tl.where(piece < pieces, rows, 0)
    tl.store(partial + at, best, mask=real)
    tl.store(partial_index + at, piece * PIECE + index, mask=real)
    if LOGPROBS:
        plane = rows.to(tl.int64) * pieces
        chosen = tl.sum(tl.where(tl.arange(0, PIECE)[None, :] == index[:, None], logits, 0.0), 1)
        largest = tl.max(logits, 1)
        # Where all are -inf, exp(-inf - -inf) would be NaN.
        shift = tl.where(largest == -float("inf"), 0.0, largest)
        tl.store(partial + plane + at, chosen, mask=real)
        tl.store(partial + 2 * plane + at, largest, mask=real)
        tl.store(partial + 3 * plane + at, tl.sum(tl.exp(logits - shift[:, None]), 1), mask=real)


@triton.jit(do_not_specialize=["rows"])
def lm_head_reduce_kernel(partial, partial_index, tokens, logprobs, rows, tiles, LOGPROBS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    plane = rows.to(tl.int64) * tiles
    best, token = -float("inf"), 0
    chosen, largest, total = -float("inf"), -float("inf"), 0.0
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        at = row * tiles + tile
        real = tile < tiles
        value = tl.load(partial + at, mask=real, other=-float("inf"))
        index = tl.load(partial_index + at, mask=real, other=2147483647)
        block_best = tl.max(value, 0)
        block_token = tl.min(tl.where(value == block_best, index, 2147483647), 0)
        better = block_best > best
        if LOGPROBS:
            logit = tl.load(partial + plane + at, mask=real, other=0.0)
            block_chosen = tl.sum(tl.where(index == block_token, logit, 0.0), 0)
            chosen = tl.where(better, block_chosen, chosen)
            tile_largest = tl.load(partial + 2 * plane + at, mask=real, other=-float("inf"))
            tile_total = tl.load(partial + 3 * plane + at, mask=real, other=0.0)
            new = tl.maximum(largest, tl.max(tile_largest, 0))
            shift = tl.where(new == -float("inf"), 0.0, new)
            total = total * tl.exp(largest - shift) + tl.sum(tile_total * tl.exp(tile_largest - shift), 0)
            largest = new
        best = tl.where(better, block_best, best)
        token = tl.where(better, block_token, token)
    tl.store(tokens + row, token.to(tl.int64))
    if LOGPROBS:
        tl.store(logprobs + row, chosen - largest - tl.log(total))


def lm_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    temperature: Tensor,
    seed: Tensor,
    first_sample: Tensor,
    logprobs: bool,
    batch_invariant: bool,
) -> tuple[Tensor, Tensor]:
    """Launches both kernels; shapes as in op.py."""
    batch, length, width = hidden.shape
    rows, vocab_size = batch * length, len(weight)
    hidden = hidden.contiguous()
    wide = not batch_invariant and _is_wide(hidden, weight, rows)
    tile = _WIDE_TILE if wide else _tile(rows, hidden.dtype, batch_invariant)
    tiles, pieces = triton.cdiv(vocab_size, tile.vocab), triton.cdiv(vocab_size, tile.piece)
    device = hidden.device
    partial = torch.empty(4 if logprobs else 1, rows, pieces, dtype=torch.float32, device=device)
    partial_index = torch.empty(rows, pieces, dtype=torch.int32, device=device)
    tokens = torch.empty(batch, length, dtype=torch.int64, device=device)
    out = torch.empty((batch, length) if logprobs else 0, dtype=torch.float32, device=device)
    lm_head_tile_kernel[(triton.cdiv(rows, tile.rows) * tiles,)](
        TensorDescriptor.from_tensor(hidden.view(rows, width), [tile.rows, tile.width]) if wide else hidden,
        TensorDescriptor.from_tensor(weight, [tile.vocab, tile.width]) if wide else weight,
        bias,
        temperature,
        seed,
        first_sample,
        partial,
        partial_index,
        rows,
        length,
        vocab_size,
        width,
        LOGPROBS=logprobs,
        OPERAND=_operand(hidden.dtype),
        WEIGHT_EVICTION=_eviction(rows, tile),
        STREAM=GUMBEL_NOISE,
        DESCRIPTORS=wide,
        **tile.constants,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=True,
    )
    lm_head_reduce_kernel[(rows,)](
        partial,
        partial_index,
        tokens,
        out,
        rows,
        pieces,
        LOGPROBS=logprobs,
        BLOCK=_REDUCE_BLOCK,
        num_warps=_REDUCE_WARPS,
        enable_fp_fusion=True,
    )
    return tokens, out


def _tile(rows: int, dtype: torch.dtype, batch_invariant: bool) -> Tile:
    half = dtype != torch.float32
    if batch_invariant:
        return _INVARIANT_HALF if half else _INVARIANT_FLOAT
    tiles = _HALF_TILES if half else _FLOAT_TILES
    return next((tile for tile in tiles if rows <= tile.rows), tiles[-1])


def _is_wide(hidden: Tensor, weight: Tensor, rows: int) -> bool:
    """Whether to go through descriptors: rows of multiples of 16 bytes at aligned addresses, as tensor maps need them."""
    if rows < _WIDE_ROWS or hidden.dtype == torch.float32 or weight.dtype != hidden.dtype:
        return False
    aligned = hidden.shape[-1] % 8 == 0 and hidden.data_ptr() % 16 == 0 and weight.data_ptr() % 16 == 0
    return aligned and shared_memory(hidden.device) >= _WIDE_SHARED_BYTES


def _operand(dtype: torch.dtype) -> tl.dtype:
    """The type that the products' operands have."""
    # Triton's interpreter multiplies the bit patterns of bfloat16 (3.6 to 3.9); float32 gives the same products.
    interpreted = not isinstance(lm_head_tile_kernel, triton.JITFunction)
    return {torch.float16: tl.float16, torch.bfloat16: tl.float32 if interpreted else tl.bfloat16}.get(dtype, tl.float32)


def _eviction(rows: int, tile: Tile) -> str:
    """Weights that are read once must not push what is read again out of the cache."""
    return "evict_first" if rows <= tile.rows else ""


def ahead_of_time():
    """The GEMM for one sample of 64 tokens and for large batches, and the reduction."""
    from dllm_kernels.ops.ahead_of_time import Specialization

    common = {"bias": "*fp32", "temperature": "*fp32", "seed": "*i64", "first_sample": "*i64"}
    common |= {"partial": "*fp32", "partial_index": "*i32"}
    common |= dict.fromkeys(("rows", "length", "vocab_size", "width"), "i32")
    constexprs = ("LOGPROBS", "OPERAND", "WEIGHT_EVICTION", "STREAM", "ROWS", "VOCAB", "PIECE", "WIDTH", "GROUP", "DESCRIPTORS")
    common |= dict.fromkeys(constexprs, "constexpr")
    for element, dtype, rows, logprobs, wide in (
        ("bf16", torch.bfloat16, 64, False, False),
        ("bf16", torch.bfloat16, 64, True, False),
        ("bf16", torch.bfloat16, 4096, True, False),
        ("bf16", torch.bfloat16, 4096, True, True),
        ("fp32", torch.float32, 64, True, False),
    ):
        tile = _WIDE_TILE if wide else _tile(rows, dtype, batch_invariant=False)
        operands = {"hidden": tile.rows, "weight": tile.vocab}
        operands = {k: f"tensordesc<{element}[{n}, {tile.width}]>" if wide else f"*{element}" for k, n in operands.items()}
        constants = {"LOGPROBS": logprobs, "OPERAND": _operand(dtype), "WEIGHT_EVICTION": _eviction(rows, tile)}
        constants |= tile.constants | {"STREAM": GUMBEL_NOISE, "DESCRIPTORS": wide}
        name = f"lm_head[{element}, {rows} rows{', descriptors' * wide}{', logprobs' * logprobs}]"
        run = tile.num_warps, tile.num_stages, (90,) if wide else (90, 120)
        yield Specialization(name, lm_head_tile_kernel, operands | common, constants, *run)
    signature = {"partial": "*fp32", "partial_index": "*i32", "tokens": "*i64", "logprobs": "*fp32"}
    signature |= {"rows": "i32", "tiles": "i32", "LOGPROBS": "constexpr", "BLOCK": "constexpr"}
    constants = {"LOGPROBS": True, "BLOCK": _REDUCE_BLOCK}
    yield Specialization("lm_head_reduce[logprobs]", lm_head_reduce_kernel, signature, constants, _REDUCE_WARPS, 1)
