"""Measures of samples on tokens whose values are known."""

import math
import random

import numpy as np
import pytest

from dllm_kernels.evaluation.measures import RUN, distinct, entropy, mauve, mean_entropy, memorised


def test_entropy():
    assert entropy([[1, 2], [3, 4]]) == pytest.approx(math.log(4))
    assert entropy([[5, 5], [5]]) == 0 and entropy([[], []]) == 0
    assert entropy([[1, 1, 1], [2]]) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    # Samples that each repeat one token differ from each other: only the mean over samples sees the repetition.
    assert mean_entropy([[1, 1], [2, 2]]) == 0 and entropy([[1, 1], [2, 2]]) == pytest.approx(math.log(2))
    assert mean_entropy([[1, 2], [3, 3]]) == pytest.approx(math.log(2) / 2)


def test_distinct():
    samples = [[1, 2, 1, 2], [1, 2]]
    assert distinct(samples, 1) == pytest.approx(2 / 6)
    assert distinct(samples, 2) == pytest.approx(2 / 4)
    assert distinct(samples, 3) == 1 and distinct(samples, 5) == 0


def brute_force(samples, documents, run):
    grams = {tuple(d[i : i + run]) for d in documents for i in range(len(d) - run + 1)}
    return [any(tuple(s[i : i + run]) in grams for i in range(len(s) - run + 1)) for s in samples]


@pytest.mark.parametrize("run", [1, 3, 5])
def test_memorised_equals_brute_force(run):
    draw = random.Random(run)
    documents = [[draw.randrange(4) for _ in range(draw.randrange(0, 40))] for _ in range(8)]
    samples = [[draw.randrange(5) for _ in range(draw.randrange(0, 12))] for _ in range(200)]
    expected = brute_force(samples, documents, run)
    assert memorised(samples, documents, run) == expected
    assert 10 < sum(expected) < 190


def test_memorised_needs_more_than_twenty_tokens_in_a_row():
    text = list(range(1000, 1100))
    samples = [[7, *text[30:50], 7], [7, *text[30:51]], text[79:100], [*text[90:100], *text[:15]], []]
    assert RUN == 21
    assert memorised(samples, [text[:60], text[60:]]) == [False, True, True, False, False]
    # A run does not reach from one document into the next.
    assert memorised([text[50:75]], [text[:60], text[60:]]) == [False]
    assert memorised([text[:30]], iter([])) == [False]


def test_one_hash_for_two_runs_is_told_apart(monkeypatch):
    monkeypatch.setattr("dllm_kernels.evaluation.measures._hashes", lambda t, run: np.zeros(len(t) - run + 1, np.uint64))
    assert memorised([[1, 2, 3], [4, 5, 6]], [[0, 1, 2, 3, 9]], 3) == [True, False]


def test_mauve_tells_the_same_from_another_distribution():
    pytest.importorskip("mauve")
    draw = np.random.default_rng(0)
    a, b, other = draw.normal(size=(100, 8)), draw.normal(size=(100, 8)), draw.normal(size=(100, 8)) + 4
    assert mauve(a, b) > 0.9 and mauve(other, b) < 0.1
    assert mauve(a, b) == mauve(a, b)
