"""Similarities of queries and candidates -> the rank of each query's right candidate, and the scores of ranks.

Rank 1 is the best. Of equally similar candidates the right one is the last, so that a constant similarity has the worst
rank.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloze.pipeline.core.ragged import Ints
from cloze.training.finetune.metrics.estimates import Estimate, bootstrap, proportion, ratio

Similarities = NDArray[np.floating[Any]]

_QUERIES = 512  # that are compared with all candidates at once


class Compared(NamedTuple):
    """Some queries: the similarity of the right candidate [q], and of all candidates [q, candidates].

    Among these the right one, and those that are right for an equal query, are -inf.
    """

    right: Similarities
    others: Similarities

    @property
    def ranks(self) -> Ints:
        """[q], from 1."""
        return 1 + (~(self.others < self.right[:, None])).sum(1)  # NaN is worst

    def losses(self, temperature: float) -> Similarities:
        """The cross-entropy of the right candidate among all by similarity / temperature [q], in nats."""
        logits = np.concatenate([self.right[:, None], self.others], 1, dtype=np.float64) / temperature
        most = logits.max(1)
        return most + np.log(np.exp(logits - most[:, None]).sum(1)) - logits[:, 0]


def compare(
    similarities: Callable[[slice], Similarities], right: Ints, same_query: Ints
) -> Iterator[tuple[slice, Compared]]:
    """Yields all queries, some at a time. `similarities` returns those of some queries [q, candidates].

    `right`: the number of each query's candidate [n]; `same_query`: equal numbers for equal queries [n].
    """
    for start in range(0, len(right), _QUERIES):
        some = slice(start, min(start + _QUERIES, len(right)))
        others = similarities(some)
        of_right = others[np.arange(len(others)), right[some]]
        query, equal = np.nonzero(same_query[some, None] == same_query)
        others[query, right[equal]] = -np.inf
        yield some, Compared(of_right, others)


def nearest(compared: Compared, right: Ints) -> Ints:
    """The number of the most similar candidate of each query [q], which is the right one where its rank is 1."""
    return np.where(compared.ranks == 1, right, compared.others.argmax(1))


def mean_reciprocal_rank(ranks: ArrayLike) -> Estimate:
    """Returns the mean of 1 / rank with its bootstrap interval."""
    reciprocals = 1 / np.asarray(ranks, np.float64)
    statistics = np.stack([reciprocals, np.ones_like(reciprocals)], 1)
    return bootstrap(statistics, lambda sums: ratio(sums[:, 0], sums[:, 1]))


def accuracy_at(count: int, ranks: ArrayLike) -> Estimate:
    """Returns the fraction of ranks up to `count`, with its Wilson interval."""
    found = np.asarray(ranks) <= count
    return proportion(int(found.sum()), len(found))


def chance(candidates: int) -> dict[str, float]:
    """Returns what a random order of this many candidates has on average, by the scores' names."""
    return {
        "mrr": float(np.mean(1 / np.arange(1, candidates + 1))),
        "accuracy_at_1": 1 / candidates,
        "accuracy_at_10": min(1.0, 10 / candidates),
    }
