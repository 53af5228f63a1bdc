"""What the tests of training train on: a random encoder, a text that is easy to learn, and configs/tiny.yaml's settings."""

import json
import random
from pathlib import Path

import pytest
import torch
import yaml

from dllm_kernels.training.settings import Settings

CONFIG = Path(__file__).parents[2] / "configs" / "tiny.yaml"


def save_tokenizer(folder):
    """A tokenizer of 71 words, w4 to w70 among them, that puts [CLS] and [SEP] around a text as BERT's does."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(4, 71))]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **marks).save_pretrained(folder)


def save_encoder(folder):
    """A random BERT of width 64 and four layers, with its tokenizer."""
    import transformers

    torch.manual_seed(0)
    size = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
    config = transformers.BertConfig(vocab_size=71, max_position_embeddings=80, **size)
    transformers.BertModel(config).save_pretrained(folder)
    save_tokenizer(folder)


def save_text(path):
    """Two hundred documents of 6 to 60 words, each word one of three that may follow the last one."""
    rng = random.Random(0)
    with path.open("w") as file:
        for _ in range(200):
            words = [rng.randrange(4, 71)]
            for _ in range(rng.randrange(5, 60)):
                words.append(4 + (words[-1] * 7 + rng.randrange(3)) % 67)
            file.write(json.dumps({"text": " ".join(f"w{word}" for word in words)}) + "\n")


def save_parts(folder):
    """The encoder and the text in a folder."""
    save_encoder(folder / "encoder")
    save_text(folder / "text.jsonl")
    return folder


def write_config(folder, output="out", **changes):
    """A run's YAML file in a folder of `save_parts`: configs/tiny.yaml with its paths there, and `section__key` changed."""
    document = yaml.safe_load(CONFIG.read_text())
    document["output"] = str(folder / output)
    document["encoder"]["path"] = str(folder / "encoder")
    for key in ("text", "windows", "cache"):
        document["data"][key] = str(folder / document["data"][key])
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (document.setdefault(section, {}) if section else document)[key] = value
    path = folder / f"{output}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def tiny(folder, output="out", **changes):
    """The settings in `write_config`'s file."""
    return Settings.read(write_config(folder, output, **changes))


def lines(folder):
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def refusal(call):
    """The one sentence of the ValueError that a call raises."""
    with pytest.raises(ValueError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)
