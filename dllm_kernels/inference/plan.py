"""The plan: a packed model (pack.py), run for B samples of T latents at fixed times.

A plan computes what `model/` computes (docs/design.md, "Truth and plan").
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_kernels.inference.pack import PackedLayer, PackedModel, PlanOptions
from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.ops.attention.op import attention
from dllm_kernels.ops.denoise_update.op import DenoiseUpdate, denoise_update
from dllm_kernels.ops.linear.op import linear
from dllm_kernels.ops.linear.params import Activations, LinearParams
from dllm_kernels.ops.linear.skinny import empty_workspace
from dllm_kernels.ops.lm_head.op import lm_head
from dllm_kernels.ops.modulate.op import modulate


@dataclass(frozen=True)
class Context:
    """Keys and values of L layers that read one context.

    Attributes:
        key_values: [B, S, L, 2, H, D] in the activations' dtype.
        mask: [B, S] bool, True where an entry is attended to, or None for everywhere.
    """

    key_values: Tensor
    mask: Tensor | None = None

    def of(self, layer: int) -> tuple[Tensor, Tensor]:
        """(keys, values) [B, S, H, D] of a layer."""
        return self.key_values[:, :, layer, 0], self.key_values[:, :, layer, 1]


class Plan:
    """A packed model, ready to run. One call at a time: the linear layers of all calls share a workspace.

    Args:
        config: the model's.
        packed: the model's weights, packed for `options`.
        options: batch, lengths, dtypes, device, and how ops run.
    """

    def __init__(self, config: LDLMConfig, packed: PackedModel, options: PlanOptions):
        self.config, self.packed, self.options = config, packed, options
        self._options = {"batch_invariant": options.batch_invariant, "backend": options.backend}
        # "cuda" means our kernels where there are any; an op that has none takes the best that there is.
        self._library_options = self._options | ({"backend": "auto"} if options.backend == "cuda" else {})
        device = options.numerics.device
        self._workspace = empty_workspace(packed.workspace_elements, device)
        zero, self._one = torch.zeros((), dtype=torch.int64, device=device), torch.ones((), dtype=torch.float32, device=device)
        self._no_update = options.numerics.table(torch.tensor([[1.0, 0, 0, 0]])), 0, zero, zero

    def first_input(self, latents: Tensor) -> Activations:
        """The denoiser's input of step 0, made of the initial noise by an update that changes nothing.

        `denoise_update` writes the inputs of later steps into the same tensors.

        Args:
            latents: z_T [B, T, d_z], in the tables' dtype.

        Returns:
            x [copies B, T, 2 d_z], or d_z without self-conditioning, and its row statistics where the first layer reads them.
        """
        denoiser = self.packed.denoiser
        width, rows = (1 + self.config.self_conditioning) * self.config.latent_dim, self.options.copies * len(latents)
        x = latents.new_empty((rows, self.options.seq_len, width), dtype=self.options.numerics.activations)
        reads = denoiser.project_in is None and denoiser.layers[0].first.packed
        stats_out = latents.new_empty((rows * self.options.seq_len, 1, 2), dtype=torch.float32) if reads else None
        shift = None if self.config.self_conditioning else denoiser.time_shift[0]
        nothing = x.new_zeros((rows, *latents.shape[1:]))
        scale, backend = self._one if self.options.guidance else None, self.options.backend
        denoise_update(
            DenoiseUpdate(latents, nothing, None, x, *self._no_update, shift, scale, statistics=stats_out, backend=backend)
        )
        return Activations(x, stats=stats_out, stats_chunk=width) if reads else Activations(x)

    def next_shift(self, step: int) -> Tensor | None:
        """What `denoise_update` adds to the latents after `step` to make the next input: [d_z], or None for nothing.

        Only a denoiser without an input projection reads its time there. After the last step nothing is added, so that the
        input is what `decode` reads.
        """
        time_shift = self.packed.denoiser.time_shift
        last = self.config.self_conditioning or step + 1 == len(time_shift)
        return None if last else time_shift[step + 1]

    def denoise(self, step: int, inputs: Activations, context: Context | None) -> Tensor:
        """Runs the denoiser at a step.

        Args:
            step: 0 to N - 1.
            inputs: as `first_input` made it, or `denoise_update` after that.
            context: what `context` made, or None for a plan without a prompt.

        Returns:
            The prediction of z0 [copies B, T, d_z] in the activations' dtype. Where `packed.denoiser.norm_scale` is there, the
            output norm is still to be applied: `denoise_update` does so.
        """
        denoiser = self.packed.denoiser
        first = denoiser.layers[0].first.at(step)
        if denoiser.project_in is None:
            state = inputs
        elif step == 0 and self.config.first_prediction == "skip":
            state = Activations(inputs.x[..., : self.config.latent_dim] + denoiser.first_shift)
        else:
            state = self.linear(inputs, denoiser.project_in.at(step), residual=denoiser.positions, next_layer=first)
        last = None if denoiser.project_out is None else denoiser.project_out.at(step)
        state = self._run_layers(denoiser.layers, state, step, context, last)
        return state.x if last is None else self.linear(state, last).x

    def context(self, hidden: Tensor, mask: Tensor, given: Tensor) -> Context:
        """Keys and values of a prompt for every layer of the denoiser.

        Args:
            hidden: [B, P, d_h] in the activations' dtype, as the frozen encoder gives it.
            mask: [B, P] bool, True where the prompt has a token.
            given: bool scalar, False to use the null context instead.

        Returns:
            B entries, or 2 B with guidance, of which the second half reads the null context.
        """
        denoiser = self.packed.denoiser
        key_values = self.linear(Activations(hidden), denoiser.prompt_key_value.at(0)).x
        null = torch.zeros_like(key_values)
        null[:, 0] = denoiser.null_key_value
        first = torch.zeros_like(mask)
        first[:, 0] = True
        key_values, mask = torch.where(given, key_values, null), torch.where(given, mask, first)
        if self.options.guidance:
            key_values, mask = torch.cat((key_values, null)), torch.cat((mask, first))
        return Context(self._heads(key_values, len(denoiser.layers), self.config.num_heads), mask)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to what the lm_head reads: latent decoder, token decoder, final norm.

        Args:
            latents: the final z0 [B, T, d_z], standardised, in any floating-point dtype.

        Returns:
            [B, T, d_h] in the activations' dtype, normalised without gain and offset, which are in the lm_head.
        """
        decoder, token_decoder = self.packed.latent_decoder, self.packed.token_decoder
        z = Activations(self.options.numerics.activation(latents))
        key_values = self.linear(z, decoder.key_value.at(0)).x
        context = Context(self._heads(key_values, len(decoder.layers), self.config.num_heads))
        first = token_decoder.layers[0].first.at(0)
        last = first if decoder.project_out is None else None
        state = self._run_layers(decoder.layers, Activations(decoder.start), 0, context, last)
        if decoder.project_out is not None:
            state = self.linear(state, decoder.project_out.at(0), next_layer=first)
        key_values = self.linear(state, token_decoder.key_value.at(0)).x
        context = Context(self._heads(key_values, len(token_decoder.layers), self.config.token_decoder_heads))
        state = self._run_layers(token_decoder.layers, state, 0, context, None)
        return modulate(state.x, backend=self._library_options["backend"])

    def tokens(
        self, hidden: Tensor, temperature: Tensor, seed: Tensor, first_sample: Tensor, logprobs: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Draws tokens (ops/lm_head/op.py).

        Args:
            hidden: [B, T, d_h], what `decode` gave.
            temperature: float32 scalar tensor; 0 takes the most likely token.
            seed, first_sample: int64 scalar tensors.
            logprobs: whether log-probabilities are asked for.

        Returns:
            Tokens [B, T] int64, and the log-softmax of the logits at each token [B, T] float32, or None.
        """
        head = self.packed.lm_head
        return lm_head(hidden, head.weight, head.bias, temperature, seed, first_sample, logprobs, **self._options)

    def linear(
        self,
        inputs: Activations,
        params: LinearParams,
        *,
        gelu: bool = False,
        residual: Tensor | None = None,
        next_layer: LinearParams | None = None,
    ) -> Activations:
        """Applies a folded layer (ops/linear/op.py).

        Args:
            inputs: the layer's input, x [B, T, K].
            params: the folded layer at a step.
            gelu: exact GELU after the bias.
            residual: [B, T, N] or [1, T, N], added last, or None.
            next_layer: the normalised layer that reads the result next, or None.

        Returns:
            x [B, T, N] in the input's dtype, with what the next layer reads beside it.
        """
        around = {"gelu": gelu, "residual": residual, "next_layer": next_layer, "workspace": self._workspace}
        return linear(inputs, params, **around, **self._library_options)

    def _run_layers(
        self, layers: list[PackedLayer], state: Activations, step: int, context: Context | None, next_layer: LinearParams | None
    ) -> Activations:
        """Runs layers one after another. `next_layer` reads the last one's normalised result, or is None."""
        for index, layer in enumerate(layers):
            after = layers[index + 1].first.at(step) if index + 1 < len(layers) else next_layer
            state = self._run(layer, state, step, index, context, after)
        return state

    def _run(
        self,
        layer: PackedLayer,
        state: Activations,
        step: int,
        index: int,
        context: Context | None,
        next_layer: LinearParams | None,
    ) -> Activations:
        up = layer.up.at(step)
        if layer.qkv is not None:
            q, k, v = self.linear(state, layer.qkv.at(step)).x.unflatten(-1, (3, layer.heads, -1)).unbind(dim=2)
            attended = Activations(self._attention(q, k, v, None, layer.causal))
            after = up if layer.query is None else layer.query.at(step)
            state = self.linear(attended, layer.out.at(step), residual=state.x, next_layer=after)
        if layer.cross_out is not None:
            keys, values = context.of(index)
            if layer.query_constant is not None:
                q = layer.query_constant.expand(len(keys), -1, -1, -1)
            else:
                q = self.linear(state, layer.query.at(step)).x.unflatten(-1, (layer.heads, -1))
            attended = Activations(self._attention(q, keys, values, context.mask))
            state = self.linear(attended, layer.cross_out.at(step), residual=state.x, next_layer=up)
        hidden = self.linear(state, up, gelu=True)
        return self.linear(hidden, layer.down.at(step), residual=state.x, next_layer=next_layer)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
        """Attention [B, T, H D]; a sample at a time where a library's sums must not depend on the batch."""
        if self._options["batch_invariant"] and len(q) > 1:
            samples = zip(q.split(1), k.split(1), v.split(1), [None] * len(q) if mask is None else mask.split(1), strict=True)
            parts = [attention(*(t if t is None else t.clone() for t in s), causal, self._options["backend"]) for s in samples]
            return torch.cat(parts).flatten(2)
        return attention(q, k, v, mask, causal, self._options["backend"]).flatten(2)

    @staticmethod
    def _heads(key_values: Tensor, layers: int, heads: int) -> Tensor:
        """[B, S, 2 d L] -> [B, S, L, 2, H, D]."""
        return key_values.unflatten(-1, (layers, 2, heads, -1))
