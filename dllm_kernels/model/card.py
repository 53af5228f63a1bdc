"""The model card that is written beside weights: what the config and the parameters say, and nothing that they do not."""

from dllm_kernels.model.config import LDLMConfig

PAPER = "https://arxiv.org/abs/2605.07933"


def card(config: LDLMConfig, parameters: int) -> str:
    """README.md of a model with this config and so many parameters: front matter for the hub, then text."""
    prompts = config.context and config.trained_with_prompts
    encoder = "none is named" if config.encoder is None else f"{config.encoder}, hidden states {config.encoder_layer}"
    return f"""---
library_name: dllm_kernels
pipeline_tag: text-generation
tags:
- latent-diffusion
- text-generation
---

# Latent diffusion language model

A latent diffusion language model ({PAPER}) with {parameters:,} parameters, for dllm_kernels.
It writes {config.seq_len} tokens at once.

- **Shape**: width {config.dim}, {config.num_heads} heads, a denoiser of {config.denoiser_layers} layers, a vocabulary of \
{config.vocab_size:,} tokens.
- **Frozen encoder**: {encoder}.
- **Prompts**: {"taken; they need the frozen encoder" if prompts else "not taken"}.
- **Noise schedule**: {config.noise_schedule}.

Its author has not said what it was trained on, under which license it may be used, or how good its text is.

```python
from dllm_kernels import LDLMPipeline

print(LDLMPipeline.from_pretrained("FOLDER")().texts[0])
```
"""
