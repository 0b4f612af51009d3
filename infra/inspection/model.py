"""A pretrained encoder + a text -> its tokens, hidden states, attention, and predictions at its [MASK]s."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from torch import Tensor, nn

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.text.tokenizer import MASK
from cloze.training.finetune.encoders.pretrained_encoder import PretrainedEncoder
from cloze.training.finetune.prediction.text_embedder import load_embedder
from cloze.training.finetune.tasks.minimal_pairs import MinimalPairs, MinimalPairsConfig
from cloze.training.finetune.tasks.special_tokens import mask_id
from cloze.training.vectors.attention import attention_probabilities
from cloze.training.vectors.representation import Representation


@dataclass(frozen=True)
class InspectedText:
    """One text, or a pair, as the model reads it: with special tokens. The lists have an entry for each token."""

    texts: tuple[str, ...]
    ids: list[int]
    segments: list[int]
    tokens: list[str]  # to be displayed
    spans: list[tuple[int, int]]  # of its characters in the text
    sources: list[int | None]  # the number of its text; None for special tokens around the texts

    @property
    def second_start(self) -> int | None:
        """Where the tokens of the second text begin."""
        return self.sources.index(1) if 1 in self.sources else None


class PiecePrediction(NamedTuple):
    """A piece predicted for a mask, and its probability according to the model."""

    piece: str
    probability: float


class InspectedModel:
    """An encoder with its weights, on the CPU, and the vectors by which texts are compared.

    `max_length`: to which texts are cut for these vectors, in tokens; by default the model's.
    """

    def __init__(
        self, encoder: PretrainedEncoder, representation: Representation | None = None, max_length: int | None = None
    ) -> None:
        self.encoder = encoder
        self.tokenizer = encoder.tokenizer()
        self._embedder = load_embedder(encoder, representation or Representation(), max_length)
        self.layers = self._embedder.encoder
        self._with_masks = self._embedder.tokenizer
        self._with_masks.encode_special_tokens = False  # "[MASK]" in a text is the mask
        self._predictor: nn.Module | None = None

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.layers.parameters())

    def read(self, texts: Sequence[str]) -> InspectedText:
        """The tokens of one text, or of a pair. Raises UserError when a text is empty or they are too long."""
        if any(not text.strip() for text in texts):
            raise UserError("the text is empty; give the words to inspect")
        first, second = [self._marked(text) for text in (*texts, "")][:2]
        texts = (first, second) if second else (first,)
        encoding = self._with_masks.encode(first, second or None)
        positions, length = self.encoder.max_tokens, len(encoding.ids)
        if positions is not None and length > positions:
            what = "the texts have" if len(texts) > 1 else "the text has"
            raise UserError(
                f"{what} {length} pieces with the special ones, the model {positions} positions; shorten it"
            )
        sources, spans = list(encoding.sequence_ids), list(encoding.offsets)
        tokens = list(encoding.tokens)
        if not isinstance(self.tokenizer.model, WordPiece):  # others write spaces and bytes as letters
            tokens = [
                token if source is None else texts[source][start:end].replace(" ", "·") or "·"
                for token, source, (start, end) in zip(tokens, sources, spans, strict=True)
            ]
        return InspectedText(texts, list(encoding.ids), list(encoding.type_ids), tokens, spans, sources)

    @torch.inference_mode()
    def attention(self, text: InspectedText) -> NDArray[np.float32]:
        """[layers, heads, tokens, tokens]: how much each token attends to each token; every row adds up to 1."""
        return torch.stack([layer[0] for layer in attention_probabilities(self.layers, *_inputs(text))]).numpy()

    @torch.inference_mode()
    def hidden_states(self, text: InspectedText) -> NDArray[np.float32]:
        """[layers + 1, tokens, hidden]: the output of the embeddings, then that of each layer."""
        return torch.stack([states[0] for states in self.layers(*_inputs(text))]).float().numpy()

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[texts, hidden]: the vectors by which texts are compared. A text longer than the model is truncated."""
        found = self._embedder.embed({"text": self._marked(text)} for text in texts)
        return np.concatenate([vectors for vectors, _ in found])

    @property
    def vector_in_words(self) -> str:
        """How the vector of a text is computed."""
        representation = self._embedder.representation
        if representation.pooling == "cls":
            return "the output of the last layer for [CLS]"
        special = "included" if representation.special_tokens else "left out"
        return f"the mean of the last layer over all tokens, [CLS] and [SEP] {special}"

    def masks(self, text: InspectedText) -> list[int]:
        """The positions of [MASK] among the tokens."""
        mask = self.tokenizer.token_to_id(_mask_token(self.tokenizer))
        return [position for position, index in enumerate(text.ids) if index == mask]

    @torch.inference_mode()
    def fill_masks(self, text: InspectedText, k: int) -> list[list[PiecePrediction]]:
        """The `k` most likely pieces at each mask of one text, the most likely first.

        Raises MissingHead when the model has no masked-LM head.
        """
        if self._predictor is None:
            task = MinimalPairs(MinimalPairsConfig(name="masks", file="none"), [])  # its model is that with the head
            self._predictor = self.encoder.new_model(task, 0, pretrained=True).eval()
        ids = torch.tensor([text.ids])
        best = self._predictor(ids, torch.ones_like(ids), torch.tensor(self.masks(text))).exp().topk(k)
        return [
            [
                PiecePrediction(str(self.tokenizer.id_to_token(piece)), probability)
                for piece, probability in zip(pieces, probabilities, strict=True)
            ]
            for pieces, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _marked(self, text: str) -> str:
        return text.replace(MASK, _mask_token(self.tokenizer))


def _inputs(text: InspectedText) -> tuple[Tensor, Tensor, Tensor]:
    """input_ids, token_type_ids and attention_mask, each [1, tokens]."""
    ids = torch.tensor([text.ids])
    return ids, torch.tensor([text.segments]), torch.ones_like(ids)


def _mask_token(tokenizer: Tokenizer) -> str:
    """[MASK] as the tokenizer writes it; [MASK] itself where it has no mask."""
    try:
        return str(tokenizer.id_to_token(mask_id(tokenizer)))
    except UserError:
        return MASK
