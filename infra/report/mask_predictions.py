"""A trained model and held-out sentences with a masked word -> the model's predictions."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import TYPE_CHECKING

from cloze.infra.report.charts import format_percent
from cloze.infra.report.view_models import HeldoutDocument, TrainedModel
from cloze.pipeline.text.sentences import document_sentences
from cloze.pipeline.text.tokenizer import MASK

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Added where most held-out documents are English.
_ENGLISH_SENTENCES = [
    "The capital of France is [MASK].",
    "She opened the [MASK] and looked out of the window.",
    "He was born in [MASK] and died in London.",
    "The [MASK] was built in the nineteenth century.",
]
_HELDOUT_SENTENCES = 6
_SENTENCE_CHARS = range(40, 150)


@dataclass(frozen=True)
class TokenPrediction:
    token: str
    probability: float
    correct: bool

    @property
    def percent(self) -> str:
        return format_percent(self.probability)


@dataclass(frozen=True)
class MaskedSentence:
    """A sentence with one masked word. `original` is that word, or empty where it is unknown."""

    before: str
    after: str
    original: str = ""


@dataclass(frozen=True)
class SentencePredictions:
    sentence: MaskedSentence
    predictions: list[TokenPrediction]  # most likely first


@dataclass(frozen=True)
class MaskPredictionsSection:
    summary: str
    groups: list[tuple[str, list[SentencePredictions]]]  # title, predictions


def mask_predictions_section(model: TrainedModel | None) -> MaskPredictionsSection | None:
    """Returns the final checkpoint's predictions; None before there is one."""
    if model is None:
        return None
    heldout, is_english = select_heldout_sentences(model.heldout_documents(), model.tokenizer)
    fixed = [MaskedSentence(*sentence.split(MASK)) for sentence in _ENGLISH_SENTENCES] if is_english else []
    groups = [
        (title, [SentencePredictions(sentence, _predict(model, sentence)) for sentence in sentences])
        for title, sentences in (("Sentences from held-out documents", heldout), ("Fixed sentences", fixed))
        if sentences
    ]
    return MaskPredictionsSection(_summary([one for _, group in groups for one in group]), groups) if groups else None


def _predict(model: TrainedModel, sentence: MaskedSentence) -> list[TokenPrediction]:
    predictions = model.predict(f"{sentence.before}{MASK}{sentence.after}")
    expected = model.tokenizer.encode(sentence.original, add_special_tokens=False).tokens
    return [TokenPrediction(one.piece, one.probability, [one.piece] == expected) for one in predictions]


def _summary(results: list[SentencePredictions]) -> str:
    same_for_all = len({result.predictions[0].token for result in results}) == 1 < len(results)
    with_original = [result.predictions for result in results if result.sentence.original]
    top_1 = sum(predictions[0].correct for predictions in with_original)
    top_5 = sum(any(one.correct for one in predictions) for predictions in with_original)
    text = (
        "One word of each sentence is masked; the five most likely tokens are shown. For "
        f"{len(with_original)} sentences from held-out documents, the original word is the top prediction {top_1} "
        f"times and in the top five {top_5} times."
    )
    if same_for_all:
        text += " The top prediction is the same for all sentences: the model has only learned token frequencies."
    return text


def select_heldout_sentences(
    documents: Iterable[HeldoutDocument], tokenizer: "Tokenizer"
) -> tuple[list[MaskedSentence], bool]:
    """Returns some masked sentences, alternating between sources, and whether most documents are English."""
    by_source: dict[str, list[MaskedSentence]] = {}
    languages: dict[str, int] = {}
    for document in documents:
        languages[document.language] = languages.get(document.language, 0) + 1
        sentences = by_source.setdefault(document.source, [])
        if len(sentences) < _HELDOUT_SENTENCES and (masked := _mask_word(document.text, tokenizer)):
            sentences.append(masked)
    alternating = chain.from_iterable(zip_longest(*by_source.values()))
    is_english = max(languages, key=lambda language: languages[language], default="") == "en"
    return list(islice(filter(None, alternating), _HELDOUT_SENTENCES)), is_english


def _mask_word(text: str, tokenizer: "Tokenizer") -> MaskedSentence | None:
    """Masks a word that is a single token, in a sentence of the text. The text's hash selects sentence and word."""
    sentences = [one for one in document_sentences(text) if len(one) in _SENTENCE_CHARS and MASK not in one]
    if not sentences:
        return None
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    sentence = sentences[digest % len(sentences)]
    encoding = tokenizer.encode(sentence, add_special_tokens=False)
    is_continuation = [piece.startswith("##") for piece in encoding.tokens] + [False]
    candidates = [
        index
        for index, piece in enumerate(encoding.tokens)
        if piece.isalpha() and not is_continuation[index + 1] and (len(piece) > 2 or not piece.isascii())
    ]
    if not candidates:
        return None
    start, end = encoding.offsets[candidates[digest % len(candidates)]]
    return MaskedSentence(sentence[:start], sentence[end:], sentence[start:end])
