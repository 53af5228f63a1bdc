"""An n-gram model of text: a judge that wrote none of the texts it judges, and knows no more of a language than they show.

Witten-Bell smoothing in its interpolated form (Chen and Goodman, 1998, "An empirical study of smoothing techniques for language
modeling", section 2.5): with c the counts of the training text and T(h) the number of different tokens that follow h,

    p(w | h) = (c(h w) + T(h) p(w | h')) / (c(h) + T(h)),    h' = h without its first token,

and p(w) beneath the empty history is uniform over the vocabulary. A history that never occurred leaves p(w | h').
"""

import math
from collections import Counter
from collections.abc import Sequence

Rows = Sequence[Sequence[int]]
"""Token ids, a sequence a text."""


class NgramModel:
    """Counts of n-grams within each text.

    Args:
        texts: what it learns from.
        order: n; the longest history has n - 1 tokens.
        vocab_size: tokens that there are.

    Attributes:
        name: what tables call it.
    """

    def __init__(self, texts: Rows, order: int, vocab_size: int):
        self.name, self.order, self.vocab_size = f"{order}-gram", order, vocab_size
        self._counts = Counter(
            tuple(text[start : start + n]) for text in texts for n in range(1, order + 1) for start in range(len(text) - n + 1)
        )
        self._followed, self._followers = Counter(), Counter()
        for gram, count in self._counts.items():
            self._followed[gram[:-1]] += count
            self._followers[gram[:-1]] += 1

    def probability(self, token: int, history: Sequence[int]) -> float:
        """p(token | history), of which the last n - 1 tokens count."""
        share, history = 1 / self.vocab_size, tuple(history)
        for length in range(min(len(history), self.order - 1) + 1):
            known = history[len(history) - length :]
            kinds = self._followers[known]
            if not kinds:
                break
            share = (self._counts[(*known, token)] + kinds * share) / (self._followed[known] + kinds)
        return share

    def perplexity(self, texts: Rows) -> float | None:
        """exp of the mean nats a token, each text from its first token on; None where there is no token."""
        nats = [-math.log(self.probability(token, text[:place])) for text in texts for place, token in enumerate(text)]
        return math.exp(math.fsum(nats) / len(nats)) if nats else None
