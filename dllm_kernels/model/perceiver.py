"""The Perceiver (arXiv:2103.03206): learned queries read a context, layer by layer. The latent encoder and decoder."""

from torch import Tensor, nn

from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.model.layers import AttentionFunction, DecoderLayer, learned_vectors, sdpa


class Perceiver(nn.Module):
    """T learned queries attend to themselves and to a context of any length.

    Args:
        config: gives T, the width, the heads and the depth.
        context_dim: features of the context.
        out_dim: features of the result; a projection follows the layers where it differs from the width.
        positions: learned positions are added to the context, as to a Perceiver's inputs (arXiv:2103.03206, section 3.2).
        attention: the attention function of every layer.
    """

    def __init__(
        self,
        config: LDLMConfig,
        context_dim: int,
        out_dim: int,
        attention: AttentionFunction = sdpa,
        positions: bool = False,
    ):
        super().__init__()
        # As large as standardised hidden states, so that attention finds a position from the first step of training on.
        self.positions = learned_vectors(config.seq_len, context_dim, deviation=1.0) if positions else None
        self.latents = learned_vectors(config.seq_len, config.dim)
        self.layers = nn.ModuleList(
            DecoderLayer(config.dim, context_dim, config.num_heads, attention) for _ in range(config.perceiver_layers)
        )
        self.project_out = nn.Linear(config.dim, out_dim) if out_dim != config.dim else nn.Identity()

    def forward(self, context: Tensor, context_mask: Tensor | None = None, seq_len: int | None = None) -> Tensor:
        """context [B, S, context_dim], context_mask [B, S] bool -> [B, seq_len, out_dim], from the first seq_len queries.

        Raises:
            ValueError: a context longer than the positions that there are.
        """
        if self.positions is not None:
            if context.shape[1] > self.positions.shape[1]:
                raise ValueError(f"the context has {context.shape[1]} rows and there are {self.positions.shape[1]} positions")
            context = context + self.positions[:, : context.shape[1]]
        x = self.latents[:, :seq_len].expand(context.shape[0], -1, -1)
        for layer in self.layers:
            x = layer(x, context, context_mask)
        return self.project_out(x)
