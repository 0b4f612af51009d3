"""The scores of both sentences of each minimal pair -> the accuracy of preferring the acceptable one."""

import numpy as np
from numpy.typing import ArrayLike

from cloze.training.finetune.metrics.estimates import Estimate, proportion, require_one_each


def pair_accuracy(acceptable: ArrayLike, unacceptable: ArrayLike) -> Estimate:
    """Returns the fraction of pairs whose acceptable sentence has the higher score, with its Wilson interval.

    Scores are log-likelihoods [pairs]. A tie is wrong: BLiMP (Warstadt et al. 2020) requires the acceptable sentence to
    be more probable. Raises ValueError when the numbers of scores differ or a score is NaN.
    """
    higher, lower = np.asarray(acceptable, np.float64), np.asarray(unacceptable, np.float64)
    require_one_each(higher, lower, "scores of acceptable sentences", "scores of unacceptable sentences")
    if bad := np.flatnonzero(np.isnan(higher) | np.isnan(lower)).tolist():
        raise ValueError(f"pair {bad[0]} has the scores {higher[bad[0]]} and {lower[bad[0]]}: NaN cannot be compared")
    return proportion(int((higher > lower).sum()), len(higher))
