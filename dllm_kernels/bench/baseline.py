"""What a sampler is measured against: the published open-dllm generation, in eager PyTorch on the modules of model/."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm_kernels.inference.weights import RandomModel
from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.model.ldlm import LDLM, MODULES
from dllm_kernels.utils.device import free_memory


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Attention as the published code writes it: product, softmax, product, with a causal mask made on the CPU at every use.

    Shapes are those of `AttentionFunction` (model/layers.py).

    Raises:
        ValueError: a key mask, which the published code does not have.
    """
    if key_mask is not None:
        raise ValueError("the published attention takes no key mask")
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if causal:
        scores = scores + nn.Transformer.generate_square_subsequent_mask(q.shape[2]).to(q)
    return (F.softmax(scores, dim=-1) @ v).transpose(1, 2)


def random_model(config: LDLMConfig, dtype: torch.dtype, device: torch.device, seed: int = 0) -> LDLM:
    """A model with the weights of `RandomModel` (inference/weights.py), made in `dtype` part by part.

    Raises:
        MemoryError: too little memory; needed and free, before anything is allocated.
    """
    with torch.device("meta"):
        model = LDLM(config)
    needed, free = sum(p.numel() for p in model.parameters()) * dtype.itemsize, free_memory(device)
    if needed > free:
        raise MemoryError(f"the model needs {needed / 1e9:.1f} GB on {device} and {free / 1e9:.1f} GB are free")
    source = RandomModel(config, seed, dtype)
    for name in MODULES:
        getattr(model, name).load_state_dict(source(name).to(device).state_dict(), assign=True)
    return model.eval()


@torch.no_grad()
def published_generate(
    model: LDLM, num_steps: int, seq_len: int, batch_size: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """The published loop, as it is: t rises from 1/N to 1 and every step noises the prediction to the level of its own t.

        z <- sqrt(1 - t^2) z0(z, t) + 0.1 t eps,    t = 1/N, 2/N, ..., 1

    At t = 1 the prediction is multiplied by zero, so what is decoded is noise, whatever the denoiser predicted. The loop is
    here to be timed: its work is that of a generation.

    Args:
        model: made with `explicit_attention`, in the dtype and on the device to be timed.
        num_steps: N.
        seq_len: T.
        batch_size: B.
        generator: of the noise, on the model's device.

    Returns:
        tokens [B, T] int64.
    """
    weight = model.lm_head.weight
    like = {"dtype": weight.dtype, "device": weight.device, "generator": generator}
    shape = (batch_size, seq_len, model.config.latent_dim)
    z = torch.randn(shape, **like)
    for step in range(1, num_steps + 1):
        t = step / num_steps
        data = 1 - t**2
        prediction = model.denoise(z, torch.full((batch_size,), t, device=weight.device))
        z = data**0.5 * prediction + 0.1 * (1 - data) ** 0.5 * torch.randn(shape, **like)
    return model.logits(model.decode(z)).argmax(dim=-1)
