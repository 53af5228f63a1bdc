"""What a latent diffusion language model is made of, and the presets by name.

One dataclass describes both architectures (docs/design.md, "The model"): `open-dllm`, the published benchmark, and `ldlm`,
the paper's (arXiv:2605.07933). Every difference between them is a field here, so the code branches on fields and never on
an architecture's name.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dllm_kernels.utils.validation import real_number, whole_number

QWEN36_VOCAB = 248_320


@dataclass(frozen=True)
class LDLMConfig:
    """Shape and semantics of an LDLM. Widths are in features, lengths in tokens, depths in layers.

    Attributes:
        dim: width d of the denoiser and the Perceivers.
        num_heads: attention heads of the denoiser and the Perceivers.
        seq_len: number of latents T, which is the number of generated tokens.
        vocab_size: V.
        hidden_dim: width d_h of the frozen encoder's hidden states and of the token decoder; `dim` when None.
        latent_dim: width d_z of a latent; `dim` when None.
        perceiver_layers: depth of the latent encoder and of the latent decoder.
        token_decoder_layers: depth of the token decoder.
        token_decoder_heads: heads of the token decoder; `num_heads` when None.
        denoiser_layers: depth of the denoiser.
        ada_ln: adaLN-Zero blocks with a sinusoidal time embedding, learned positions and an output projection (DiT,
            arXiv:2212.09748) instead of plain pre-norm blocks on z + time_mlp(t).
        self_conditioning: the denoiser reads its previous prediction beside z through an input projection.
        first_prediction: what stands for the previous prediction when there is none: "zeros", or "skip", where z goes
            around the input projection as in the published code.
        context: the denoiser cross-attends to a prompt's hidden states, or to a learned null context.
        trained_with_prompts: training saw prompts; a model with `context` that saw none knows the null context alone, and
            prompts are refused.
        input_positions: the latent encoder adds learned positions to the hidden states.
        causal: the token decoder's self-attention is causal.
        standardize: latents and hidden states are standardised per feature by stored means and deviations.
        guidance_range: (least, greatest) of the guidance scales w that the denoiser was trained to read, above 0 and around 1;
            None for a denoiser without that input (docs/training.md).
        sampled_guidance: the w that a sampler gives such a denoiser.
        decoder_noise: standard deviation of the noise added to the latent decoder's input in training.
        noise_schedule: "tangent", "cosine" or "power" (diffusion/schedule.py), as the model was trained.
        schedule_parameter: d of "tangent", k of "power"; ignored by "cosine".
        sampled_log_snr: (start, end) of the natural log-SNRs that a sampler steps through unless it is given a grid, the
            smaller first; None for steps uniform in t. It is measured on the trained model: between the two the model
            decides what a text says.
        encoder: path or hub id of the frozen language model, or None.
        encoder_layer: index into its hidden states.

    Raises:
        ValueError: one sentence that names the field, its value and what is allowed.
    """

    dim: int
    num_heads: int
    seq_len: int
    vocab_size: int
    hidden_dim: int | None = None
    latent_dim: int | None = None
    perceiver_layers: int = 4
    token_decoder_layers: int = 2
    token_decoder_heads: int | None = None
    denoiser_layers: int = 4
    ada_ln: bool = True
    self_conditioning: bool = True
    first_prediction: str = "zeros"
    context: bool = True
    input_positions: bool = True
    causal: bool = False
    standardize: bool = True
    guidance_range: tuple[float, float] | None = None
    sampled_guidance: float = 1.0
    decoder_noise: float = 3.0
    noise_schedule: str = "tangent"
    schedule_parameter: float = 3.0
    sampled_log_snr: tuple[float, float] | None = None
    encoder: str | None = None
    encoder_layer: int = -3
    trained_with_prompts: bool = True

    def __post_init__(self):
        for name, default in (("hidden_dim", self.dim), ("latent_dim", self.dim), ("token_decoder_heads", self.num_heads)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        _require(self.dim % self.num_heads == 0, f"dim {self.dim} does not divide into {self.num_heads} heads")
        _require(
            self.hidden_dim % self.token_decoder_heads == 0,
            f"hidden_dim {self.hidden_dim} does not divide into {self.token_decoder_heads} token decoder heads",
        )
        _require(
            self.first_prediction in ("zeros", "skip"),
            f"first_prediction is {self.first_prediction!r}; it must be 'zeros' or 'skip'",
        )
        _require(
            self.noise_schedule in ("tangent", "cosine", "power"),
            f"noise_schedule is {self.noise_schedule!r}; it must be 'tangent', 'cosine' or 'power'",
        )
        if self.sampled_log_snr is not None:
            object.__setattr__(self, "sampled_log_snr", _rising("sampled_log_snr", self.sampled_log_snr))
        if self.guidance_range is not None:
            object.__setattr__(self, "guidance_range", _rising("guidance_range", self.guidance_range))
            low, high = self.guidance_range
            _require(0 < low <= 1 <= high, f"guidance_range is {self.guidance_range!r}; it must be above 0 and hold 1")
            _require(self.ada_ln, "guidance_range needs a denoiser with ada_ln, which reads a vector in each step")
            _require(
                low <= self.sampled_guidance <= high,
                f"sampled_guidance is {self.sampled_guidance!r}; the denoiser was trained with scales from {low} to {high}",
            )
        else:
            _require(
                self.sampled_guidance == 1,
                f"sampled_guidance is {self.sampled_guidance!r}; a denoiser without guidance_range has 1",
            )
        _require(self.schedule_parameter > 0, f"schedule_parameter is {self.schedule_parameter!r}; it must be positive")
        _require(
            self.ada_ln or (self.latent_dim == self.dim and not self.context),
            "a denoiser without ada_ln has latent_dim equal to dim and no context",
        )
        _require(
            not self.ada_ln or self.self_conditioning,
            "an ada_ln denoiser reads its previous prediction: self_conditioning must be true",
        )
        _require(
            not self.ada_ln or self.first_prediction == "zeros",
            "an ada_ln denoiser starts from a zero prediction: first_prediction must be 'zeros'",
        )

    @property
    def head_dim(self) -> int:
        """Features per head of the denoiser and the Perceivers."""
        return self.dim // self.num_heads

    @classmethod
    def preset(cls, name: str, **changes) -> "LDLMConfig":
        """The preset `name`, with fields replaced by `changes`. Raises ValueError that lists the known names."""
        if name not in tuple(PRESETS):
            raise ValueError(f"unknown preset {name!r}; known presets: {', '.join(PRESETS)}")
        return dataclasses.replace(PRESETS[name], **changes)

    @classmethod
    def from_dict(cls, fields: dict) -> "LDLMConfig":
        """The inverse of `to_dict`. Raises ValueError that names missing or unknown fields."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - set(known))
        missing = sorted(n for n, f in known.items() if f.default is dataclasses.MISSING and n not in fields)
        _require(not unknown, f"the config has unknown fields: {', '.join(unknown)}")
        _require(not missing, f"the config lacks fields: {', '.join(missing)}")
        return cls(**fields)

    def to_dict(self) -> dict:
        """The fields as plain JSON values."""
        return dataclasses.asdict(self)


def _checked(field: dataclasses.Field, value: object) -> object:
    """A field's value in the field's own type."""
    if field.name == "encoder_layer":
        return whole_number(field.name, value, -(2**31))
    if field.type in (int, int | None):
        return whole_number(field.name, value, 1)
    if field.type is float:
        return real_number(field.name, value, least=0)
    if field.type is bool:
        _require(isinstance(value, bool), f"{field.name} is {value!r}; it must be true or false")
    if field.name == "encoder":
        _require(value is None or isinstance(value, str), f"encoder is {value!r}; it must be a path, a hub id or None")
    return value


def _rising(name: str, ends: Sequence[float]) -> tuple[float, float]:
    """The two ends as a tuple of floats; JSON and YAML give them as a list."""
    numbers = isinstance(ends, (list, tuple)) and all(type(end) in (int, float) for end in ends)
    _require(
        numbers and len(ends) == 2 and -math.inf < ends[0] < ends[1] < math.inf,
        f"{name} is {ends!r}; it must be two finite numbers, the smaller first",
    )
    return float(ends[0]), float(ends[1])


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def open_dllm_config(dim: int, vocab_size: int, seq_len: int = 64, proj_in: bool = False, **changes) -> LDLMConfig:
    """The published architecture ("open-dllm").

    Args:
        dim: width d, in features.
        vocab_size: V.
        seq_len: T, in tokens.
        proj_in: whether the checkpoint has the self-conditioning projection.
        changes: fields of LDLMConfig to replace.

    Raises:
        ValueError: as LDLMConfig does.
    """
    dim = whole_number("dim", dim, 1)
    fields = {
        "num_heads": 8,
        "token_decoder_heads": next((h for h in (16, 12, 8, 4, 2) if dim % h == 0), 8),
        "ada_ln": False,
        "self_conditioning": proj_in,
        "first_prediction": "skip" if proj_in else "zeros",
        "context": False,
        "input_positions": False,
        "causal": True,
        "standardize": False,
        "noise_schedule": "power",
        "schedule_parameter": 3.0 if proj_in else 2.0,
    }
    return LDLMConfig(dim=dim, seq_len=seq_len, vocab_size=vocab_size, **(fields | changes))


PRESETS: dict[str, LDLMConfig] = {
    "open-dllm-35b-a3b": open_dllm_config(2048, QWEN36_VOCAB, encoder="Qwen/Qwen3.6-35B-A3B"),
    "open-dllm-27b": open_dllm_config(5120, QWEN36_VOCAB, encoder="Qwen/Qwen3.6-27B"),
    "ldlm-gpt2": LDLMConfig(
        dim=768,
        num_heads=12,
        seq_len=64,
        vocab_size=50_257,
        perceiver_layers=6,
        token_decoder_layers=3,
        denoiser_layers=12,
        encoder="gpt2",
    ),
    "ldlm-35b-a3b": LDLMConfig(dim=2048, num_heads=16, seq_len=64, vocab_size=QWEN36_VOCAB, encoder="Qwen/Qwen3.6-35B-A3B"),
    "ldlm-27b": LDLMConfig(dim=5120, num_heads=40, seq_len=64, vocab_size=QWEN36_VOCAB, encoder="Qwen/Qwen3.6-27B"),
    "tiny": LDLMConfig(
        dim=64, num_heads=4, seq_len=64, vocab_size=512, perceiver_layers=2, token_decoder_layers=1, denoiser_layers=2
    ),
}
