"""The token decoder: a small transformer decoder whose target and memory are both the decoded hidden states."""

from torch import Tensor, nn

from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.model.layers import AttentionFunction, DecoderLayer, sdpa


class TokenDecoder(nn.Module):
    """`torch.nn.TransformerDecoder` with norm_first, GELU, biases and a final LayerNorm; its target is its memory."""

    def __init__(self, config: LDLMConfig, attention: AttentionFunction = sdpa):
        super().__init__()
        dim, heads = config.hidden_dim, config.token_decoder_heads
        self.layers = nn.ModuleList(
            DecoderLayer(dim, dim, heads, attention, bias=True, causal=config.causal)
            for _ in range(config.token_decoder_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """Decoded hidden states [B, T, d_h] -> features for the lm_head [B, T, d_h]."""
        x = hidden
        for layer in self.layers:
            x = layer(x, hidden)
        return self.norm(x)
