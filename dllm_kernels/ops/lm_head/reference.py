"""lm_head: token[b, t] = argmax_v (x_bt . w_v + b_v + temperature * g_btv), which samples softmax(logits / temperature).

g is standard Gumbel noise (Gumbel-max: Maddison, Tarlow and Minka, "A* sampling", NeurIPS 2014, section 2). g_btv is made of
word t V' + v, V' = V rounded up to a multiple of 4, of sample first_sample + b, step 0, stream GUMBEL_NOISE
(diffusion/noise.py), so that every row of V values begins a Philox call. No implementation holds all logits at once.
"""

import torch
from torch import Tensor

from dllm_kernels.diffusion.noise import GUMBEL_NOISE, gumbels, uniforms, words


def reference(
    hidden: Tensor, weight: Tensor, bias: Tensor, temperature: Tensor, seed: Tensor, first_sample: Tensor
) -> tuple[Tensor, Tensor]:
    """(tokens [B, T] int64, log-probabilities [B, T] float64) in plain PyTorch, computed in float64 with all logits at once."""
    batch, length, _ = hidden.shape
    logits = hidden.double() @ weight.double().T + bias.double()
    uniform = row_uniforms(seed, first_sample, batch, length, 0, len(weight), len(weight)).double()
    noisy = logits + temperature.double() * gumbels(uniform)
    tokens = noisy.nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=-float("inf")).argmax(-1)
    return tokens, logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def row_uniforms(seed: Tensor, first_sample: Tensor, batch: int, length: int, start: int, stop: int, vocab_size: int) -> Tensor:
    """The noise's uniforms of entries start (a multiple of 4) to stop of the vocabulary: [batch, length, stop - start]."""
    column = torch.arange(start, fours(stop), device=seed.device)
    element = torch.arange(length, device=seed.device).unsqueeze(1) * fours(vocab_size) + column
    word = words(seed, first_sample, 0, GUMBEL_NOISE, batch, element.flatten())
    return uniforms(word).view(batch, length, -1)[..., : stop - start]


def fours(count: int) -> int:
    """`count` rounded up to a multiple of 4."""
    return (count + 3) // 4 * 4
