"""lm_head: token[b, t] = argmax_v (x_bt . w_v + b_v + temperature * g_btv), which samples softmax(logits / temperature).

g is standard Gumbel noise (Gumbel-max: Maddison, Tarlow and Minka, "A* sampling", NeurIPS 2014, section 2). g_btv is made of
word t V' + v, V' = V rounded up to a multiple of 4, of sample first_sample + b, step 0, stream GUMBEL_NOISE
(diffusion/noise.py), so that every row of V values begins a Philox call. No implementation holds all logits at once.
"""

import torch
from torch import Tensor

from dllm_kernels.diffusion.noise import GUMBEL_NOISE, gumbels, uniforms, words
from dllm_kernels.ops.dispatch import FLOATING, implementation, select, triton_unsupported_reason
from dllm_kernels.ops.extension import cuda_unsupported_reason, load
from dllm_kernels.ops.lm_head import persistent
from dllm_kernels.ops.noise.op import validate_scalars

# Rows of the weight at a time. On a CPU the widened chunk stays in the cache; on a GPU it fills the card.
_CPU_CHUNK, _GPU_CHUNK = 512, 8192
# For the CUDA kernel: entries of the vocabulary at a time, and the most logits, 256 MB.
_CUDA_CHUNK, _CUDA_LOGITS = 32768, 2**26
_HALF = (torch.bfloat16, torch.float16)


def reference(
    hidden: Tensor, weight: Tensor, bias: Tensor, temperature: Tensor, seed: Tensor, first_sample: Tensor
) -> tuple[Tensor, Tensor]:
    """(tokens [B, T] int64, log-probabilities [B, T] float64) in plain PyTorch, computed in float64 with all logits at once."""
    batch, length, _ = hidden.shape
    logits = hidden.double() @ weight.double().T + bias.double()
    uniform = _uniforms(seed, first_sample, batch, length, 0, len(weight), len(weight)).double()
    noisy = logits + temperature.double() * gumbels(uniform)
    tokens = noisy.nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=-float("inf")).argmax(-1)
    return tokens, logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _uniforms(seed: Tensor, first_sample: Tensor, batch: int, length: int, start: int, stop: int, vocab_size: int) -> Tensor:
    """The noise's uniforms of entries start (a multiple of 4) to stop of the vocabulary: [batch, length, stop - start]."""
    column = torch.arange(start, _fours(stop), device=seed.device)
    element = torch.arange(length, device=seed.device).unsqueeze(1) * _fours(vocab_size) + column
    word = words(seed, first_sample, 0, GUMBEL_NOISE, batch, element.flatten())
    return uniforms(word).view(batch, length, -1)[..., : stop - start]


def _fours(count: int) -> int:
    """`count` rounded up to a multiple of 4."""
    return (count + 3) // 4 * 4


@implementation(
    "lm_head",
    "triton",
    triton_unsupported_reason,
    f"but on Hopper CUDA's tiles, for bfloat16 from {persistent.MIN_ROWS} rows on",
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
    chunk = min(_CUDA_CHUNK, max(_CUDA_LOGITS // rows // 4 * 4, 4), _fours(vocab_size))
    memory = hidden.new_empty(rows * chunk, dtype=torch.float32)
    state = hidden.new_empty((rows, 5), dtype=torch.float32)
    tokens = hidden.new_empty((batch, length), dtype=torch.int64)
    out = hidden.new_empty((batch, length), dtype=torch.float32) if logprobs else _nothing(hidden)
    for first in range(0, batch, at_once):
        group = hidden[first : first + at_once].reshape(-1, width)
        group = group.clone(memory_format=torch.contiguous_format) if batch_invariant else group
        sample = first_sample + first
        for start in range(0, vocab_size, chunk):
            stop = min(start + chunk, vocab_size)
            pitch = _fours(stop - start)
            logits = memory[: rows * pitch].view(rows, pitch)[:, : stop - start]
            _product(group, weight[start:stop].to(group.dtype), out=logits)
            with torch.cuda.device(hidden.device):
                load().lm_head_chunk(
                    logits=logits.data_ptr(),
                    bias=bias.data_ptr(),
                    temperature=temperature.data_ptr(),
                    seed=seed.data_ptr(),
                    first_sample=sample.data_ptr(),
                    state=state.data_ptr(),
                    tokens=tokens[first].data_ptr(),
                    logprobs=out[first].data_ptr() if logprobs else 0,
                    rows=rows,
                    length=length,
                    vocab_size=vocab_size,
                    pitch=pitch,
                    begin=start,
                    end=stop,
                    stream=torch.cuda.current_stream(hidden.device).cuda_stream,
                )
    return tokens, out


@implementation("lm_head", "torch")
def _torch(hidden, weight, bias, temperature, seed, first_sample, logprobs: bool, batch_invariant: bool):
    batch, length, width = hidden.shape
    vocab_size = len(weight)
    on_cpu = hidden.device.type == "cpu"
    # Reading the temperature makes a GPU wait, which is not allowed; there the noise is always drawn.
    noisy = not on_cpu or temperature.item() > 0
    chunk = min(_CPU_CHUNK if on_cpu else _GPU_CHUNK, _fours(vocab_size))
    # A product of halves on a CPU is slow, and rounds logits to halves; elsewhere it is asked for in float32.
    widen = weight.dtype in _HALF and (hidden.dtype == torch.float32 or hidden.device.type != "cuda")
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
                uniform = _uniforms(seed, first, at_once, length, start, stop, vocab_size)
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
        return tokens, _nothing(hidden)
    return tokens, (chosen - largest - total.log()).float().view(batch, length)


def _product(x: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
    """x rows^T, in float32 where the operands are halves."""
    return torch.mm(x, rows.T, out_dtype=torch.float32, out=out) if x.dtype in _HALF else torch.mm(x, rows.T, out=out)


def _nothing(hidden: Tensor) -> Tensor:
    """What stands for log-probabilities that nobody asked for."""
    return hidden.new_empty(0, dtype=torch.float32)


@torch.library.custom_op("dllm_kernels::lm_head", mutates_args=())
def _lm_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    temperature: Tensor,
    seed: Tensor,
    first_sample: Tensor,
    logprobs: bool = False,
    batch_invariant: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`lm_head`, with an empty tensor for no log-probabilities, since an op always returns as many tensors."""
    _validate(hidden, weight, bias, temperature, seed, first_sample)
    if backend == "auto" and not batch_invariant and persistent.supports(hidden, weight, bias):
        return persistent.lm_head_persistent(hidden.contiguous(), weight, bias, temperature, seed, first_sample, logprobs)
    if backend == "auto" and hidden.dtype == torch.float64:
        backend = "torch"
    function = select("lm_head", hidden.device, backend).function
    return function(hidden, weight, bias, temperature, seed, first_sample, logprobs, batch_invariant)


@_lm_head.register_fake
def _(hidden, weight, bias, temperature, seed, first_sample, logprobs=False, batch_invariant=False, backend="auto"):
    _validate(hidden, weight, bias, temperature, seed, first_sample)
    tokens = hidden.new_empty(hidden.shape[:2], dtype=torch.int64)
    return tokens, hidden.new_empty(hidden.shape[:2], dtype=torch.float32) if logprobs else _nothing(hidden)


def lm_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    temperature: Tensor,
    seed: Tensor,
    first_sample: Tensor,
    logprobs: bool = False,
    batch_invariant: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """A token for every position, and on request its log-probability. For inference: it has no gradient.

    Args:
        hidden: [B, T, d] float32, bfloat16, float16, or float64 (served by "torch").
        weight: [V, d], contiguous, of hidden's dtype; or bfloat16 or float16 under a float32 hidden.
        bias: [V], float32 or weight's dtype.
        temperature: float32 scalar tensor, not negative; 0 takes the largest logit.
        seed, first_sample: int64 scalar tensors; sample j of the batch is sample `first_sample + j` of the seed.
        logprobs: whether log-probabilities are returned.
        batch_invariant: a sample's result is the same bit for bit in every batch.
        backend: "auto", "cuda", "triton" or "torch".

    All tensors are on one device. The scalars are read there, without synchronisation, so a captured graph reads new values.

    Returns:
        tokens [B, T] int64. The lowest index wins a tie; NaN counts as +inf.
        log-probabilities [B, T] float32 of the tokens under softmax(logits), that is at temperature 1, or None; NaN where a
        logit is NaN or +inf or all are -inf. Logits are float32 (float64 for float64).

    Raises:
        ValueError: a shape, dtype or device does not fit, T times V rounded up to a multiple of 4 is 2^32 or more, or the
            backend is unknown.
        RuntimeError: the backend cannot run on the device.
    """
    tokens, logprob = _lm_head(hidden, weight, bias, temperature, seed, first_sample, logprobs, batch_invariant, backend)
    return tokens, logprob if logprobs else None


def _validate(hidden, weight, bias, temperature, seed, first_sample) -> None:
    if hidden.ndim != 3 or hidden.numel() == 0 or hidden.dtype not in FLOATING:
        raise ValueError(f"hidden is {hidden.dtype} {list(hidden.shape)}; it must be a floating-point [B, T, d] and not empty")
    width = hidden.shape[-1]
    if weight.ndim != 2 or weight.shape[1] != width or len(weight) == 0:
        raise ValueError(f"weight has shape {list(weight.shape)}; it must be [V, {width}] and not empty")
    dtypes = (hidden.dtype, *(_HALF if hidden.dtype == torch.float32 else ()))
    if weight.dtype not in dtypes:
        allowed = " or ".join(map(str, dtypes))
        raise ValueError(f"weight is {weight.dtype} under a {hidden.dtype} hidden; it must be {allowed}")
    if not weight.is_contiguous():
        raise ValueError(f"weight has strides {weight.stride()}; it must be contiguous")
    if tuple(bias.shape) != (len(weight),) or bias.dtype not in (torch.float32, weight.dtype) or not bias.is_contiguous():
        allowed = f"a contiguous [{len(weight)}], torch.float32 or {weight.dtype}"
        raise ValueError(f"bias is {bias.dtype} {list(bias.shape)}; it must be {allowed}")
    validate_shared(hidden, weight, len(weight), bias, temperature, seed, first_sample)


def validate_shared(hidden, weight, vocab_size: int, bias, temperature, seed, first_sample) -> None:
    """What holds for packed weights too (ops/lm_head_skinny.py)."""
    if temperature.dtype != torch.float32 or temperature.ndim != 0:
        raise ValueError(f"temperature is {temperature.dtype} {list(temperature.shape)}; it must be a float32 scalar tensor")
    validate_scalars(seed, first_sample)
    for name, tensor in (("weight", weight), ("bias", bias), ("temperature", temperature), ("seed", seed)):
        if tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device} and hidden on {hidden.device}; they must share a device")
    if hidden.shape[1] * _fours(vocab_size) >= 2**32:
        raise ValueError(f"{hidden.shape[1]} tokens x {vocab_size} entries of the vocabulary must be below 2^32")
