"""The frozen language model whose hidden states an LDLM is trained on and prompted with (arXiv:2605.07933, section 3).

Any causal or bidirectional model of transformers serves. `layer` is an index into its `hidden_states`, which has L + 1
entries: the embeddings, then the output of each of L layers. So -3 is the output of layer L - 2. Layers above it are not
loaded. Only the last entry has passed the final norm; any other is the last loaded layer's own output.
"""

import hashlib
import inspect
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.utils.ambient import unaffected
from dllm_kernels.utils.device import resolve_device
from dllm_kernels.utils.keywords import as_dtype

_SAMPLED = 256
"""Values of each weight that go into an encoder's identity, enough to tell any two trained models apart."""

_NEEDED = "an encoder needs transformers: pip install 'dllm-kernels[text]'"

_process = threading.Lock()
"""Held while what belongs to the whole process is changed: functions of transformers' modules, and what its loading sets."""


class Encoder:
    """A frozen language model without the layers above the one that is read, and its tokenizer.

    Several threads may share it: one computes at a time. A thread that calls `tokenizer` itself must do so alone.

    Args:
        path: a folder or hub id of a model that `transformers.AutoModel` loads.
        layer: index into its hidden states, negative from the end.
        device: None for CUDA where there is a card, otherwise the CPU.
        dtype: of weights and hidden states, also by its name; None for bfloat16 on CUDA and float32 elsewhere.

    Attributes:
        hidden_dim: features d_h of a hidden state.
        vocab_size: rows of the model's embedding.
        layer: index into the hidden states, from 0, the embeddings, to L.
        max_tokens: the longest text it reads, without special tokens, or None where there is no limit.
        tokenizer: transformers' tokenizer of the model, or None where `path` has none.
        linear_attention: what computes linear attention, "PyTorch" or a package's name; None for a model without it.

    Raises:
        ImportError: transformers is not installed.
        ValueError: `path` gives no model, or an encoder-decoder model, or it has no such layer; one sentence.
    """

    @unaffected()
    def __init__(
        self,
        path: str | Path,
        layer: int = -3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
    ):
        self.path, self.device = str(path), resolve_device(device)
        self.dtype = as_dtype(dtype or ("bfloat16" if self.device.type == "cuda" else "float32"))
        model, self._config, self.layer, self._depth = _load(self.path, layer, self.dtype)
        self._model, self._lock = model.eval().requires_grad_(False).to(self.device), threading.Lock()
        self._layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == max(self.layer, 1))
        embedding = model.get_input_embeddings()
        self.hidden_dim, self.vocab_size = _text_config(self._config).hidden_size, embedding.num_embeddings
        self.tokenizer = _tokenizer(self.path)
        self._before, self._after = _special_tokens(self.tokenizer)
        self.max_tokens = _most_tokens(self._config, self._before, self._after)
        kernels = list(_kernels(model))
        packages = {package for _, _, package, torch_only in kernels if not torch_only}
        used = packages if self.device.type == "cuda" else ()
        self.linear_attention = (", ".join(sorted(used)) or "PyTorch") if kernels else None
        self._replaced = [(module, name) for module, name, _, torch_only in kernels if not torch_only and not used]

    @classmethod
    def for_model(cls, config: LDLMConfig, device: torch.device | str | None = None, path: str | None = None) -> "Encoder":
        """The encoder that a model was trained with.

        Args:
            config: names the encoder and the layer.
            device: as of the constructor.
            path: a folder or hub id to load it from instead.

        Raises:
            ValueError: the config names no encoder, or the encoder does not fit it.
        """
        if path is None and config.encoder is None:
            raise ValueError("the model's config names no encoder")
        encoder = cls(path or config.encoder, config.encoder_layer, device)
        encoder.check_fits(config)
        return encoder

    def check_fits(self, config: LDLMConfig) -> None:
        """Raises ValueError unless a model with this config can read the hidden states and write the tokens."""
        if self.hidden_dim != config.hidden_dim:
            raise ValueError(
                f"the encoder {self.path} has hidden states of width {self.hidden_dim}, and the model's hidden_dim is "
                f"{config.hidden_dim}"
            )
        if self.tokenizer is not None and len(self.tokenizer) > config.vocab_size:
            raise ValueError(
                f"the encoder {self.path} has {len(self.tokenizer)} tokens, and the model's vocab_size is {config.vocab_size}"
            )

    @unaffected()
    def __call__(self, tokens: Tensor, mask: Tensor | None = None, batch_size: int = 256) -> Tensor:
        """Hidden states of rows of tokens. The rows come without special tokens; the model's are put around each row here.

        Args:
            tokens: [B, S] integers.
            mask: [B, S] bool, True at a row's tokens, False at the padding after them; None for no padding.
            batch_size: rows that are computed together.

        Returns:
            [B, S, d_h] in the encoder's dtype on its device, 0 at padding; a row of padding gives a row of zeros.

        Raises:
            ValueError: rows are longer than the model reads, or the mask does not fit or has padding before a token.
        """
        tokens = tokens.to(self.device, torch.int64)
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.to(self.device)
        self._validate(tokens, mask)
        rows = zip(tokens.split(batch_size), mask.split(batch_size), strict=True)
        return torch.cat([self._hidden(*part) for part in rows])

    @unaffected()
    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Texts to tokens [B, S] int64 without special tokens and their mask [B, S] bool, padded to the longest.

        Raises:
            ValueError: the encoder has no tokenizer, or a text is empty, longer than the model reads or not Unicode.
        """
        if self.tokenizer is None:
            raise ValueError(f"the encoder {self.path} has no tokenizer")
        for number, text in enumerate(texts):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(f"text {number} is not Unicode text: it holds half a surrogate pair") from None
        # A tokenizer warns of texts longer than its model reads; they are an error below.
        rows = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        if not rows or not all(rows):
            raise ValueError("the text to encode is empty" if rows else "there is no text to encode")
        longest = max(map(len, rows))
        self._check_length(longest)
        tokens = torch.tensor([row + [self.pad_token] * (longest - len(row)) for row in rows])
        return tokens, torch.arange(longest) < torch.tensor([len(row) for row in rows]).unsqueeze(1)

    @unaffected()
    def encode(self, texts: list[str], batch_size: int = 256) -> tuple[Tensor, Tensor]:
        """Texts to hidden states [B, S, d_h] and their mask [B, S] bool; errors as of `tokenize`."""
        tokens, mask = self.tokenize(texts)
        return self(tokens, mask, batch_size), mask.to(self.device)

    @property
    def pad_token(self) -> int:
        """The token that pads rows. Any token would do, since a mask says where padding is."""
        known = (None,) if self.tokenizer is None else (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((token for token in known if token is not None), 0)

    @property
    def end_token(self) -> int | None:
        """The token that ends a text: the tokenizer's end of sequence or separator, or None where it has neither."""
        known = (None,) if self.tokenizer is None else (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id)
        return next((token for token in known if token is not None), None)

    @unaffected()
    def identity(self) -> str:
        """A hash of all that hidden states depend on: model, layer, dtype, special tokens, and samples of every weight."""
        kind = f"{type(self._model).__name__} {self._config.to_json_string()}"
        digest = hashlib.sha256(f"{kind} {self.layer} {self.dtype} {self._before} {self._after}".encode())
        for name, weight in self._model.state_dict().items():
            values = weight.flatten()
            stride = max(1, values.numel() // _SAMPLED)
            digest.update(f"{name} {list(weight.shape)}".encode())
            digest.update(values[::stride][:_SAMPLED].double().cpu().numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes a folder that loads as this encoder with the same `layer`: config, weights in its dtype, and tokenizer.

        Layers above `layer` are not written. The folder has its name only when it is whole.

        Raises:
            ValueError: the folder exists.
        """
        folder = Path(folder)
        if folder.exists():
            raise ValueError(f"{folder} is there already")
        aside = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        self._model.save_pretrained(aside)
        self._config.save_pretrained(aside)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(aside)
        aside.rename(folder)

    def _hidden(self, tokens: Tensor, mask: Tensor) -> Tensor:
        before, after = (tokens.new_tensor(special) for special in (self._before, self._after))
        rows, length = tokens.shape
        first, lengths = len(before), mask.sum(1, keepdim=True)
        padded = tokens.new_full((rows, first + length + len(after)), self.pad_token)
        padded[:, :first] = before
        padded[:, first : first + length] = tokens.masked_fill(~mask, self.pad_token)
        # What follows a text comes right after its last token.
        padded.scatter_(1, first + lengths + torch.arange(len(after), device=self.device), after.expand(rows, -1))
        attended = torch.arange(padded.shape[1], device=self.device) < first + lengths + len(after)
        # An empty row attends to one padding token, so that no softmax is empty; its result is set to 0.
        attended[:, 0] = True
        # The hook that reads a layer hangs on the model, so a second call must not run meanwhile.
        with self._lock, _read(self._layers, self.layer) as found, self._pytorch_only():
            last = self._model(input_ids=padded, attention_mask=attended.long()).last_hidden_state
        hidden = last if self.layer == self._depth else found[0]
        return hidden[:, first : first + length].masked_fill(~mask.unsqueeze(-1), 0)

    def _validate(self, tokens: Tensor, mask: Tensor) -> None:
        if tokens.ndim != 2 or tokens.numel() == 0:
            raise ValueError(f"the tokens to encode have shape {list(tokens.shape)}; they must be [B, S] and not empty")
        if mask.shape != tokens.shape or mask.dtype != torch.bool:
            raise ValueError(f"mask is {mask.dtype} {list(mask.shape)}; it must be bool {list(tokens.shape)}")
        self._check_length(tokens.shape[1])
        if (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ValueError("mask has padding before a token; padding must follow a row's tokens")

    def _check_length(self, length: int) -> None:
        if self.max_tokens is not None and length > self.max_tokens:
            raise ValueError(f"a text of {length} tokens is too long; the encoder {self.path} reads up to {self.max_tokens}")

    @contextmanager
    def _pytorch_only(self) -> Iterator[None]:
        """On a CPU, puts transformers' own functions in place of those that it took from a package of GPU kernels."""
        with _process if self._replaced else nullcontext():
            theirs = [getattr(module, name) for module, name in self._replaced]
            for (module, name), function in zip(self._replaced, theirs, strict=True):
                setattr(module, name, function.__wrapped__)
            try:
                yield
            finally:
                for (module, name), function in zip(self._replaced, theirs, strict=True):
                    setattr(module, name, function)


def prompt_tokenizer(path: str):
    """An encoder's tokenizer and its `Encoder.max_tokens`, without loading its weights.

    Raises:
        ImportError: transformers is not installed.
        ValueError: `path` gives no model or no tokenizer; one sentence.
    """
    try:
        from transformers import AutoConfig
    except ImportError:
        raise ImportError(_NEEDED) from None
    _check_path(path)
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"the encoder {path} cannot be loaded: {str(error).splitlines()[0]}") from error
    tokenizer = _tokenizer(path)
    if tokenizer is None:
        raise ValueError(f"the encoder {path} has no tokenizer")
    return tokenizer, _most_tokens(config, *_special_tokens(tokenizer))


@contextmanager
def _read(layers: nn.ModuleList, layer: int) -> Iterator[list[Tensor]]:
    """A list that receives the first layer's input for layer 0, otherwise the last layer's output."""
    found = []

    def incoming(module: nn.Module, arguments: tuple, keywords: dict) -> None:
        found.append(arguments[0] if arguments else keywords["hidden_states"])

    def outgoing(module: nn.Module, arguments: tuple, output: Tensor | tuple) -> None:
        found.append(output if isinstance(output, Tensor) else output[0])

    if layer == 0:
        hook = layers[0].register_forward_pre_hook(incoming, with_kwargs=True)
    else:
        hook = layers[-1].register_forward_hook(outgoing)
    try:
        yield found
    finally:
        hook.remove()


def _load(path: str, layer: int, dtype: torch.dtype):
    """(model up to the layer, the whole model's config, the layer's index from 0 to L, the depth L)."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise ImportError(_NEEDED) from None
    _check_path(path)
    with _process:
        return _load_quietly(path, layer, dtype)


def _load_quietly(path: str, layer: int, dtype: torch.dtype):
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # transformers would warn of the layers that are left out on purpose.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config, whole = (AutoConfig.from_pretrained(path) for _ in range(2))
        depth = _drop_layers_above(path, config, layer)
        model, report = AutoModel.from_pretrained(path, config=config, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError) as error:
        if str(error).startswith("the encoder "):
            raise
        raise ValueError(f"the encoder {path} cannot be loaded: {str(error).splitlines()[0]}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
    # A pooler or a final norm may be missing: neither is read below the last layer.
    missing = sorted(name for name in report["missing_keys"] if "layer." in name or "layers." in name or ".h." in f".{name}")
    if missing:
        raise ValueError(f"the encoder {path} lacks weights: {', '.join(missing[:3])}")
    model = getattr(model, "language_model", model)
    model.config.use_cache = False
    return model, whole, layer % (depth + 1), depth


def _check_path(path: str) -> None:
    if not Path(path).is_dir() and (Path(path).exists() or path.startswith((".", "/", "~"))):
        raise ValueError(f"the encoder {path} is not a folder, and not a hub id")


def _most_tokens(config, before: tuple[int, ...], after: tuple[int, ...]) -> int | None:
    positions = getattr(_text_config(config), "max_position_embeddings", None)
    return positions and positions - len(before) - len(after)


def _drop_layers_above(path: str, config, layer: int) -> int:
    """Changes a config to one without the layers above `layer`, and returns the depth L that it had."""
    if config.is_encoder_decoder:
        raise ValueError(f"the encoder {path} is an encoder-decoder model; it must be a single stack of layers")
    text = _text_config(config)
    depth = text.num_hidden_layers
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"the encoder {path} has {depth} layers; layer is {layer}, and must lie from {-depth - 1} to {depth}")
    kept = max(1, layer % (depth + 1))
    text.num_hidden_layers = kept
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:kept]
    if getattr(config, "vision_config", None) is not None:
        config.vision_config.depth = 0
    return depth


def _text_config(config):
    return config.get_text_config()


def _tokenizer(path: str):
    from transformers import AutoTokenizer

    # Without files in the folder AutoTokenizer would make an empty tokenizer, or ask the hub.
    if Path(path).is_dir() and not any(Path(path, name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"the encoder {path} gives no tokenizer: {str(error).splitlines()[0]}") from error


def _special_tokens(tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(tokens before, tokens after) that the tokenizer puts around a text."""
    if tokenizer is None:
        return (), ()
    plain, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    start = next(i for i in range(len(whole) + 1) if whole[i : i + len(plain)] == plain)
    return tuple(whole[:start]), tuple(whole[start + len(plain) :])


def _kernels(model: nn.Module) -> Iterator[tuple[ModuleType, str, str, bool]]:
    """Functions of the model that transformers may take from a package of GPU kernels.

    Yields:
        (module, function's name, package, whether transformers' own function is in place).
    """
    for module in {sys.modules[type(part).__module__] for part in model.modules()}:
        for name, function in vars(module).items():
            if inspect.isfunction(function) and hasattr(function, "__wrapped__"):
                cells = inspect.getclosurevars(function).nonlocals
                if {"implementation", "package"} <= cells.keys():
                    yield module, name, cells["package"], cells["implementation"] is function.__wrapped__
