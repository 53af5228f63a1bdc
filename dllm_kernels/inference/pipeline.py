"""LDLMPipeline: text in, text out, with the argument names of 🤗 diffusers' pipelines."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dllm_kernels.inference.sampler import FusedSampler
from dllm_kernels.inference.weights import LiveModel, Source, StoredModel, pretrained, source_of
from dllm_kernels.model.checkpoint import HUB_OPTIONS
from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.model.encoder import Encoder
from dllm_kernels.model.ldlm import LDLM
from dllm_kernels.model.tokenizer import TextTokenizer, has_tokenizer
from dllm_kernels.utils.ambient import unaffected
from dllm_kernels.utils.device import resolve_device
from dllm_kernels.utils.keywords import as_dtype, keywords
from dllm_kernels.utils.validation import real_number, whole_number

KEPT_SAMPLERS = 4
"""Samplers that a pipeline keeps, each with its packed weights. The one that was used longest ago is dropped first."""

OPTIONS = ("solver", "eta", "grid", "seq_len", "batch_invariant", "backend", "dtype", "device")
"""FusedSampler's arguments that a pipeline hands on."""


@dataclass(frozen=True)
class PipelineOutput:
    """What a call gives, in the order of the prompts.

    Attributes:
        texts: one for each sample, up to its end, without special tokens.
        tokens: [len(texts), T] int64, on the sampler's device.
        seed: the 64-bit seed; texts[j] is its sample first_sample + j.
    """

    texts: list[str]
    tokens: Tensor
    seed: int


class LDLMPipeline:
    """Generates text with a model, a tokenizer and, for prompts, the frozen encoder.

    A call's samples run in batches of one size. A sampler is packed, and on CUDA captured, for a number of steps, a batch size,
    and whether there is a prompt and guidance; later calls of the same kind reuse it. Several threads may share a pipeline:
    a sampler is packed by one of them, and runs one call at a time.

    Args:
        model: an LDLM, a config, a name or a source, as of FusedSampler.
        tokenizer: of the model's vocabulary.
        encoder: the frozen encoder that reads prompts, on the samplers' device; or a path or hub id of it; or None for the
            one that the model's config names. It is loaded at the first prompt.
        batch_size: the largest number of samples that are generated together.
        context_len: the longest prompt in the encoder's tokens; None for the model's T.
        options: arguments of every FusedSampler, those named in OPTIONS.

    Attributes:
        config: the model's.
        tokenizer: the tokenizer.

    Raises:
        ValueError: a count does not fit; one sentence.
        TypeError: an option that is not one of OPTIONS.
    """

    def __init__(
        self,
        model: torch.nn.Module | LDLMConfig | Source | str | Path,
        tokenizer: TextTokenizer,
        encoder: Encoder | str | None = None,
        *,
        batch_size: int = 16,
        context_len: int | None = None,
        **options,
    ):
        options = keywords("LDLMPipeline", options, OPTIONS)
        if "dtype" in options:
            options["dtype"] = as_dtype(options["dtype"])
        self._source = source_of(model, options.get("dtype", torch.bfloat16))
        self.config, self.tokenizer = self._source.config, tokenizer
        self._encoder = encoder
        self._batch_size = whole_number("batch_size", batch_size, 1)
        self._context_len = self.config.seq_len if context_len is None else whole_number("context_len", context_len, 1)
        self._options = options
        self._samplers: OrderedDict[tuple, FusedSampler] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        *,
        tokenizer: str | Path | None = None,
        **options,
    ) -> "LDLMPipeline":
        """A pipeline of a preset, checkpoint folder, hub id or bundled model; weights are read when a sampler is packed.

        Args:
            model_id: as of `LDLM.from_pretrained`, or a preset's name, for random weights.
            tokenizer: path or hub id; None for the tokenizer beside the weights, or else the encoder's.
            options: as the constructor takes them, and the hub's (`checkpoint.HUB_OPTIONS`).

        Raises:
            FileNotFoundError, ValueError: the checkpoint or the tokenizer is absent or does not fit; names it.
            ImportError: transformers is not installed.
        """
        own = (*OPTIONS, "encoder", "batch_size", "context_len")
        options = keywords("LDLMPipeline.from_pretrained", options, (*own, "tokenizer", *HUB_OPTIONS))
        hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        source = pretrained(model_id, as_dtype(options.get("dtype", torch.bfloat16)), **hub)
        if tokenizer is None:
            beside = isinstance(source, StoredModel) and has_tokenizer(source.folder)
            tokenizer = source.folder if beside else source.config.encoder
        if tokenizer is None:
            raise ValueError(f"{model_id} has no tokenizer beside its weights and names no encoder: pass tokenizer=")
        return cls(source, TextTokenizer(tokenizer), **options)

    @unaffected()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        num_inference_steps: int = 10,
        guidance_scale: float = 1.0,
        num_return_sequences: int = 1,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        first_sample: int = 0,
        temperature: float = 0.0,
    ) -> PipelineOutput:
        """Generates num_return_sequences texts for each prompt.

        Args:
            prompt: what to continue, or several; None for text without a prompt.
            num_inference_steps: N, steps of the solver.
            guidance_scale: w of z0 = u + w (c - u), classifier-free guidance (arXiv:2207.12598); 1 is no guidance.
            num_return_sequences: samples for each prompt, which follow one another in the output.
            generator: draws the seed where none is given; None for PyTorch's own generator.
            seed: 64-bit seed.
            first_sample: number of the first sample of the seed.
            temperature: of the tokens' distribution; 0 takes the most likely token.

        Raises:
            ValueError: an argument does not fit, or a prompt cannot be read; one sentence.
            ImportError: a prompt needs transformers.
            RuntimeError: the model's weights changed after they were packed; `refresh()` packs them again.
        """
        for name, value in (("num_inference_steps", num_inference_steps), ("num_return_sequences", num_return_sequences)):
            whole_number(name, value, 1)
        guidance_scale = real_number("guidance_scale", guidance_scale)
        first_sample = whole_number("first_sample", first_sample, 0)
        if guidance_scale != 1 and prompt is None:
            raise ValueError("guidance_scale needs a prompt: it compares with and without one")
        if generator is not None and seed is not None:
            raise ValueError("generator and seed both fix the samples; give one of them")
        hidden, mask = (None, None) if prompt is None else self._encode(prompt)
        if seed is None:
            where = "cpu" if generator is None else generator.device
            seed = int(torch.randint(2**63 - 1, (), generator=generator, device=where))
        count = num_return_sequences * (1 if hidden is None else len(hidden))
        batch = min(count, self._batch_size)
        sampler = self._sampler(num_inference_steps, batch, hidden is not None, guidance_scale != 1)
        tokens = []
        for start in range(0, count, batch):
            call = {"seed": seed, "first_sample": first_sample + start, "temperature": temperature}
            if hidden is not None:
                # The last batch is filled up with its last prompt; what is too much is dropped below.
                rows = torch.arange(start, start + batch).clamp(max=count - 1) // num_return_sequences
                call |= {"context": hidden[rows], "context_mask": mask[rows], "guidance_scale": guidance_scale}
            tokens.append(sampler(**call).tokens)
        tokens = torch.cat(tokens)[:count]
        return PipelineOutput([self.tokenizer.text(row) for row in tokens.tolist()], tokens, seed)

    @property
    def device(self) -> torch.device:
        """What runs the samplers."""
        return resolve_device(self._options.get("device"))

    def __repr__(self) -> str:
        """Its model's size and what runs it."""
        config, dtype = self.config, self._options.get("dtype", torch.bfloat16)
        shape = f"dim={config.dim}, seq_len={config.seq_len}, vocab_size={config.vocab_size}"
        return f"LDLMPipeline({shape}, context={config.context}, dtype={dtype}, device={str(self.device)!r})"

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the model, as `LDLM.save_pretrained` does, and the tokenizer beside it, so that `from_pretrained` reads them.

        Raises:
            ValueError: the model's weights are random and nowhere whole.
        """
        if isinstance(self._source, LiveModel):
            model = self._source.model
        elif isinstance(self._source, StoredModel):
            model = LDLM.from_pretrained(self._source.folder)
        else:
            raise ValueError("this pipeline's weights are random; save the LDLM that they are to come from")
        model.save_pretrained(folder)
        self.tokenizer.save(folder)

    def refresh(self) -> None:
        """Drops the packed weights after the model's weights changed; the next call packs them again."""
        with self._lock:
            self._samplers.clear()

    def _encode(self, prompt: str | list[str]) -> tuple[Tensor, Tensor]:
        """Hidden states [prompts, P, d_h] and mask [prompts, P]."""
        if not self.config.context:
            raise ValueError("this model takes no prompt: its config has context=False")
        if not self.config.trained_with_prompts:
            raise ValueError("this model takes no prompt: it was trained without prompts")
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, list) or not prompts or not all(isinstance(text, str) for text in prompts):
            raise ValueError("prompt must be a text, a list of at least one text, or None")
        for number, text in enumerate(prompts):
            if not text.strip():
                raise ValueError(f"prompt {number} is empty; None generates without a prompt")
        encoder = self._loaded_encoder()
        tokens, mask = encoder.tokenize(prompts)
        lengths = mask.sum(dim=1)
        if lengths.max() > self._context_len:
            number = int(lengths.argmax())
            raise ValueError(
                f"prompt {number} has {int(lengths[number])} tokens and this pipeline reads at most {self._context_len}: "
                f"make it with a larger context_len"
            )
        return encoder(tokens, mask), mask.to(encoder.device)

    def _loaded_encoder(self) -> Encoder:
        with self._lock:
            if not isinstance(self._encoder, Encoder):
                self._encoder = Encoder.for_model(self.config, self._options.get("device"), self._encoder)
            return self._encoder

    def _sampler(self, steps: int, batch: int, prompted: bool, guided: bool) -> FusedSampler:
        key = (steps, batch, prompted, guided)
        with self._lock:
            if key not in self._samplers:
                while len(self._samplers) >= KEPT_SAMPLERS:
                    self._samplers.popitem(last=False)
                context_len = self._context_len if prompted else 0
                self._samplers[key] = FusedSampler(
                    self._source, steps, batch, context_len=context_len, guidance=guided, **self._options
                )
            self._samplers.move_to_end(key)
            return self._samplers[key]
