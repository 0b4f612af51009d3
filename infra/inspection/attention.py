"""Attention probabilities -> the compressed weights and the labels that attention.js draws."""

import base64
import json
import zlib
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cloze.infra.inspection.model import InspectedModel, InspectedText

_LINES = 24  # the longest text whose heads attention.js draws as lines; others are maps


@dataclass(frozen=True)
class AttentionSection:
    """The attention of every head. `weights`: for each layer, quantized, deflated, in base64."""

    text: InspectedText
    layers: int
    heads: int
    weights: list[str]

    @property
    def second_start(self) -> int | None:
        return self.text.second_start

    @property
    def special_names(self) -> str:
        """[CLS] and [SEP], as the model calls them."""
        tokens = zip(self.text.tokens, self.text.sources, strict=True)
        return " and ".join(dict.fromkeys(token for token, source in tokens if source is None))

    @property
    def thumbnail_text(self) -> str:
        if len(self.text.tokens) <= _LINES:
            return "the tokens that attend on the left, those that they attend to on the right, from top to bottom."
        return "a row for each token that attends, a column for each that it attends to; the darker, the more."

    @property
    def json(self) -> Markup:
        """What attention.js reads beside the weights, safe inside a script element."""
        tokens, second = self.text.tokens, self.text.second_start
        data = {
            "layers": self.layers,
            "heads": self.heads,
            "tokens": tokens,
            "secondStart": len(tokens) if second is None else second,
            "special": [int(source is None) for source in self.text.sources],
        }
        return Markup(json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"))


def attention_section(model: InspectedModel, text: InspectedText) -> AttentionSection:
    """The attention of the model in this text."""
    attention = model.attention(text)  # [layers, heads, tokens, tokens]
    weights = [base64.b64encode(zlib.compress(quantize(layer).tobytes())).decode() for layer in attention]
    return AttentionSection(text, attention.shape[0], attention.shape[1], weights)


def quantize(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Probabilities -> their roots in 8 bits. (byte / 255) ** 2 is the probability, to within 0.004.

    Roots, since most weights of a long text are small: 0.00001 does not become 0.
    """
    return np.rint(np.sqrt(probabilities) * 255).astype(np.uint8)
