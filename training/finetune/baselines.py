"""Labels of train -> predictions that a model must beat."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloze.training.finetune.metrics.classification import Label

Texts = tuple[Sequence[str], Sequence[str] | None]  # of examples, and the second texts if these are pairs


def majority(train_labels: Sequence[Label], count: int) -> list[Label]:
    """Returns `count` predictions of the most frequent label of train, of equally frequent ones the first by name."""
    counts = Counter(train_labels)
    most_frequent = min(counts, key=lambda label: (-counts[label], label))
    return [most_frequent] * count


def bag_of_words(train: Texts, train_labels: Sequence[Label], test: Texts) -> list[Label]:
    """Returns the predictions for `test` of a logistic regression on the features of `_tf_idf`."""
    train_features, test_features = _tf_idf(train, test)
    model = _regression().fit(train_features, list(train_labels))
    return np.asarray(model.predict(test_features)).tolist()


def bag_of_words_multilabel(train: Texts, train_labels: Sequence[Sequence[Label]], test: Texts) -> list[list[Label]]:
    """As `bag_of_words`, for any number of labels each: a regression for each label of train."""
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.preprocessing import MultiLabelBinarizer

    train_features, test_features = _tf_idf(train, test)
    names = sorted({label for labels in train_labels for label in labels})
    targets = MultiLabelBinarizer(classes=names).fit_transform(train_labels)
    # A label that all of train has needs no regression, of which scikit-learn would warn.
    fitted = [number for number, fraction in enumerate(targets.mean(0)) if fraction < 1]
    predicted = np.ones((test_features.shape[0], len(names)), np.bool_)
    if fitted:
        model = OneVsRestClassifier(_regression()).fit(train_features, targets[:, fitted])
        predicted[:, fitted] = model.predict(test_features).reshape(-1, len(fitted))
    return [[names[number] for number in np.flatnonzero(row)] for row in predicted]


def bag_of_words_choice(train: Texts, is_right: Sequence[bool], test: Texts, choices: int) -> list[int]:
    """Returns the number of the best choice of each example, by a regression that tells right from wrong choices.

    The texts are those of all choices, `choices` of an example next to each other: contexts, and the choices.
    """
    train_features, test_features = _tf_idf(train, test)
    model = _regression().fit(train_features, list(is_right))
    return np.asarray(model.decision_function(test_features)).reshape(-1, choices).argmax(1).tolist()


def tf_idf_similarities(
    train: Sequence[str],
) -> Callable[[Sequence[str], Sequence[str]], Callable[[slice], NDArray[np.float64]]]:
    """Returns a function of texts and candidates, which returns one with the cosines of some of the texts with each
    candidate, [texts, candidates].

    The features are those of `_tf_idf`, of train. A text without a word of train has the cosine 0.
    """
    vectorizer = _vectorizer().fit(train)

    def similarities(texts: Sequence[str], candidates: Sequence[str]) -> Callable[[slice], NDArray[np.float64]]:
        features, of_candidates = vectorizer.transform(texts), vectorizer.transform(candidates).T.tocsr()
        return lambda some: (features[some] @ of_candidates).toarray()

    return similarities


def _tf_idf(train: Texts, test: Texts) -> tuple[Any, Any]:
    """Returns sparse matrices with the TF-IDF of words and pairs of words in each text.

    The two texts of a pair have features of their own. Words of one character, which BERT's scripts without spaces
    consist of, count as well.
    """
    from scipy.sparse import hstack

    features = []
    for train_texts, test_texts in zip(train, test, strict=True):
        if train_texts is None or test_texts is None:
            continue
        vectorizer = _vectorizer()
        features.append((vectorizer.fit_transform(train_texts), vectorizer.transform(test_texts)))
    train_features, test_features = (hstack(side, format="csr") for side in zip(*features, strict=True))
    return train_features, test_features


def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")


def _regression() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=10.0, max_iter=1000)
