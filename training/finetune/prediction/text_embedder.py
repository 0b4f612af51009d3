"""An encoder and a representation -> vectors of texts, and a column with them for the rows of tables."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from cloze.pipeline.core.errors import UserError
from cloze.training.finetune.encoders.pretrained_encoder import PretrainedEncoder
from cloze.training.finetune.prediction.file_prediction import ComputeColumns
from cloze.training.finetune.tasks.special_tokens import SpecialTokens
from cloze.training.finetune.tasks.task import InputColumns
from cloze.training.finetune.tasks.text_inputs import encode_texts
from cloze.training.vectors.hidden_states import LayeredEncoder
from cloze.training.vectors.pooling import Vectors, text_vectors
from cloze.training.vectors.representation import Representation, dimension

COLUMN = "vector"

_DEFAULT_LENGTH = 512  # tokens, of an encoder without a limit
_READ_AHEAD = 1024  # inputs that are sorted by length, so that batches have little padding


class TextEmbedder:
    """An encoder that is loaded, and its tokenizer."""

    def __init__(
        self, encoder: LayeredEncoder, tokenizer: Tokenizer, representation: Representation, max_length: int
    ) -> None:
        self.encoder, self.tokenizer, self.representation = encoder, tokenizer, representation
        self.max_length = max_length
        self.special_ids = SpecialTokens.of(tokenizer).ids
        self.dimension = dimension(representation.layers, encoder)

    def embed(self, inputs: Iterable[Mapping[str, str]]) -> Iterator[tuple[Vectors, int]]:
        """Yields the vectors [inputs, dimension] of some of the inputs, in order, and how many of these were cut to the
        maximal length.

        An input is a `text`, or a pair with `text_b`. Its vector depends on the other inputs by rounding only.
        """
        iterator = iter(inputs)
        while rows := list(islice(iterator, _READ_AHEAD)):
            second = [row["text_b"] for row in rows] if "text_b" in rows[0] else None
            encoded, truncated = encode_texts(self.tokenizer, [row["text"] for row in rows], second, self.max_length)
            [vectors] = text_vectors(self.encoder, encoded, [self.representation], self.special_ids)
            yield vectors, truncated


@dataclass(frozen=True, eq=False)
class VectorPredictor:
    """The Predictor (see file_prediction.py) that adds the column `vector`, a list of fp32 numbers of fixed length.

    A row without a text has a list of nulls: pyarrow cannot read Parquet files in which a list of fixed length is null.
    """

    encoder: PretrainedEncoder
    representation: Representation
    max_length: int  # tokens
    input_columns: InputColumns
    facts: Mapping[str, Any]
    types: Mapping[str, pa.DataType]
    name: str = "embed"
    summary_file: str = "_vectors.json"
    gpus: int | Literal["auto"] = "auto"
    workers: int | None = None
    threads: int = 1

    def load(self, *, gpu: bool) -> ComputeColumns:
        embedder = load_embedder(self.encoder, self.representation, self.max_length)
        if gpu:
            embedder.encoder.to("cuda")

        def compute(inputs: Sequence[Mapping[str, Any] | None]) -> tuple[dict[str, pa.Array], dict[str, int]]:
            found = list(embedder.embed(one for one in inputs if one is not None))
            blank = np.array([one is None for one in inputs], bool)
            values = np.zeros((len(inputs), embedder.dimension), np.float32)
            values[~blank] = np.concatenate([values[:0], *(vectors for vectors, _ in found)])
            numbers = pa.array(values.reshape(-1), mask=np.repeat(blank, embedder.dimension))
            column = pa.FixedSizeListArray.from_arrays(numbers, embedder.dimension)
            counts = {"without_vector": int(blank.sum()), "truncated": sum(truncated for _, truncated in found)}
            return {COLUMN: column}, counts

        return compute


def load_embedder(encoder: PretrainedEncoder, representation: Representation, max_length: int | None) -> TextEmbedder:
    """With the pretrained weights. `max_length` in tokens, by default the model's.

    Raises UserError when it has too few positions or layers, or its tokenizer adds no special tokens.
    """
    most, tokenizer = encoder.max_tokens, encoder.tokenizer()
    if max_length is not None and most is not None and max_length > most:
        raise UserError(f"--max-length {max_length}: the model has {most} positions; give at most {most}")
    least = SpecialTokens.of(tokenizer).count(2) + 1
    if max_length is not None and max_length < least:
        raise UserError(
            f"--max-length {max_length}: has no room for a token besides [CLS] and [SEP]; give at least {least}"
        )
    length = max_length or most or _DEFAULT_LENGTH
    return TextEmbedder(encoder.layered_encoder(0, pretrained=True), tokenizer, representation, length)
