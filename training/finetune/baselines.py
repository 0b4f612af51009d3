"""Labels of train -> predictions that a model must beat."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from cloze.training.finetune.metrics.classification import Label

Texts = tuple[Sequence[str], Sequence[str] | None]  # of examples, and the second texts if these are pairs


def majority(train_labels: Sequence[Label], count: int) -> list[Label]:
    """Returns `count` predictions of the most frequent label of train, of equally frequent ones the first by name."""
    counts = Counter(train_labels)
    most_frequent = min(counts, key=lambda label: (-counts[label], label))
    return [most_frequent] * count


def bag_of_words(train: Texts, train_labels: Sequence[Label], test: Texts) -> list[Label]:
    """Returns the predictions for `test` of a logistic regression on TF-IDF of words and pairs of words.

    The two texts of a pair have features of their own. Words of one character, which BERT's scripts without spaces
    consist of, count as well.
    """
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    features = []
    for train_texts, test_texts in zip(train, test, strict=True):
        if train_texts is None or test_texts is None:
            continue
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
        features.append((vectorizer.fit_transform(train_texts), vectorizer.transform(test_texts)))
    train_features, test_features = (hstack(side, format="csr") for side in zip(*features, strict=True))
    model = LogisticRegression(C=10.0, max_iter=1000)
    model.fit(train_features, list(train_labels))
    return np.asarray(model.predict(test_features)).tolist()
