"""The n-gram judge against its formula by hand."""

import math

import pytest

from dllm_kernels.evaluation.ngram import NgramModel

TEXTS = [[1, 2, 1, 2, 3], [1, 2]]
"""Of seven tokens 1 and 2 stand three times each, 3 once; 1 is followed by 2 three times, 2 by 1 and 3 once each."""


def test_unigrams():
    model = NgramModel(TEXTS, 1, 10)
    assert model.name == "1-gram"
    assert [model.probability(token, [5, 6]) for token in (1, 3, 9)] == pytest.approx([3.3 / 10, 1.3 / 10, 0.3 / 10])


def test_bigrams():
    model = NgramModel(TEXTS, 2, 10)
    one, two, three = 3.3 / 10, 3.3 / 10, 1.3 / 10
    assert model.probability(2, [7, 1]) == pytest.approx((3 + 1 * two) / (3 + 1))
    assert model.probability(1, [2]) == pytest.approx((1 + 2 * one) / (2 + 2))
    assert model.probability(3, [2]) == pytest.approx((1 + 2 * three) / (2 + 2))
    # Nothing follows 3, and 8 never occurred.
    assert model.probability(1, [3]) == model.probability(1, [8]) == model.probability(1, []) == pytest.approx(one)


def test_trigrams_go_back_to_bigrams():
    model, less = NgramModel(TEXTS, 3, 10), NgramModel(TEXTS, 2, 10)
    assert model.probability(1, [1, 2]) == pytest.approx((1 + 2 * less.probability(1, [2])) / (2 + 2))
    assert model.probability(3, [3, 2]) == less.probability(3, [2])


@pytest.mark.parametrize("history", [[], [1], [2], [3], [9], [1, 2], [2, 1], [4, 2], [3, 3]])
def test_probabilities_sum_to_one(history):
    model = NgramModel(TEXTS, 3, 10)
    assert math.fsum(model.probability(token, history) for token in range(10)) == pytest.approx(1, rel=1e-12)


def test_perplexity():
    model = NgramModel(TEXTS, 2, 10)
    shares = [model.probability(1, []), model.probability(2, [1]), model.probability(9, [])]
    assert model.perplexity([[1, 2], [], [9]]) == pytest.approx(math.prod(shares) ** (-1 / 3), rel=1e-12)
    assert model.perplexity([[], []]) is None
    # A text of it is likelier than one that is none.
    assert model.perplexity(TEXTS) < model.perplexity([[3, 2, 1, 1, 3]])
