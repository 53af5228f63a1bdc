"""What a call may change, as tensors on the device: a captured graph reads them anew in every replay."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_kernels.inference.pack import PlanOptions
from dllm_kernels.model.config import LDLMConfig


@dataclass(frozen=True)
class CallInputs:
    """The inputs of a generation, written in place by each call.

    Attributes:
        seed: int64 scalar, the 64-bit seed.
        first_sample: int64 scalar, number of the first sample.
        temperature: float32 scalar, of the tokens' distribution.
        guidance_scale: float32 scalar, or None for a plan without guidance.
        noise: [B, T, d_z] in the tables' dtype, initial noise that takes the place of the seed's.
        noise_given: bool scalar, whether `noise` is used.
        context: [B, P, d_h] in the activations' dtype, a prompt's hidden states; None for a plan without a prompt, as are the
            two below.
        context_mask: [B, P] bool, True where the prompt has a token.
        context_given: bool scalar, whether `context` is used; otherwise the null context is.
    """

    seed: Tensor
    first_sample: Tensor
    temperature: Tensor
    guidance_scale: Tensor | None
    noise: Tensor
    noise_given: Tensor
    context: Tensor | None
    context_mask: Tensor | None
    context_given: Tensor | None

    @classmethod
    def empty(cls, config: LDLMConfig, options: PlanOptions) -> "CallInputs":
        """The inputs of seed 0 without noise and prompt."""
        numerics, b, p = options.numerics, options.batch_size, options.context_len
        device = numerics.device
        scalar = torch.zeros((), dtype=torch.int64, device=device)
        flag = torch.zeros((), dtype=torch.bool, device=device)
        return cls(
            seed=scalar,
            first_sample=scalar.clone(),
            temperature=torch.zeros((), dtype=torch.float32, device=device),
            guidance_scale=torch.ones((), dtype=torch.float32, device=device) if options.guidance else None,
            noise=torch.zeros(b, options.seq_len, config.latent_dim, dtype=numerics.tables, device=device),
            noise_given=flag,
            context=torch.zeros(b, p, config.hidden_dim, dtype=numerics.activations, device=device) if p else None,
            context_mask=torch.zeros(b, p, dtype=torch.bool, device=device) if p else None,
            context_given=flag.clone() if p else None,
        )

    def fill(
        self,
        seed: int,
        first_sample: int,
        temperature: float,
        guidance_scale: float,
        noise: Tensor | None,
        context: Tensor | None,
        context_mask: Tensor | None,
    ) -> None:
        """Writes a call's arguments, as `checked_call` and `check` have found them to fit; shapes as `check` has them."""
        # As a signed integer: a seed of 2^63 or more becomes its two's complement.
        self.seed.fill_((seed + 2**63) % 2**64 - 2**63)
        self.first_sample.fill_(first_sample)
        self.temperature.fill_(temperature)
        if self.guidance_scale is not None:
            self.guidance_scale.fill_(guidance_scale)
        self.noise_given.fill_(noise is not None)
        if noise is not None:
            self.noise.copy_(noise)
        if self.context_given is not None:
            self.context_given.fill_(context is not None)
        if context is not None:
            length = context.shape[1]
            self.context[:, :length].copy_(context)
            self.context[:, length:].zero_()
            self.context_mask[:, length:].fill_(False)
            self.context_mask[:, :length].copy_(torch.ones_like(context[..., 0]) if context_mask is None else context_mask)

    def check(self, noise: Tensor | None, context: Tensor | None, context_mask: Tensor | None) -> None:
        """Raises ValueError, one sentence, unless a call's tensors fit.

        Args:
            noise: [B, T, d_z] of a floating-point dtype, or None.
            context: [B, P', d_h] of a floating-point dtype, P' from 1 to P, or None.
            context_mask: [B, P'] bool, or None; with a context.
        """
        if context is not None and self.context is None:
            raise ValueError("a context needs a sampler made with context_len of at least the prompt's length")
        if context_mask is not None and context is None:
            raise ValueError("a context_mask needs a context")
        wanted = [("noise", noise, tuple(self.noise.shape), True)]
        if context is not None:
            batch, longest, width = self.context.shape
            if not (context.ndim == 3 and 1 <= context.shape[1] <= longest):
                raise ValueError(f"context has shape {list(context.shape)}; it must be [{batch}, 1 to {longest}, {width}]")
            length = context.shape[1]
            wanted += [("context", context, (batch, length, width), True)]
            wanted += [("context_mask", context_mask, (batch, length), False)]
        device = self.noise.device
        for name, tensor, shape, floating in wanted:
            if tensor is None:
                continue
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {list(shape)}")
            if tensor.device != device:
                raise ValueError(f"{name} is on {tensor.device}; this sampler runs on {device}")
            if tensor.is_floating_point() != floating or not (floating or tensor.dtype == torch.bool):
                raise ValueError(
                    f"{name} is {tensor.dtype}; it must be {'a floating-point dtype' if floating else 'torch.bool'}"
                )
