"""The latent diffusion language model: encode hidden states to latents, denoise latents, decode latents to tokens."""

import tempfile
from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from torch import Tensor, nn

from dllm_kernels.model import checkpoint
from dllm_kernels.model.card import card
from dllm_kernels.model.config import PRESETS, LDLMConfig
from dllm_kernels.model.denoiser import Denoiser
from dllm_kernels.model.layers import AttentionFunction, sdpa
from dllm_kernels.model.perceiver import Perceiver
from dllm_kernels.model.token_decoder import TokenDecoder
from dllm_kernels.utils.ambient import unaffected
from dllm_kernels.utils.device import resolve_device
from dllm_kernels.utils.keywords import as_dtype, keywords

_SAVING = (
    *("config", "repo_id", "push_to_hub", "model_card_kwargs", "commit_message", "private", "token", "branch", "create_pr"),
    *("allow_patterns", "ignore_patterns", "delete_patterns"),
)
"""What huggingface_hub's ModelHubMixin takes; it lets others pass without a word."""


class LDLM(nn.Module, ModelHubMixin, library_name="dllm_kernels", repo_url=None, tags=["latent-diffusion", "text-generation"]):
    """An LDLM (arXiv:2605.07933) with random weights, on the current default device and dtype.

    Args:
        config: its shape and semantics.
        attention: the attention function of every layer (`layers.AttentionFunction`).
    """

    def __init__(self, config: LDLMConfig, attention: AttentionFunction = sdpa):
        super().__init__()
        self.config = config
        for name in MODULES:
            self.add_module(name, build_module(name, config, attention))

    def encode(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """The frozen encoder's hidden states [B, S, d_h], mask [B, S] bool -> standardised latents z0 [B, T, d_z]."""
        return self.statistics.standardize_latents(self.latent_encoder(self.statistics.standardize_hidden(hidden), mask))

    def denoise(
        self,
        latents: Tensor,
        t: Tensor,
        previous: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Predicts z0 [B, T, d_z]; `Denoiser.forward` with the context as the frozen encoder gives it.

        Raises:
            ValueError: a context for a model without one, or a mask without a context.
        """
        if context is not None and not self.config.context:
            raise ValueError("this model takes no context: its config has context=False")
        if context_mask is not None and context is None:
            raise ValueError("a context_mask needs a context")
        if context is not None:
            context = self.statistics.standardize_hidden(context)
        return self.denoiser(latents, t, previous, context, context_mask)

    def decode(self, latents: Tensor) -> Tensor:
        """Standardised latents z0 [B, T, d_z] -> standardised hidden states h-hat [B, T, d_h]."""
        return self.latent_decoder(self.statistics.restore_latents(latents), seq_len=latents.shape[1])

    def logits(self, hidden: Tensor) -> Tensor:
        """Standardised hidden states h-hat [B, T, d_h] -> logits [B, T, V]."""
        return self.lm_head(self.token_decoder(hidden))

    @classmethod
    @unaffected()
    def from_open_dllm(cls, source: str | Path | dict) -> "LDLM":
        """A model from the published format: a file that `torch.load` reads without running code, or its dict.

        Raises:
            ValueError: the file is damaged, holds code, or its keys or shapes do not fit; names what is wrong.
        """
        config, state = checkpoint.convert_open_dllm(source)
        return cls._from_state(config, state)

    @classmethod
    def _from_state(cls, config: LDLMConfig, state: dict[str, Tensor]) -> "LDLM":
        with torch.device("meta"):
            model = cls(config)
        checkpoint.load_into(model, state)
        return model.eval()

    def save_pretrained(self, save_directory: str | Path, dtype: str | None = None, **hub_options) -> str | None:
        """Writes config.json, model.safetensors and a model card; `hub_options` as in huggingface_hub's ModelHubMixin.

        The files are written beside the folder's own and renamed when they are whole: until then an older checkpoint stays.

        Args:
            dtype: None for the weights as they are, "int8" for 8-bit matrices with a scale per output channel (int8.py).

        Raises:
            ValueError: another dtype, or one together with push_to_hub.
            TypeError: a keyword that ModelHubMixin does not have.
        """
        hub_options = keywords("LDLM.save_pretrained", hub_options, _SAVING)
        if dtype not in (None, "int8"):
            raise ValueError(f"dtype is {dtype!r}; it must be None, for the weights as they are, or 'int8'")
        if dtype is not None and hub_options.get("push_to_hub"):
            raise ValueError("push_to_hub pushes the weights as they are; save dtype='int8' first, then upload the folder")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        url = None
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as aside:
            if dtype is None:
                url = super().save_pretrained(aside, **({"repo_id": folder.name} | hub_options))
            else:
                checkpoint.save(Path(aside), self.config, self.state_dict(), eight_bit=True)
                self.generate_model_card().save(Path(aside, "README.md"))
            for file in Path(aside).iterdir():
                file.replace(folder / file.name)
        return url

    def generate_model_card(self, *args, **kwargs) -> ModelCard:
        """The card that `save_pretrained` and `push_to_hub` write (card.py); what ModelHubMixin passes is not needed."""
        return ModelCard(card(self.config, sum(parameter.numel() for parameter in self.parameters())))

    def _save_pretrained(self, save_directory: Path) -> None:
        checkpoint.save(save_directory, self.config, self.state_dict())

    @classmethod
    @unaffected()
    def from_pretrained(
        cls,
        model_id: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        **hub_options,
    ) -> "LDLM":
        """A model from what `save_pretrained` wrote.

        Args:
            model_id: the folder, a hub id "owner/name", or the name of a model in this package (`checkpoint.bundled_models`).
            dtype: of all weights, also by its name; None for the dtype they were saved in, float32 for an 8-bit checkpoint.
            device: where they go; None for the CPU.
            hub_options: revision, token, cache_dir, force_download, local_files_only.

        Raises:
            FileNotFoundError, ValueError: the checkpoint is absent, damaged or does not fit; names the file or the keys.
            TypeError: another keyword.
        """
        given = {"dtype": dtype} if dtype is not None else {}
        options = keywords("LDLM.from_pretrained", given | hub_options, (*checkpoint.HUB_OPTIONS, "dtype", "device"))
        dtype = options.pop("dtype", None)
        dtype, device = None if dtype is None else as_dtype(dtype), None if device is None else resolve_device(device)
        if str(model_id) in PRESETS:
            raise ValueError(
                f"{model_id} is a preset and has no weights; LDLM(LDLMConfig.preset({str(model_id)!r})) makes some"
            )
        config, weights = checkpoint.open_folder(checkpoint.resolve(model_id, **options))
        return cls._from_state(config, weights.read()).to(device=device, dtype=dtype)


class Statistics(nn.Module):
    """Mean and standard deviation of each feature of latents [d_z] and hidden states [d_h].

    `enabled` is False for a config with standardize=False; every method is then the identity.
    """

    def __init__(self, config: LDLMConfig):
        super().__init__()
        self.enabled = config.standardize
        if self.enabled:
            for name, size in (("latent", config.latent_dim), ("hidden", config.hidden_dim)):
                self.register_buffer(f"{name}_mean", torch.zeros(size))
                self.register_buffer(f"{name}_std", torch.ones(size))

    def standardize_latents(self, latents: Tensor) -> Tensor:
        """Raw latents [..., d_z] to latents of mean 0 and deviation 1."""
        return (latents - self.latent_mean) / self.latent_std if self.enabled else latents

    def restore_latents(self, latents: Tensor) -> Tensor:
        """The inverse of `standardize_latents`."""
        return latents * self.latent_std + self.latent_mean if self.enabled else latents

    def standardize_hidden(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., d_h] to hidden states of mean 0 and deviation 1."""
        return (hidden - self.hidden_mean) / self.hidden_std if self.enabled else hidden


MODULES = ("statistics", "latent_encoder", "denoiser", "latent_decoder", "token_decoder", "lm_head")
"""The model's parts by name, in the order of a generation after the encoder's."""


def build_module(name: str, config: LDLMConfig, attention: AttentionFunction = sdpa) -> nn.Module:
    """One part of the model with random weights, so that a plan is packed without the whole model in memory.

    Args:
        name: of MODULES.
        config, attention: as of LDLM.

    Raises:
        ValueError: an unknown name; lists the known ones.
    """
    match name:
        case "statistics":
            return Statistics(config)
        case "latent_encoder":
            return Perceiver(config, config.hidden_dim, config.latent_dim, attention, config.input_positions)
        case "denoiser":
            return Denoiser(config, attention)
        case "latent_decoder":
            return Perceiver(config, config.latent_dim, config.hidden_dim, attention)
        case "token_decoder":
            return TokenDecoder(config, attention)
        case "lm_head":
            return nn.Linear(config.hidden_dim, config.vocab_size)
    raise ValueError(f"unknown module {name!r}; known modules: {', '.join(MODULES)}")
