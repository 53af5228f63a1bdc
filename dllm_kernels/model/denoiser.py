"""The denoiser: a diffusion transformer that predicts clean latents z0 from noisy ones at time t."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.model.layers import MLP, AttentionFunction, CrossAttention, SelfAttention, learned_vectors, sdpa

FREQUENCIES = 256


def time_features(t: Tensor, sinusoidal: bool) -> Tensor:
    """Times t [B] as what the first layer reads: t itself [B, 1], or sinusoids of 1000 t [B, FREQUENCIES], in t's dtype."""
    features = t.unsqueeze(-1)
    if not sinusoidal:
        return features
    exponents = torch.arange(FREQUENCIES // 2, dtype=t.dtype, device=t.device) / (FREQUENCIES // 2)
    angles = 1000 * features * torch.exp(-math.log(10_000) * exponents)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class TimeEmbedding(nn.Module):
    """Times t [B] in [0, 1] to vectors [B, d]: an MLP of t itself, or of sinusoids of 1000 t (DiT, arXiv:2212.09748)."""

    def __init__(self, dim: int, sinusoidal: bool):
        super().__init__()
        self.sinusoidal = sinusoidal
        self.up = nn.Linear(FREQUENCIES if sinusoidal else 1, dim)
        self.down = nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        """t [B] -> [B, d] in the weights' dtype."""
        # bf16 cannot tell neighbouring times apart, so the first layer is never computed below float32.
        dtype = torch.promote_types(self.up.weight.dtype, torch.float32)
        features = time_features(t.to(dtype), self.sinusoidal)
        hidden = F.silu(F.linear(features, self.up.weight.to(dtype), self.up.bias.to(dtype)))
        return self.down(hidden.to(self.down.weight.dtype))


class Block(nn.Module):
    """Pre-norm self-attention, cross-attention to a context where the config has one, and MLP.

    With adaLN-Zero (DiT, section 3.2) the time embedding gives shift, scale and gate of attention and of the MLP; the
    gates start at zero, so that a new block is the identity.
    """

    def __init__(self, config: LDLMConfig, attention: AttentionFunction):
        super().__init__()
        dim, ada_ln = config.dim, config.ada_ln
        self.self_norm = nn.LayerNorm(dim, elementwise_affine=not ada_ln)
        self.self_attention = SelfAttention(dim, config.num_heads, attention)
        if config.context:
            self.cross_norm = nn.LayerNorm(dim)
            self.cross_attention = CrossAttention(dim, config.hidden_dim, config.num_heads, attention)
        self.mlp_norm = nn.LayerNorm(dim, elementwise_affine=not ada_ln)
        self.mlp = MLP(dim)
        self.modulation = zeroed(nn.Linear(dim, 6 * dim)) if ada_ln else None

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None, context_mask: Tensor | None) -> Tensor:
        """x [B, T, d], time [B, d], context [B, P, d_h] and context_mask [B, P] where there is one -> [B, T, d]."""
        if self.modulation is None:
            x = x + self.self_attention(self.self_norm(x))
            return x + self.mlp(self.mlp_norm(x))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(F.silu(time)).unsqueeze(1).chunk(6, dim=-1)
        x = x + gate_a * self.self_attention(self.self_norm(x) * (1 + scale_a) + shift_a)
        if context is not None:
            x = x + self.cross_attention(self.cross_norm(x), context, context_mask)
        return x + gate_m * self.mlp(self.mlp_norm(x) * (1 + scale_m) + shift_m)


class Denoiser(nn.Module):
    """Noisy latents, time, the previous prediction and a prompt to predicted clean latents."""

    def __init__(self, config: LDLMConfig, attention: AttentionFunction = sdpa):
        super().__init__()
        self.config = config
        dim, latent_dim = config.dim, config.latent_dim
        self.time_embedding = TimeEmbedding(dim, sinusoidal=config.ada_ln)
        self.guidance_embedding = TimeEmbedding(dim, sinusoidal=True) if config.guidance_range else None
        self.project_in = nn.Linear(2 * latent_dim, dim) if config.self_conditioning else None
        self.positions = learned_vectors(config.seq_len, dim) if config.ada_ln else None
        self.null_context = learned_vectors(1, config.hidden_dim) if config.context else None
        self.blocks = nn.ModuleList(Block(config, attention) for _ in range(config.denoiser_layers))
        self.out_norm = nn.LayerNorm(dim, elementwise_affine=not config.ada_ln)
        self.out_modulation = zeroed(nn.Linear(dim, 2 * dim)) if config.ada_ln else None
        self.project_out = zeroed(nn.Linear(dim, latent_dim)) if config.ada_ln else None

    def forward(
        self,
        latents: Tensor,
        t: Tensor,
        previous: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Predicts z0.

        Args:
            latents: z_t [B, T, d_z] in the weights' dtype, T up to the config's seq_len.
            t: times [B] in [0, 1], 1 is noise.
            previous: the previous prediction of z0 [B, T, d_z], or None.
            context: a prompt's hidden states [B, P, d_h], standardised, or None for the learned null context.
            context_mask: [B, P] bool, True where the prompt has a token; a row of False attends to nothing.
            guidance: scales w [B] within the config's guidance_range, or None for its sampled_guidance.

        Returns:
            [B, T, d_z] in the weights' dtype.
        """
        time = self.step_embedding(t, guidance)
        x = self.embed(latents, previous)
        x = x + (time.unsqueeze(1) if self.positions is None else self.positions[:, : x.shape[1]])
        if self.null_context is not None and context is None:
            context = self.null_context.expand(x.shape[0], -1, -1)
        for block in self.blocks:
            x = block(x, time, context, context_mask)
        x = self.out_norm(x)
        if self.out_modulation is None:
            return x
        shift, scale = self.out_modulation(F.silu(time)).unsqueeze(1).chunk(2, dim=-1)
        return self.project_out(x * (1 + scale) + shift)

    def step_embedding(self, t: Tensor, guidance: Tensor | None = None) -> Tensor:
        """What adaLN reads: times [B] and, where the denoiser reads them, guidance scales [B] -> [B, d]."""
        time = self.time_embedding(t)
        if self.guidance_embedding is None:
            return time
        return time + self.guidance_embedding(self.guidance_shares(t, guidance))

    def guidance_shares(self, t: Tensor, guidance: Tensor | None = None) -> Tensor:
        """What the guidance embedding reads for scales w [B], or for the config's: the least scale over w, in (0, 1]."""
        guidance = torch.full_like(t, self.config.sampled_guidance) if guidance is None else guidance
        return self.config.guidance_range[0] / guidance

    def embed(self, latents: Tensor, previous: Tensor | None) -> Tensor:
        """Latents and the previous prediction, each [B, T, d_z], to [B, T, d], before time or positions are added."""
        if self.project_in is None or (previous is None and self.config.first_prediction == "skip"):
            return latents
        previous = torch.zeros_like(latents) if previous is None else previous
        return self.project_in(torch.cat((latents, previous), dim=-1))


def zeroed(linear: nn.Linear) -> nn.Linear:
    """`linear` with weight and bias set to zero, as adaLN-Zero starts."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
