"""What a model can do with human text: reconstruct it from latents, and tell which continuation belongs to a prompt."""

import torch
from torch import Tensor

from dllm_kernels.diffusion.schedule import NoiseSchedule
from dllm_kernels.model.encoder import Encoder
from dllm_kernels.model.ldlm import LDLM

_TIMES = 8


@torch.no_grad()
def reconstructed(model: LDLM, encoder: Encoder, tokens: Tensor, batch_size: int = 64) -> float:
    """Share of tokens that the autoencoder gives back: tokens, hidden states, latents, hidden states, tokens.

    Args:
        model: in a dtype and on the device in which it is to run.
        tokens: [N, T] int64, without special tokens.
    """
    right = 0
    for part in tokens.split(batch_size):
        latents = _latents(model, encoder, part)
        right += int((model.logits(model.decode(latents)).argmax(-1).cpu() == part.cpu()).sum())
    return right / tokens.numel()


@torch.no_grad()
def prompt_losses(
    model: LDLM, encoder: Encoder, prompts: Tensor, continuations: Tensor, batch_size: int = 64, seed: int = 0
) -> dict[str, Tensor]:
    """Denoising losses that say whether a prompt is read; the other prompt or continuation of row i is that of row i + 1.

    The loss is |z0 - denoise(z_t, t)|^2, the mean over features, over 8 times that divide [0, 1] evenly and over one noise for
    each, the same for every row. Nothing is self-conditioned.

    Args:
        prompts: [N, P] int64, continuations: [N, T] int64, each the text that follows its prompt; N at least 2.

    Returns:
        [N] float64 each: "own", a continuation after its prompt; "other_continuation", another one after that prompt;
        "other_prompt", the continuation after another prompt; "no_prompt", the continuation after the null context.
    """
    schedule = NoiseSchedule.from_config(model.config)
    dtype, device = next((p.dtype, p.device) for p in model.parameters())
    generator = torch.Generator().manual_seed(seed)
    shape = (_TIMES, 1, model.config.seq_len, model.config.latent_dim)
    noise = torch.randn(shape, generator=generator).to(device, dtype)[:, :, : continuations.shape[1]]
    times = (torch.arange(_TIMES, dtype=torch.float64) + 0.5) / _TIMES

    def loss(context: Tensor | None, latents: Tensor) -> Tensor:
        total = 0.0
        for t, eps in zip(times.tolist(), noise, strict=True):
            noisy = float(schedule.alpha(t)) * latents + float(schedule.sigma(t)) * eps
            prediction = model.denoise(noisy, torch.full((len(latents),), t, device=device), None, context)
            total = total + (prediction - latents).double().square().mean(dim=(1, 2))
        return total.cpu() / _TIMES

    found: dict[str, list[Tensor]] = {"own": [], "other_continuation": [], "other_prompt": [], "no_prompt": []}
    for rows in torch.arange(len(prompts)).split(batch_size):
        next_rows = (rows + 1) % len(prompts)
        own, other = (_latents(model, encoder, continuations[index]) for index in (rows, next_rows))
        prompt, other_prompt = (encoder(prompts[index]).to(device, dtype) for index in (rows, next_rows))
        found["own"].append(loss(prompt, own))
        found["other_continuation"].append(loss(prompt, other))
        found["other_prompt"].append(loss(other_prompt, own))
        found["no_prompt"].append(loss(None, own))
    return {name: torch.cat(parts) for name, parts in found.items()}


def prompt_shares(losses: dict[str, Tensor]) -> dict[str, float]:
    """Shares of pairs in which the prompt's own continuation is the likelier one.

    Returns:
        "continuations": the own continuation is more likely after the prompt than another one is.
        "lift": the same after the loss without a prompt is taken off each, so that an easy text is not favoured.
        "prompts": the continuation is more likely after its own prompt than after another.
    """
    own, other = losses["own"], losses["other_continuation"]
    base = losses["no_prompt"]
    shares = {
        "continuations": own < other,
        "lift": own - base < other - base.roll(-1),
        "prompts": own < losses["other_prompt"],
    }
    return {name: float(better.double().mean()) for name, better in shares.items()}


def _latents(model: LDLM, encoder: Encoder, tokens: Tensor) -> Tensor:
    parameter = next(model.parameters())
    return model.encode(encoder(tokens).to(parameter.device, parameter.dtype))
