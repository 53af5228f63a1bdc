"""Tokens to text: where a text ends, and what is not shown."""

import pytest

pytest.importorskip("transformers")

from dllm_kernels.model.tokenizer import TextTokenizer, has_tokenizer
from tests.evaluation.words import words_tokenizer
from tests.threads import together


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    words_tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "tokens, text",
    [
        ([0, 7, 8, 1, 9], "w7 w8"),
        ([7, 2, 8, 2], "w7 w8"),
        ([7, 3, 8], "w7 [UNK] w8"),
        ([1, 7], ""),
        ([], ""),
        ([0, 7, 9], "w7 w9"),
    ],
)
def test_text_ends_at_the_end_and_shows_no_special_token(folder, tokens, text):
    assert TextTokenizer(folder).text(tokens) == text


@pytest.mark.parametrize("tokens, place", [([0, 7, 8, 1, 9, 1], 3), ([7, 2], None), ([1], 0), ([], None)])
def test_the_place_of_the_end(folder, tokens, place):
    assert TextTokenizer(folder).end(tokens) == place


def test_tokens_are_those_of_the_text_alone(folder):
    tokenizer = TextTokenizer(folder)
    assert tokenizer.tokens(["w7 w8 and", "w100"]) == [[7, 8, 3], [100]]
    assert tokenizer.end_tokens == {1}


def test_a_folder_without_one(folder, tmp_path):
    assert has_tokenizer(folder) and not has_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="gives no tokenizer"):
        TextTokenizer(tmp_path)


def test_threads_that_share_a_tokenizer(tmp_path):
    """Also one whose file asks for truncation and padding, which transformers takes away at a call."""
    words = words_tokenizer()
    words.backend_tokenizer.enable_truncation(2)
    words.backend_tokenizer.enable_padding(length=7, pad_id=2, pad_token="[PAD]")
    words.save_pretrained(tmp_path)
    assert '"max_length": 2' in (tmp_path / "tokenizer.json").read_text()
    tokenizer = TextTokenizer(tmp_path)
    texts = [f"w{4 + i} w5 w{20 + i}" for i in range(8)]
    found = together(8, lambda i: [(tokenizer.tokens([texts[i]] * 9), tokenizer.text([4 + i, 5, 20 + i])) for _ in range(20)])
    assert all(pair == ([[4 + i, 5, 20 + i]] * 9, texts[i]) for i in range(8) for pair in found[i])
