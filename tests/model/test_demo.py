"""The model that comes with the package: its size, and that what it writes is what its evaluation says it writes."""

import difflib

import pytest
import torch

from dllm_kernels import FusedSampler
from dllm_kernels.model.checkpoint import BUNDLED, bundled_models
from dllm_kernels.model.tokenizer import TextTokenizer
from tests.cli.command import run
from tests.report.test_quality import COMMITTED

FOLDER = BUNDLED / "ldlm-demo"
COMMON = {"the", "of", "and", "to", "in", "that", "a", "it", "is", "be", "for", "with", "as", "was", "his", "he", "not", "by"}


@pytest.fixture(scope="module")
def evaluation():
    (found,) = (e for e in COMMITTED if e.title == "ldlm-demo")
    return found


@pytest.fixture(scope="module")
def texts():
    words = TextTokenizer(FOLDER)
    sampler = FusedSampler.from_pretrained("ldlm-demo", num_steps=10, batch_size=4, dtype=torch.float32, device="cpu")
    return [words.text(row) for row in sampler(seed=0).tokens.tolist()]


def test_it_is_small_and_in_the_package():
    assert "ldlm-demo" in bundled_models()
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 24_000_000


def test_it_writes_what_its_evaluation_shows(texts, evaluation):
    (row,) = (row for row in evaluation.rows if (row.solver, row.steps) == ("ddim", 10))
    for text, shown in zip(texts, row.examples, strict=False):
        assert difflib.SequenceMatcher(None, text.split(), shown.split(), autojunk=False).ratio() > 0.9


def test_it_is_near_english(texts):
    for text in texts:
        words = text.split()
        assert 0.2 < sum(word in COMMON for word in words) / len(words) < 0.6
        assert len(set(words)) > 25


def test_generate_prints_its_text(texts):
    result = run("generate", "ldlm-demo", "--dtype", "fp32", "--device", "cpu")
    told = " ".join(result.stdout.split())
    assert f"sample 0: {texts[0][:40]}" in told and "tok/s" in told


def test_its_evaluation_has_what_was_asked_of_it(evaluation):
    assert evaluation.reconstruction["accuracy"] >= 0.95 and evaluation.prompts["prompts"] >= 0.8
    model = [row for row in evaluation.rows if row.source == "ldlm-demo"]
    assert {row.steps for row in model} == {1, 2, 4, 10, 25, 50} and all(row.memorised <= 0.02 for row in model)
