"""BERT's run_squad.py in loops: windows, an answer's tokens, ranked answers; and the search of SQuAD v2.0's threshold.

Written from its rules, one question and one window at a time, to compare the arrays with.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

SPACES = " \t\r\n\u202f"  # what separates words there


@dataclass(frozen=True)
class Window:
    tokens: list[str]
    context: range  # positions of the context's tokens
    first: int  # the context's token at the first of these
    has_max_context: dict[int, bool]


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return tokenizer.encode(text, add_special_tokens=False).tokens


def words_of(context: str) -> list[tuple[int, str]]:
    """The words between white space, and the character at which each begins."""
    words = list[tuple[int, str]]()
    for index, character in enumerate(context):
        if character in SPACES:
            continue
        if words and words[-1][0] + len(words[-1][1]) == index:
            words[-1] = (words[-1][0], words[-1][1] + character)
        else:
            words.append((index, character))
    return words


def windows(tokenizer: Tokenizer, question: str, context: str, length: int, stride: int, query: int) -> list[Window]:
    asked = pieces(tokenizer, question)[:query]
    tokens = [piece for _, word in words_of(context) for piece in pieces(tokenizer, word)]
    room = length - len(asked) - 3
    spans, start = list[tuple[int, int]](), 0
    while start < len(tokens):
        size = min(room, len(tokens) - start)
        spans.append((start, size))
        if start + size == len(tokens):
            break
        start += min(size, stride)
    result = []
    for number, (start, size) in enumerate(spans):
        begin = len(asked) + 2
        flags = {begin + i: _widest(spans, start + i) == number for i in range(size)}
        row = ["[CLS]", *asked, "[SEP]", *tokens[start : start + size], "[SEP]"]
        result.append(Window(row, range(begin, begin + size), start, flags))
    return result


def _widest(spans: Sequence[tuple[int, int]], token: int) -> int | None:
    best, widest = None, None
    for number, (start, size) in enumerate(spans):
        end = start + size - 1
        if start <= token <= end:
            score = min(token - start, end - token) + 0.01 * size
            if best is None or score > best:
                best, widest = score, number
    return widest


def answer_tokens(tokenizer: Tokenizer, context: str, start: int, end: int) -> tuple[int, int, int]:
    """The first and last token of the answer context[start:end], and how often its tokens occur in its words."""
    words = words_of(context)
    first_word = max(number for number, (begin, _) in enumerate(words) if begin <= start)
    last_word = max(number for number, (begin, _) in enumerate(words) if begin < end)
    counts = [len(pieces(tokenizer, word)) for _, word in words]
    first, last = sum(counts[:first_word]), sum(counts[: last_word + 1]) - 1
    tokens = [piece for _, word in words for piece in pieces(tokenizer, word)]
    answer = pieces(tokenizer, context[start:end])
    matches = [
        (low, high)
        for low in range(first, last + 1)
        for high in range(last, low - 1, -1)
        if tokens[low : high + 1] == answer
    ]
    return (*(matches or [(first, last)])[0], len(matches))


Ranked = list[tuple[str, float, float]]


def rank(
    rows: Sequence[tuple[Window, Sequence[float], Sequence[float]]],
    texts: Mapping[tuple[int, int], str],
    *,
    with_null: bool,
    n_best: int,
    max_length: int,
) -> tuple[Ranked, list[float], float | None]:
    """The windows of a question with their logits -> answers (text, start logit, end logit), probabilities, null odds.

    `texts`: first and last token of the context -> the text, in place of the alignment of words.
    """
    found, null = list[tuple[float, str, float, float]](), (math.inf, "", 0.0, 0.0)
    for window, starts, ends in rows:
        if starts[0] + ends[0] < null[0]:
            null = (starts[0] + ends[0], "", starts[0], ends[0])
        for start in _best(starts, n_best):
            for end in _best(ends, n_best):
                if start not in window.context or end not in window.context or not window.has_max_context[start]:
                    continue
                if end < start or end - start + 1 > max_length:
                    continue
                span = (window.first + start - window.context.start, window.first + end - window.context.start)
                found.append((starts[start] + ends[end], texts[span], starts[start], ends[end]))
    if with_null:
        found.append(null)
    ranked = Ranked()
    for _, text, start_logit, end_logit in sorted(found, key=lambda one: one[0], reverse=True):
        if len(ranked) == n_best:
            break
        if text not in [one[0] for one in ranked]:
            ranked.append((text, start_logit, end_logit))
    if with_null and "" not in [one[0] for one in ranked]:
        ranked.append(null[1:])
    ranked = ranked or [("", 0.0, 0.0)]
    top = max(start + end for _, start, end in ranked)
    weights = [math.exp(start + end - top) for _, start, end in ranked]
    best = next((one for one in ranked if one[0]), ("", 0.0, 0.0))
    return ranked, [weight / sum(weights) for weight in weights], null[0] - best[1] - best[2] if with_null else None


def _best(logits: Sequence[float], count: int) -> list[int]:
    return [i for i, _ in sorted(enumerate(logits), key=lambda one: one[1], reverse=True)][:count]


def best_threshold(
    texts: Mapping[str, str], scores: Mapping[str, float], odds: Mapping[str, float], has_answer: Mapping[str, bool]
) -> tuple[float, float]:
    """The best mean score and its threshold, by SQuAD v2.0's evaluation."""
    score = best = float(sum(not has for has in has_answer.values()))
    threshold = 0.0
    for key in sorted(odds, key=lambda key: odds[key]):
        score += scores[key] if has_answer[key] else -1 if texts[key] else 0
        if score > best:
            best, threshold = score, odds[key]
    return best / len(scores), threshold
