"""The lm_head by Triton, by chunks of a library's logits, and by PyTorch (reference.py has the formula)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_kernels.diffusion.noise import gumbels
from dllm_kernels.ops.call import none_as_empty
from dllm_kernels.ops.dispatch import implementation, triton_unsupported_reason
from dllm_kernels.ops.extension import cuda_unsupported_reason, launch
from dllm_kernels.ops.lm_head import persistent
from dllm_kernels.ops.lm_head.reference import fours, row_uniforms

# Rows of the weight at a time. On a CPU the widened chunk stays in the cache; on a GPU it fills the card.
_CPU_CHUNK, _GPU_CHUNK = 512, 8192
# For the CUDA kernel: entries of the vocabulary at a time, and the most logits, 256 MB.
_CUDA_CHUNK, _CUDA_LOGITS = 32768, 2**26
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class LmHeadChunked:
    """A call of lm_head_chunked; the names are those of csrc/include/dllm/kernels.h, where they are explained."""

    logits: Tensor
    bias: Tensor
    temperature: Tensor
    seed: Tensor
    first_sample: Tensor
    state: Tensor
    tokens: Tensor
    logprobs: Tensor | None
    m: int
    length: int
    vocab_size: int
    pitch: int
    begin: int
    end: int


@implementation(
    "lm_head",
    "triton",
    triton_unsupported_reason,
    f"but on Hopper the persistent CUDA kernel, for bfloat16 from {persistent.MIN_M} rows on",
)
def _triton(hidden, weight, bias, temperature, seed, first_sample, logprobs: bool, batch_invariant: bool):
    if hidden.dtype == torch.float64:
        raise ValueError("the triton implementation of lm_head computes in float32, and hidden is float64")
    from dllm_kernels.ops.lm_head.triton import lm_head

    with torch.cuda.device_of(hidden):
        return lm_head(hidden, weight, bias, temperature, seed, first_sample, logprobs, batch_invariant)


@implementation("lm_head", "cuda", cuda_unsupported_reason)
def _cuda(hidden, weight, bias, temperature, seed, first_sample, logprobs: bool, batch_invariant: bool):
    """A library multiplies by a chunk of the vocabulary, whose logits the kernel takes in."""
    if hidden.dtype == torch.float64:
        raise ValueError("the cuda implementation of lm_head computes in float32, and hidden is float64")
    batch, length, width = hidden.shape
    vocab_size, bias = len(weight), bias.float()
    # As in _torch.
    at_once = 1 if batch_invariant else batch
    rows = at_once * length
    chunk = min(_CUDA_CHUNK, max(_CUDA_LOGITS // rows // 4 * 4, 4), fours(vocab_size))
    memory = hidden.new_empty(rows * chunk, dtype=torch.float32)
    state = hidden.new_empty((rows, 5), dtype=torch.float32)
    tokens = hidden.new_empty((batch, length), dtype=torch.int64)
    out = hidden.new_empty((batch, length), dtype=torch.float32) if logprobs else none_as_empty(hidden, None, torch.float32)
    for first in range(0, batch, at_once):
        group = hidden[first : first + at_once].reshape(-1, width)
        group = group.clone(memory_format=torch.contiguous_format) if batch_invariant else group
        sample = first_sample + first
        for start in range(0, vocab_size, chunk):
            stop = min(start + chunk, vocab_size)
            pitch = fours(stop - start)
            logits = memory[: rows * pitch].view(rows, pitch)[:, : stop - start]
            _product(group, weight[start:stop].to(group.dtype), out=logits)
            call = LmHeadChunked(
                logits=logits,
                bias=bias,
                temperature=temperature,
                seed=seed,
                first_sample=sample,
                state=state,
                tokens=tokens[first],
                logprobs=out[first] if logprobs else None,
                m=rows,
                length=length,
                vocab_size=vocab_size,
                pitch=pitch,
                begin=start,
                end=stop,
            )
            launch("lm_head_chunked", call, hidden.device)
    return tokens, out


@implementation("lm_head", "torch")
def _torch(hidden, weight, bias, temperature, seed, first_sample, logprobs: bool, batch_invariant: bool):
    batch, length, width = hidden.shape
    vocab_size = len(weight)
    on_cpu = hidden.device.type == "cpu"
    # Reading the temperature makes a GPU wait, which is not allowed; there the noise is always drawn.
    noisy = not on_cpu or temperature.item() > 0
    chunk = min(_CPU_CHUNK if on_cpu else _GPU_CHUNK, fours(vocab_size))
    # A product of halves on a CPU is slow, and rounds logits to halves; elsewhere it is asked for in float32.
    widen = weight.dtype in HALF and (hidden.dtype == torch.float32 or hidden.device.type != "cuda")
    scratch = hidden.new_empty((chunk, width), dtype=torch.float32) if widen else None

    # A library's result for a row depends on the rows beside it, so batch invariance takes a sample at a time.
    at_once = 1 if batch_invariant else batch
    groups = [hidden[first : first + at_once].reshape(-1, width) for first in range(0, batch, at_once)]
    groups = [group.float() if widen else group for group in groups]
    if batch_invariant:
        # A fresh tensor is aligned like the tensor of a batch of one.
        groups = [group.clone(memory_format=torch.contiguous_format) for group in groups]

    dtype = torch.promote_types(hidden.dtype, torch.float32)
    best = hidden.new_full((len(groups), at_once * length), -float("inf"), dtype=dtype)
    tokens = torch.zeros_like(best, dtype=torch.int64)
    # A log-probability is chosen - largest - ln(total), total = sum exp(logit - largest), which is exact near 0.
    chosen, largest, total = best.clone(), best.clone(), torch.zeros_like(best, dtype=torch.float64)
    for start in range(0, vocab_size, chunk):
        stop = min(start + chunk, vocab_size)
        rows = scratch[: stop - start].copy_(weight[start:stop]) if widen else weight[start:stop]
        for i, group in enumerate(groups):
            logits = _product(group, rows).add_(bias[start:stop])
            values = logits
            if noisy:
                first = first_sample + i * at_once
                uniform = row_uniforms(seed, first, at_once, length, start, stop, vocab_size)
                values = logits + temperature.to(dtype) * gumbels(uniform.to(dtype)).view_as(logits)
            value, index = values.nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=-float("inf")).max(-1)
            better = value > best[i]
            best[i] = torch.where(better, value, best[i])
            tokens[i] = torch.where(better, index + start, tokens[i])
            if logprobs:
                chosen[i] = torch.where(better, logits.gather(1, index.unsqueeze(1)).squeeze(1), chosen[i])
                now = torch.maximum(largest[i], logits.amax(-1))
                # Where all are -inf, exp(-inf - -inf) would be NaN.
                shift = now.masked_fill(now == -float("inf"), 0)
                total[i] = total[i] * (largest[i] - shift).exp() + (logits - shift.unsqueeze(1)).exp().sum(-1)
                largest[i] = now
    tokens = tokens.view(batch, length)
    if not logprobs:
        return tokens, none_as_empty(hidden, None, torch.float32)
    return tokens, (chosen - largest - total.log()).float().view(batch, length)


def _product(x: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
    """x rows^T, in float32 where the operands are halves."""
    return torch.mm(x, rows.T, out_dtype=torch.float32, out=out) if x.dtype in HALF else torch.mm(x, rows.T, out=out)
