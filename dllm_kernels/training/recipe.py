"""The losses of joint training, L = L_diff + L_h + L_w (arXiv:2605.07933; docs/training.md writes them out).

z0     = standardise(encode(h)), by the mean and deviation of the whole batch
L_diff = mean |denoise(alpha z0' + sigma eps, t) - z0'|^2,  z0' = z0 with its gradient times gamma
h-hat  = decode(z0 + sigma_dec eps')
L_h    = mean |h-hat - h|^2 over the tokens, h standardised
L_w    = mean cross-entropy of the tokens given stop-gradient(h-hat)
"""

import math
from typing import NamedTuple

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from dllm_kernels.diffusion.schedule import NoiseSchedule
from dllm_kernels.model.ldlm import LDLM
from dllm_kernels.training.randomness import Draws
from dllm_kernels.training.settings import RecipeSettings

_STEEPNESS, _MIDDLE = 10.0, 0.8
"""k and c of the encoder's warm-up."""


class Batch(NamedTuple):
    """One process's windows of a step.

    Attributes:
        tokens: [B, T] int64.
        mask: [B, T] bool, True at tokens.
        hidden: [B, T, d_h], the frozen encoder's, not standardised.
        context, context_mask: [B, P, d_h] and [B, P] of the prompts; None where the data has none.
    """

    tokens: Tensor
    mask: Tensor
    hidden: Tensor
    context: Tensor | None = None
    context_mask: Tensor | None = None


class Losses(NamedTuple):
    """What a step gives. The mean of each over the processes is that of the whole batch.

    Attributes:
        total: what is minimised.
        diffusion, hidden, words: L_diff, L_h (None without the part of the recipe) and L_w.
        by_sample: [B] L_diff of each sample, without gradient.
        accuracy: share of tokens whose logit is the highest.
    """

    total: Tensor
    diffusion: Tensor
    hidden: Tensor
    words: Tensor
    by_sample: Tensor
    accuracy: Tensor


def encoder_share(step: int, warmup_steps: int, least: float, most: float = 1.0) -> float:
    """gamma(s), what the gradient of L_diff into the latent encoder is multiplied by; `most` from `warmup_steps` on.

    gamma(s) = least + (most - least) (g(s) - g(0)) / (g(S) - g(0)), g(x) = sigmoid(k (x / S - c)), k = 10, c = 0.8.
    """
    if step >= warmup_steps:
        return most
    now, start, end = (1 / (1 + math.exp(-_STEEPNESS * (x - _MIDDLE))) for x in (step / warmup_steps, 0, 1))
    return least + (most - least) * (now - start) / (end - start)


class JointTraining(nn.Module):
    """A model and its losses, as one module, so that data parallelism sees one forward pass.

    Args:
        model: the LDLM, with the statistics of the hidden states in its buffers.
        recipe: which parts are on.
        bf16: autocast to bfloat16; losses and standardisation are float32 in any case.
    """

    def __init__(self, model: LDLM, recipe: RecipeSettings, bf16: bool):
        super().__init__()
        self.model, self.recipe, self.bf16 = model, recipe, bf16
        self.schedule = NoiseSchedule.from_config(model.config)

    def forward(
        self, batch: Batch, draws: Draws | None = None, times: Tensor | None = None, share: Tensor | None = None
    ) -> Losses | Tensor:
        """The losses of a batch at times [B], `share` being gamma, a scalar on the device; or, where nothing is drawn, its
        latents [B, T, d_z] float32 before they are standardised."""
        with torch.autocast(batch.hidden.device.type, torch.bfloat16, self.bf16):
            return self._latents(batch) if draws is None else self._losses(batch, draws, times, share)

    def _latents(self, batch: Batch) -> Tensor:
        hidden = self.model.statistics.standardize_hidden(batch.hidden.float())
        return self.model.latent_encoder(hidden, batch.mask).float()

    def _losses(self, batch: Batch, draws: Draws, times: Tensor, share: Tensor) -> Losses:
        model, config, recipe = self.model, self.model.config, self.recipe
        latents = self._latents(batch)
        mean, deviation = batch_moments(latents) if config.standardize else (0.0, 1.0)
        clean = (latents - mean) / deviation

        # The value of `clean`, exactly, and `share` of its gradient.
        target = clean.detach() + share * (clean - clean.detach())
        alpha, sigma = (x.float()[:, None, None] for x in (self.schedule.alpha(times), self.schedule.sigma(times)))
        noisy, t = alpha * target + sigma * draws.noise, times.float()
        context, context_mask = self._context(batch, draws)
        previous, goal, guidance = None, target, self._guidance(draws)
        if recipe.self_conditioning:
            # A weight that autocast converted here must not be taken for the pass below, which needs its gradient.
            with torch.no_grad(), torch.autocast(batch.hidden.device.type, torch.bfloat16, self.bf16, cache_enabled=False):
                first = model.denoiser(noisy, t, None, context, context_mask, guidance).float()
            seen = (draws.self_conditioned < recipe.self_conditioning)[:, None, None]
            previous = first if draws.previous_noise is None else first + recipe.self_conditioning_noise * draws.previous_noise
            previous = previous * seen
        predicted = model.denoiser(noisy, t, previous, context, context_mask, guidance).float()
        if guidance is not None:
            # Where the prediction is the goal's mean it is u + w (c - u), c being the mean of z0' that it would be without.
            goal = target + seen * (1 - 1 / guidance)[:, None, None] * (predicted.detach() - first)
        by_sample = (predicted - goal).square().mean((1, 2))

        read = clean + config.decoder_noise * draws.decoder_noise if recipe.mse_decoder_loss and self.training else clean
        decoded = model.latent_decoder(read * deviation + mean).float()
        tokens = global_sum(batch.mask.sum().float()) / processes()
        known = model.statistics.standardize_hidden(batch.hidden.float())
        error = (decoded - known).square().mean(-1)
        hidden = torch.where(batch.mask, error, 0.0).sum() / tokens
        logits = model.logits(decoded.detach() if recipe.mse_decoder_loss else decoded)
        labels = batch.tokens.masked_fill(~batch.mask, -100)
        words = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum") / tokens
        right = (logits.detach().argmax(-1) == batch.tokens) & batch.mask
        diffusion = by_sample.mean()
        total = diffusion + words + (hidden if recipe.mse_decoder_loss else 0.0)
        return Losses(total, diffusion, hidden, words, by_sample.detach(), right.sum() / tokens)

    def _guidance(self, draws: Draws) -> Tensor | None:
        """The scale [B] of each sample, uniform in its logarithm; 1 where nothing is trained, so that losses compare."""
        if self.model.config.guidance_range is None:
            return None
        low, high = self.model.config.guidance_range
        place = draws.guidance.float()
        return low * (high / low) ** place if self.training else torch.ones_like(place)

    def _context(self, batch: Batch, draws: Draws) -> tuple[Tensor | None, Tensor | None]:
        """The prompts for the denoiser; a dropped or an empty one is the learned null context, alone in its row."""
        if batch.context is None:
            return None, None
        absent = (draws.context_dropped < self.recipe.context_dropout) | ~batch.context_mask.any(1)
        context = self.model.statistics.standardize_hidden(batch.context.float())
        context = torch.where(absent[:, None, None], self.model.denoiser.null_context, context)
        first = torch.arange(context.shape[1], device=context.device) == 0
        return context, torch.where(absent[:, None], first, batch.context_mask)


def batch_moments(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [d_z] of each feature over samples, positions and processes, with their gradients.

    With gradients the standardised latents do not depend on the encoder's scale, so neither loss can be lowered by it
    (as in batch normalisation, arXiv:1502.03167).
    """
    count = latents.shape[0] * latents.shape[1] * processes()
    mean = global_sum(latents.sum((0, 1))) / count
    variance = global_sum((latents - mean).square().sum((0, 1))) / count
    return mean, (variance + 1e-6).sqrt()


def processes() -> int:
    """How many processes train together."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def global_sum(value: Tensor) -> Tensor:
    """The sum of `value` over the processes, differentiable."""
    return _GlobalSum.apply(value) if processes() > 1 else value


class _GlobalSum(torch.autograd.Function):
    """A loss of any process depends on the sum, so the gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _GlobalSum.forward(ctx, gradient)
