"""The parts that every module is made of: attention and the MLP. Tensors are [batch, length, features]."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AttentionFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]
"""(q [B, T, H, D], k [B, S, H, D], v [B, S, H, D], key_mask [B, S] bool or None, causal) -> [B, T, H, D]."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(D)) v through PyTorch (arXiv:1706.03762, eq. 1). A row whose keys are all masked gives 0."""
    mask = None
    if key_mask is not None:
        # A row that attends to nothing is computed over every key and then set to 0, so that no softmax sees an empty row.
        empty = ~key_mask.any(dim=1)
        # What a masked entry holds does not matter, NaN included: no weight times NaN is 0.
        k, v = (x.masked_fill(~key_mask[:, :, None, None], 0) for x in (k, v))
        mask = (key_mask | empty[:, None])[:, None, None, :]
        if causal:
            mask = mask & torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).tril()
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, is_causal=causal and mask is None
    ).transpose(1, 2)
    return out if key_mask is None else out.masked_fill(empty[:, None, None, None], 0)


def learned_vectors(count: int, features: int, deviation: float = 0.02) -> nn.Parameter:
    """A parameter [1, count, features], uniform with mean 0 and this standard deviation: queries, positions, a null context."""
    # Not normal: on the meta device that makes PyTorch import its compiler, which takes seconds.
    return nn.Parameter(nn.init.uniform_(torch.empty(1, count, features), -deviation * 3**0.5, deviation * 3**0.5))


class SelfAttention(nn.Module):
    """Multi-head self-attention; `qkv` gives (3, heads, head_dim) features, `out` has a bias."""

    def __init__(self, dim: int, heads: int, attention: AttentionFunction, bias: bool = False, causal: bool = False):
        super().__init__()
        self.heads, self.attention, self.causal = heads, attention, causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, d]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(dim=2)
        return self.out(self.attention(q, k, v, None, self.causal).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention from x to a context that is not normalised; `key_value` gives (2, heads, head_dim) features."""

    def __init__(self, dim: int, context_dim: int, heads: int, attention: AttentionFunction, bias: bool = False):
        super().__init__()
        self.heads, self.attention = heads, attention
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key_value = nn.Linear(context_dim, 2 * dim, bias=bias)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, context_mask: Tensor | None = None) -> Tensor:
        """x [B, T, d], context [B, S, context_dim], context_mask [B, S] bool (True attends) -> [B, T, d]."""
        q = self.query(x).unflatten(-1, (self.heads, -1))
        k, v = self.key_value(context).unflatten(-1, (2, self.heads, -1)).unbind(dim=2)
        return self.out(self.attention(q, k, v, context_mask, False).flatten(2))


class MLP(nn.Module):
    """Linear to four times the width, exact GELU (arXiv:1606.08415), linear back."""

    def __init__(self, dim: int):
        super().__init__()
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, d]."""
        return self.down(F.gelu(self.up(x)))


class DecoderLayer(nn.Module):
    """Pre-norm self-attention, cross-attention and MLP, each added to x. Perceivers and the token decoder are made of it."""

    def __init__(
        self, dim: int, context_dim: int, heads: int, attention: AttentionFunction, bias: bool = False, causal: bool = False
    ):
        super().__init__()
        self.self_norm = nn.LayerNorm(dim)
        self.self_attention = SelfAttention(dim, heads, attention, bias, causal)
        self.cross_norm = nn.LayerNorm(dim)
        self.cross_attention = CrossAttention(dim, context_dim, heads, attention, bias)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = MLP(dim)

    def forward(self, x: Tensor, context: Tensor, context_mask: Tensor | None = None) -> Tensor:
        """x [B, T, d], context [B, S, context_dim], context_mask [B, S] bool -> [B, T, d]."""
        x = x + self.self_attention(self.self_norm(x))
        x = x + self.cross_attention(self.cross_norm(x), context, context_mask)
        return x + self.mlp(self.mlp_norm(x))
