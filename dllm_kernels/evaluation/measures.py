"""What is said of samples by their tokens: entropy, distinct n-grams, a distance of distributions, memorisation."""

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

Samples = Sequence[Sequence[int]]
"""Token ids, a sequence a sample; of a sample only its text, without special tokens."""

RUN = 21
"""Tokens in a row that make a sample memorised where they stand in the training text: more than 20."""

_BASE = np.uint64(0x9E3779B97F4A7C15)


def entropy(samples: Samples) -> float:
    """Entropy in nats of the distribution of all samples' tokens taken together; 0 where there are none."""
    counts = np.array(list(Counter(token for sample in samples for token in sample).values()), dtype=np.float64)
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum()) if len(counts) else 0.0


def mean_entropy(samples: Samples) -> float:
    """Mean over the samples of the entropy in nats of the tokens of one: low where a sample repeats itself."""
    return float(np.mean([entropy([sample]) for sample in samples]))


def distinct(samples: Samples, n: int) -> float:
    """distinct-n (arXiv:1510.03055): different n-grams over all n-grams of all samples; 0 where there are none."""
    grams = [tuple(sample[i : i + n]) for sample in samples for i in range(len(sample) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def mauve(features: np.ndarray, reference: np.ndarray) -> float:
    """MAUVE (arXiv:2102.01454) of two sets of features [n, d], by the authors' library with its default settings.

    Returns:
        0 to 1; 1 where the two cannot be told apart. It depends on n: compare only equal n.

    Raises:
        ImportError: mauve-text is not installed.
    """
    from mauve import compute_mauve

    with warnings.catch_warnings():
        # Its divergence takes the logarithm of an empty bucket and then ignores the result.
        warnings.simplefilter("ignore")
        return float(compute_mauve(p_features=reference, q_features=features, verbose=False).mauve)


def memorised(samples: Samples, documents: Iterable[Sequence[int]], run: int = RUN) -> list[bool]:
    """Which samples share a run of `run` tokens with a document of the training text; exact.

    Args:
        documents: the training text's tokens, read once; a run lies within one document.
    """
    windows = [{tuple(sample[i : i + run]) for i in range(len(sample) - run + 1)} for sample in samples]
    sought = np.unique(np.array([_hashes(np.array(w), run)[0] for w in set().union(*windows)], dtype=np.uint64))
    found: set[tuple] = set()
    for document in documents:
        tokens = np.asarray(document)
        if len(tokens) < run or not len(sought):
            continue
        hashes = _hashes(tokens, run)
        nearest = np.minimum(np.searchsorted(sought, hashes), len(sought) - 1)
        # Two runs may have one hash, so the tokens are kept, and compared below.
        found.update(tuple(tokens[i : i + run].tolist()) for i in np.flatnonzero(sought[nearest] == hashes))
    return [not found.isdisjoint(window) for window in windows]


def _hashes(tokens: np.ndarray, run: int) -> np.ndarray:
    """A polynomial hash modulo 2^64 of each run of tokens."""
    values = tokens.astype(np.uint64) + np.uint64(1)
    total = np.zeros(len(values) - run + 1, dtype=np.uint64)
    for offset in range(run):
        total = total * _BASE + values[offset : offset + len(total)]
    return total
