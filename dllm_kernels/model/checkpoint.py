"""Checkpoints: save, load, and the published format's keys. An error names what does not fit."""

import json
import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dllm_kernels.model import int8
from dllm_kernels.model.config import LDLMConfig, open_dllm_config

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only")
"""What a caller may say about the hub."""

BUNDLED = Path(__file__).parents[1] / "bundled"
"""The models that come with the package, a checkpoint folder each, by name."""


class Weights:
    """The tensors of a safetensors file, read a part at a time through a memory map.

    Args:
        eight_bit: the file is in the format of int8.py; what is read from it is float32.

    Raises:
        ValueError: the file is truncated or is not a safetensors file.
    """

    def __init__(self, path: Path, eight_bit: bool = False):
        self.path, self._eight_bit = path, eight_bit
        try:
            with safe_open(path, framework="pt") as file:
                self.names = tuple(file.keys())
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or is not a safetensors file: {error}") from error

    def read(self, prefix: str = "") -> dict[str, Tensor]:
        """The tensors whose names start with `prefix`, under the rest of their names.

        Raises:
            ValueError: an 8-bit tensor and its scale do not fit; names them.
        """
        with safe_open(self.path, framework="pt") as file:
            state = {name.removeprefix(prefix): file.get_tensor(name) for name in self.names if name.startswith(prefix)}
        return int8.dequantize(state, prefix) if self._eight_bit else state


def save(folder: Path, config: LDLMConfig, state: dict[str, Tensor], eight_bit: bool = False) -> None:
    """Writes config.json and model.safetensors into `folder`, with matrices in 8 bits (int8.py) where asked for.

    Raises:
        ValueError: `eight_bit` and a tensor that holds NaN or infinity; names it.
    """
    fields = config.to_dict()
    if eight_bit:
        # An 8-bit integer would hide NaN.
        check_finite(state.items())
        state, fields = int8.quantize(state), fields | {"weight_format": int8.FORMAT}
    save_file({name: t.detach().contiguous() for name, t in state.items()}, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(fields, indent=2) + "\n")


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CONFIG_FILE}"))


def resolve(model_id: str | Path, **hub_options) -> Path:
    """The folder of a checkpoint: `model_id` itself where it is one, the bundled model of this name, or what the hub gives.

    Raises:
        FileNotFoundError: `model_id` is no folder, no bundled model, and cannot be a hub id.
    """
    if Path(model_id).is_dir():
        return Path(model_id)
    if str(model_id) in bundled_models():
        return BUNDLED / model_id
    if Path(model_id).exists() or str(model_id).startswith((".", "/", "~")) or str(model_id).count("/") != 1:
        raise FileNotFoundError(
            f"{model_id} is not a folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}, and not a hub id; "
            f"models in this package: {', '.join(bundled_models()) or 'none'}"
        )
    wanted = [CONFIG_FILE, WEIGHTS_FILE, *TOKENIZER_FILES]
    return Path(snapshot_download(str(model_id), allow_patterns=wanted, **hub_options))


def open_folder(folder: Path) -> tuple[LDLMConfig, Weights]:
    """The config and the weights of a checkpoint folder.

    Raises:
        FileNotFoundError: names the file that is missing.
        ValueError: names the file that is damaged and why, or the config's field that does not fit.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}")
    try:
        fields = json.loads((folder / CONFIG_FILE).read_text())
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{folder / CONFIG_FILE} holds a {type(fields).__name__} where a config is an object")
    weight_format = fields.pop("weight_format", None)
    if weight_format not in (None, int8.FORMAT):
        raise ValueError(f"{folder / CONFIG_FILE} has the weight_format {weight_format!r}; known formats: {int8.FORMAT}")
    encoder = fields.get("encoder")
    if isinstance(encoder, str) and encoder and (folder / encoder).is_dir():
        # A path in a folder is seen from that folder, wherever the process stands.
        fields["encoder"] = str((folder / encoder).resolve())
    return LDLMConfig.from_dict(fields), Weights(folder / WEIGHTS_FILE, eight_bit=weight_format is not None)


def load_into(module: nn.Module, state: dict[str, Tensor], prefix: str = "") -> None:
    """Puts `state` in place of `module`'s tensors, which may be on the meta device.

    Args:
        prefix: what stands before the keys in messages.

    Raises:
        ValueError: names the keys that are missing, unexpected or of another shape, or the first tensor that holds NaN.
    """
    expected = module.state_dict()
    problems = [
        f"{kind} {_some(prefix + name for name in names)}"
        for kind, names in (
            ("missing", sorted(set(expected) - set(state))),
            ("unexpected", sorted(set(state) - set(expected))),
        )
        if names
    ]
    problems += [
        f"{prefix}{name} has shape {list(state[name].shape)} where the config asks for {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        raise ValueError(f"the checkpoint does not fit its config: {'; '.join(problems[:4])}")
    check_finite(((prefix + name, tensor) for name, tensor in state.items()))
    module.load_state_dict(state, assign=True)


def check_finite(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raises ValueError that names the first tensor that holds NaN or infinity. It copies no tensor."""
    for name, tensor in tensors:
        if tensor.numel() and not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
            raise ValueError(f"{name} holds NaN or infinity")


def convert_open_dllm(source: str | Path | dict) -> tuple[LDLMConfig, dict[str, Tensor]]:
    """The published format (docs/design.md, "The model") as a config and our state dict.

    Args:
        source: a file that `torch.load` reads with weights_only, or the dict that it holds.

    Raises:
        ValueError: the file is damaged, holds code, or lacks a part; names what is wrong.
    """
    published = source if isinstance(source, dict) else _load_published(Path(source))
    missing = sorted({*_MODULE_NAMES, "config"} - set(published))
    if missing:
        raise ValueError(f"the open-dllm checkpoint lacks {', '.join(missing)}")
    for name in (*_MODULE_NAMES, "config"):
        if not isinstance(published[name], dict):
            raise ValueError(f"the open-dllm checkpoint's {name} is a {type(published[name]).__name__}; it must be a dict")
    fields = published["config"]
    missing = sorted({"dim", "vocab_size", "seq_len", "depth", "decoder_num_layers", "diffusion_head_depth"} - set(fields))
    if missing:
        raise ValueError(f"the open-dllm checkpoint's config lacks {', '.join(missing)}")
    config = open_dllm_config(
        fields["dim"],
        fields["vocab_size"],
        fields["seq_len"],
        proj_in="proj_in.weight" in published["diffusion_head"],
        perceiver_layers=fields["depth"],
        token_decoder_layers=fields["decoder_num_layers"],
        denoiser_layers=fields["diffusion_head_depth"],
        encoder=fields.get("encoder"),
    )
    state = {}
    for theirs, ours in _MODULE_NAMES.items():
        for name, tensor in _fuse_key_value(published[theirs]).items():
            state[f"{ours}.{_rename(name, _KEYS[ours])}"] = tensor
    return config, state


def _load_published(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    zipped = zipfile.is_zipfile(path)
    with open(path, "rb") as file:
        if not zipped and file.read(1) != pickle.PROTO:
            raise ValueError(f"{path} is damaged or is not a PyTorch checkpoint: it is neither a zip file nor a pickle")
    try:
        # Only the newer of PyTorch's two formats, a zip file, can be mapped.
        published = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors and plain values, and is not loaded: it could run code") from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged or is not a PyTorch checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(published, dict):
        raise ValueError(f"{path} holds a {type(published).__name__} where an open-dllm checkpoint holds a dict")
    return published


def _fuse_key_value(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published to_k and to_v, and the rows of a packed cross-attention projection, as query and key_value."""
    fused = {}
    for name, tensor in state.items():
        if name.endswith(".to_k.weight"):
            value = state.get(name.replace(".to_k.", ".to_v."))
            if value is None:
                raise ValueError(f"the open-dllm checkpoint lacks {name.replace('.to_k.', '.to_v.')}")
            fused[name.replace(".to_k.", ".key_value.")] = torch.cat((tensor, value))
        elif ".multihead_attn.in_proj_" in name:
            dim = tensor.shape[0] // 3
            fused[name.replace("in_proj_", "query.")] = tensor[:dim]
            fused[name.replace("in_proj_", "key_value.")] = tensor[dim:]
        elif not name.endswith(".to_v.weight"):
            fused[name] = tensor
    return fused


_MODULE_NAMES = {
    "latent_encoder": "latent_encoder",
    "latent_decoder": "latent_decoder",
    "token_decoder": "token_decoder",
    "lm_head": "lm_head",
    "diffusion_head": "denoiser",
}

_PERCEIVER_KEYS = {
    ".0.norm.": ".self_norm.",
    ".0.fn.to_qkv.": ".self_attention.qkv.",
    ".0.fn.to_out.": ".self_attention.out.",
    ".1.norm.": ".cross_norm.",
    ".1.fn.to_q.": ".cross_attention.query.",
    ".1.fn.key_value.": ".cross_attention.key_value.",
    ".1.fn.to_out.": ".cross_attention.out.",
    ".2.norm.": ".mlp_norm.",
    ".2.fn.net.0.": ".mlp.up.",
    ".2.fn.net.2.": ".mlp.down.",
}
_KEYS = {
    "latent_encoder": _PERCEIVER_KEYS,
    "latent_decoder": _PERCEIVER_KEYS,
    "token_decoder": {
        ".self_attn.in_proj_": ".self_attention.qkv.",
        ".self_attn.out_proj.": ".self_attention.out.",
        ".multihead_attn.out_proj.": ".cross_attention.out.",
        ".multihead_attn.": ".cross_attention.",
        ".linear1.": ".mlp.up.",
        ".linear2.": ".mlp.down.",
        ".norm1.": ".self_norm.",
        ".norm2.": ".cross_norm.",
        ".norm3.": ".mlp_norm.",
    },
    "lm_head": {},
    "denoiser": {
        "time_mlp.0.": "time_embedding.up.",
        "time_mlp.2.": "time_embedding.down.",
        "proj_in.": "project_in.",
        ".1.to_qkv.": ".self_attention.qkv.",
        ".1.to_out.": ".self_attention.out.",
        ".3.net.0.": ".mlp.up.",
        ".3.net.2.": ".mlp.down.",
        ".0.": ".self_norm.",
        ".2.": ".mlp_norm.",
    },
}


def _rename(name: str, keys: dict[str, str]) -> str:
    # Layer numbers look like published part numbers, so the number after "layers" or "blocks" is set aside.
    head, _, rest = name.partition(".")
    number, _, tail = rest.partition(".")
    if head in ("layers", "blocks") and number.isdigit():
        return f"{head}.{number}{_replace_first('.' + tail, keys)}"
    return _replace_first(name, keys)


def _replace_first(name: str, keys: dict[str, str]) -> str:
    return next((name.replace(theirs, ours, 1) for theirs, ours in keys.items() if name.startswith(theirs)), name)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
