"""Prompts from files and datasets, a range at a time."""

import json
import pickle

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dllm_kernels.batch import prompts as module
from dllm_kernels.batch.prompts import Prompts
from dllm_kernels.inference.encode import PromptLimit, encode, takes_prompts
from dllm_kernels.model import encoder as encoder_module
from dllm_kernels.model.config import LDLMConfig

TEXTS = [f"prompt {i}: ä {'x' * (i % 7)}" for i in range(53)]


def jsonl(path, rows):
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    return path


@pytest.fixture(params=["jsonl", "jsonl without a last newline", "parquet", "dataset"])
def source(request, tmp_path):
    if request.param.startswith("jsonl"):
        path = jsonl(tmp_path / "p.jsonl", [{"id": i, "prompt": text} for i, text in enumerate(TEXTS)])
        if request.param != "jsonl":
            path.write_bytes(path.read_bytes().removesuffix(b"\n"))
        return path
    if request.param == "parquet":
        pq.write_table(pa.table({"text": TEXTS, "id": range(53)}), tmp_path / "p.parquet", row_group_size=10)
        return tmp_path / "p.parquet"
    datasets.Dataset.from_dict({"prompt": TEXTS}).save_to_disk(tmp_path / "d")
    return tmp_path / "d"


def test_any_range_is_read(source, monkeypatch):
    monkeypatch.setattr(module, "STRIDE", 8)
    found = pickle.loads(pickle.dumps(Prompts(source)))
    assert found.count == 53
    for first, count in ((0, 53), (0, 1), (7, 2), (8, 8), (9, 21), (10, 10), (52, 1)):
        assert found.read(first, count) == TEXTS[first : first + count]


def test_the_digest_tells_contents_apart(tmp_path):
    rows = [{"prompt": text} for text in TEXTS]
    one, same = (Prompts(jsonl(tmp_path / f"{name}.jsonl", rows)).digest for name in "ab")
    other = Prompts(jsonl(tmp_path / "c.jsonl", rows[::-1])).digest
    assert one == same != other


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "a"}\n{"prompt": "b"\n', "line 2 of .* is not JSON"),
        (b'{"prompt": "a"}\n["b"]\n', "line 2 of .* is not a JSON object"),
        (b'{"prompt": "a"}\n{"text": "b"}\n', "line 2 of .* has no text in its field 'prompt'"),
        (b'{"prompt": "a"}\n{"prompt": " "}\n', "line 2 of .* has an empty prompt"),
        (b'{"id": 1}\n', "has no field 'prompt' or 'text'; it has id"),
        (b"", "holds no prompts"),
        (b'{"prompt": "\xff"}\n', "line 1 of .* is not JSON"),
    ],
)
def test_lines_that_do_not_fit(tmp_path, content, message):
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Prompts(tmp_path / "p.jsonl")


def test_other_sources_that_do_not_fit(tmp_path):
    (tmp_path / "p.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"p.parquet is no Parquet file"):
        Prompts(tmp_path / "p.parquet")
    pq.write_table(pa.table({"prompt": [1, 2]}), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match="holds int64, not text"):
        Prompts(tmp_path / "p.parquet")
    pq.write_table(pa.table({"prompt": ["a", None]}), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match=r"row 1 of .* has no text"):
        Prompts(tmp_path / "p.parquet").read(0, 2)
    with pytest.raises(FileNotFoundError):
        Prompts(tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError, match="no dataset's folder and no hub id"):
        Prompts(tmp_path / "none")


@pytest.mark.parametrize("path", ["", "/", "//", ":train", "/:train"])
def test_a_path_without_a_name(path, tmp_path, monkeypatch):
    datasets.Dataset.from_dict({"prompt": TEXTS}).save_to_disk(tmp_path)
    # An empty path is not the folder that one is in.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^prompts is '{path}'; it must be a .jsonl or .parquet file, a dataset's folder or "):
        Prompts(path)


class TestHub:
    """A dataset as the hub has it: files of its splits, which `datasets` puts into its cache as Arrow files."""

    @pytest.fixture(autouse=True)
    def a_folder_here(self, tmp_path, monkeypatch):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        for split, texts in (("train", TEXTS), ("test", TEXTS[::-1])):
            (tmp_path / "owner" / "name").mkdir(parents=True, exist_ok=True)
            jsonl(tmp_path / "owner" / "name" / f"{split}.jsonl", [{"text": text, "id": 1} for text in texts])

    @pytest.mark.parametrize(
        ("name", "expected"), [("owner/name", TEXTS), ("owner/name:train", TEXTS), ("owner/name:test", TEXTS[::-1])]
    )
    def test_a_split_is_read_from_the_disk_a_range_at_a_time(self, name, expected, tmp_path):
        found = Prompts(name)
        assert (found.count, found.column, found.digest) == (53, "text", Prompts(name).digest)
        # A worker is told where the file is, and not what it holds.
        told = pickle.dumps(found)
        assert str(tmp_path / "cache").encode() in told and not any(text.encode() in told for text in TEXTS)
        assert pickle.loads(told).read(7, 21) == expected[7:28]

    def test_splits_have_digests_of_their_own(self):
        assert Prompts("owner/name:train").digest != Prompts("owner/name:test").digest

    def test_what_the_hub_is_asked_for(self, monkeypatch):
        asked = []

        def load_dataset(*arguments, **options):
            asked.append((arguments, options))
            return datasets.Dataset.from_dict({"prompt": TEXTS})

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        assert Prompts("somebody/else").read(50, 3) == Prompts("somebody/else:validation[:90%]").read(50, 3) == TEXTS[50:]
        assert asked == [(("somebody/else",), {"split": "train"}), (("somebody/else",), {"split": "validation[:90%]"})]

    def test_what_it_does_not_give(self, monkeypatch, tmp_path):
        with pytest.raises(ValueError, match="owner/name:nope is no dataset: Unknown split"):
            Prompts("owner/name:nope")
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match="empty is no dataset: "):
            Prompts(tmp_path / "empty")

        def absent(*arguments, **options):
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'somebody/else' doesn't exist on the Hub")

        monkeypatch.setattr(datasets, "load_dataset", absent)
        with pytest.raises(ValueError, match="somebody/else is no file or folder here, and the hub does not give it: Dataset"):
            Prompts("somebody/else")
        datasets.DatasetDict({"a": datasets.Dataset.from_dict({"prompt": TEXTS})}).save_to_disk(tmp_path / "splits")
        with pytest.raises(ValueError, match="holds the splits a; name the folder of one"):
            Prompts(tmp_path / "splits")


class StandInEncoder:
    """Tokens are characters; hidden states hold them, and how many rows were read together, so that company shows."""

    max_tokens = 40

    def __init__(self, hidden_dim):
        self.hidden_dim = hidden_dim

    def tokenizer(self, texts, add_special_tokens, verbose):
        assert not add_special_tokens
        return {"input_ids": [[ord(c) % 32 for c in text] for text in texts]}

    def __call__(self, tokens, mask, batch_size):
        hidden = (tokens * mask)[..., None] + torch.zeros(*tokens.shape, self.hidden_dim)
        for part in hidden.split(batch_size):
            part[..., -1] = len(part)
        return hidden


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_prompts_are_padded_and_never_cut(at_once):
    hidden, mask = encode(StandInEncoder(3), ["ab", "abcde", "abc"], 5, at_once)
    assert mask.tolist() == [[True] * 2 + [False] * 3, [True] * 5, [True] * 3 + [False] * 2]
    assert hidden[..., 0].tolist() == [[1, 2, 0, 0, 0], [1, 2, 3, 4, 5], [1, 2, 3, 0, 0]]
    assert hidden[0, 0, 2] == at_once
    with pytest.raises(ValueError, match="prompt 1 of a batch has 6 tokens; prompt_len allows from 1 to 5"):
        encode(StandInEncoder(3), ["ab", "abcdef", "abc"], 5, at_once)


class TestLimit:
    @pytest.fixture(autouse=True)
    def an_encoder(self, monkeypatch):
        stand_in = StandInEncoder(3)
        monkeypatch.setattr(encoder_module, "prompt_tokenizer", lambda path: (stand_in.tokenizer, stand_in.max_tokens))

    def config(self, **changes):
        return LDLMConfig.preset("tiny", **{"encoder": "x"} | changes)

    def test_it_is_the_models_length_or_the_encoders(self):
        assert PromptLimit(self.config(seq_len=13)).most == 13
        assert PromptLimit(self.config()).most == 40
        assert PromptLimit(self.config(seq_len=13), 29).most == 29
        with pytest.raises(ValueError, match="prompt_len is 41, and the encoder x reads at most 40 tokens"):
            PromptLimit(self.config(), 41)

    def test_the_prompt_that_does_not_fit_is_named(self):
        limit = PromptLimit(self.config(), 5)
        limit(["ab", "abcde"])
        for prompts, expected in ((["ab", "abcdef"], "prompt 1 has 6 tokens"), (["", "a"], "prompt 0 has 0 tokens")):
            with pytest.raises(ValueError, match=f"^{expected}; prompt_len allows from 1 to 5$"):
                limit(prompts)
        with pytest.raises(ValueError, match=r"^prompt 1 is not Unicode text"):
            limit(["a", "\udfff"])

    def test_a_model_that_takes_no_prompt(self):
        assert takes_prompts(self.config()) and not takes_prompts(self.config(context=False))
        for changes, expected in (({"context": False}, "context=False"), ({"encoder": None}, "its config names none")):
            with pytest.raises(ValueError, match=expected):
                PromptLimit(self.config(**changes), 8)
        assert not takes_prompts(self.config(encoder=None))


def test_where_a_prompt_stands(source):
    named = Prompts(source).place(6)
    assert named == f"line 7 of {source}" if source.suffix == ".jsonl" else f"row 6 of {source}"
