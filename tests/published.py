"""An independent restatement of the published open-dllm architecture, written from docs/design.md to hold ours against.

It keeps the published parameter names, computes attention by explicit softmax, and shares no code with the package.
"""

import math

import torch
from torch import nn


class PreNorm(nn.Module):
    def __init__(self, dim, fn):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn

    def forward(self, x, *context):
        return self.fn(self.norm(x), *context)


class FeedForward(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x):
        return self.net(x)


def attend(q, k, v, heads):
    """[B, T, d] and [B, S, d] twice, by explicit softmax of every head."""
    b, t, d = q.shape
    q, k, v = (y.reshape(b, -1, heads, d // heads).permute(0, 2, 1, 3) for y in (q, k, v))
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(d // heads)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    weights = weights / weights.sum(-1, keepdim=True)
    return torch.einsum("bhts,bhsd->bthd", weights, v).reshape(b, t, d)


class SelfAttention(nn.Module):
    def __init__(self, dim, heads=8):
        super().__init__()
        self.heads = heads
        self.to_qkv, self.to_out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x):
        return self.to_out(attend(*self.to_qkv(x).chunk(3, dim=-1), self.heads))


class CrossAttention(nn.Module):
    def __init__(self, dim, heads=8):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x, context):
        return self.to_out(attend(self.to_q(x), self.to_k(context), self.to_v(context), self.heads))


class Perceiver(nn.Module):
    def __init__(self, dim, num_latents, depth):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, num_latents, dim))
        self.layers = nn.ModuleList(
            nn.ModuleList([PreNorm(dim, SelfAttention(dim)), PreNorm(dim, CrossAttention(dim)), PreNorm(dim, FeedForward(dim))])
            for _ in range(depth)
        )

    def forward(self, context):
        x = self.latents.expand(len(context), -1, -1)
        for self_attention, cross_attention, feed_forward in self.layers:
            x = self_attention(x) + x
            x = cross_attention(x, context) + x
            x = feed_forward(x) + x
        return x


class DiffusionHead(nn.Module):
    def __init__(self, dim, depth, proj_in):
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(1, dim), nn.SiLU(), nn.Linear(dim, dim))
        if proj_in:
            self.proj_in = nn.Linear(2 * dim, dim)
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(dim), SelfAttention(dim), nn.LayerNorm(dim), FeedForward(dim)]) for _ in range(depth)
        )
        self.out_norm = nn.LayerNorm(dim)

    def forward(self, z, t, previous=None):
        x = z if previous is None else self.proj_in(torch.cat([z, previous], dim=-1))
        x = x + self.time_mlp(t[:, None].to(z.dtype))[:, None]
        for norm1, attention, norm2, feed_forward in self.blocks:
            x = attention(norm1(x)) + x
            x = feed_forward(norm2(x)) + x
        return self.out_norm(x)


class Published(nn.Module):
    """The five published modules with random weights, every norm and bias random too."""

    def __init__(self, dim, vocab_size, seq_len, proj_in=False, depth=4, decoder_num_layers=2, diffusion_head_depth=4):
        super().__init__()
        heads = next(h for h in (16, 12, 8, 4, 2) if dim % h == 0)
        self.latent_encoder = Perceiver(dim, seq_len, depth)
        self.latent_decoder = Perceiver(dim, seq_len, depth)
        layer = nn.TransformerDecoderLayer(dim, heads, 4 * dim, activation="gelu", batch_first=True, norm_first=True)
        self.token_decoder = nn.TransformerDecoder(layer, decoder_num_layers, norm=nn.LayerNorm(dim))
        self.lm_head = nn.Linear(dim, vocab_size)
        self.diffusion_head = DiffusionHead(dim, diffusion_head_depth, proj_in)
        self.fields = {
            "encoder": None,
            "seq_len": seq_len,
            "depth": depth,
            "decoder_num_layers": decoder_num_layers,
            "diffusion_head_depth": diffusion_head_depth,
            "dim": dim,
            "vocab_size": vocab_size,
        }
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                scale = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
                offset = 1.0 if "norm" in name and name.endswith("weight") else 0.1 * (parameter.ndim == 1)
                parameter.copy_(torch.randn_like(parameter) * scale + offset)
        self.eval()

    def decode(self, z):
        """Latents to (h-hat, logits)."""
        hidden = self.latent_decoder(z)
        mask = nn.Transformer.generate_square_subsequent_mask(hidden.shape[1], dtype=hidden.dtype)
        return hidden, self.lm_head(self.token_decoder(tgt=hidden, memory=hidden, tgt_mask=mask))

    def checkpoint(self):
        """What the published code saves."""
        names = ("latent_encoder", "latent_decoder", "token_decoder", "lm_head", "diffusion_head")
        return {name: getattr(self, name).state_dict() for name in names} | {"config": self.fields}
