"""Texts -> their vectors by the encoder of a run or a folder: printed as JSON, or as a column of Parquet files."""

import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cloze.infra.open_encoder import OpenedEncoder
from cloze.infra.predict_files import described, input_files, input_identities, write_parts
from cloze.pipeline.core.artifacts import fingerprint
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.prediction.file_prediction import VERSION, FilePrediction
from cloze.training.finetune.prediction.text_embedder import COLUMN, VectorPredictor, load_embedder
from cloze.training.finetune.tasks.task_config import Column
from cloze.training.vectors.pooling import Vectors
from cloze.training.vectors.representation import LAYER_NAMES, Layers, Representation

_LINES = 1024  # of standard input that are computed together
_LINES_SCHEMA = pa.schema([("text", pa.string())])


class EmbedSettings(NamedTuple):
    """What `cloze embed` makes of texts."""

    representation: Representation
    max_length: int | None = None  # tokens; by default the model's
    text: Column = "text"  # the column of a table
    text_b: Column | None = None  # that of a second text


def layers_of(text: str) -> Layers:
    """The value of --layers. Raises UserError when it is neither a number nor a name."""
    if text.isdecimal():
        return int(text)
    for name in LAYER_NAMES:
        if text == name:
            return name
    raise UserError(f"--layers {text}: give the number of a layer, 0 for the embeddings, or {', '.join(LAYER_NAMES)}")


def print_vectors(opened: OpenedEncoder, settings: EmbedSettings, lines: Iterable[str]) -> None:
    """Print {"vector": numbers} for each line, null for a blank one; on stderr, how many texts were cut.

    Raises UserError when the model has too few layers or positions.
    """
    embedder = load_embedder(opened.encoder, settings.representation, settings.max_length)
    iterator, truncated = iter(lines), 0
    while texts := [line.rstrip("\r\n") for line in islice(iterator, _LINES)]:
        found = list(embedder.embed({"text": text} for text in texts if text.strip()))
        truncated += sum(count for _, count in found)
        vectors = chain.from_iterable(vectors for vectors, _ in found)
        for text in texts:
            print(json.dumps({COLUMN: _shortest(next(vectors)) if text.strip() else None}), flush=True)
    if truncated:
        print(f"cloze: cut to {embedder.max_length} tokens: {truncated:,} of the texts", file=sys.stderr)


def _shortest(vector: Vectors) -> list[float]:
    """The numbers with as few digits as name the same fp32 numbers."""
    return [float(str(number)) for number in vector]


def embed_standard_input(opened: OpenedEncoder, settings: EmbedSettings, lines: Iterable[str], to: Location) -> None:
    """Write the lines as a column `text`, and their vectors, into the folder `to`: see `embed_files`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lines.parquet"
        pq.write_table(pa.table({"text": [line.rstrip("\r\n") for line in lines]}, _LINES_SCHEMA), file)
        embed_files(opened, settings, [str(file)], to, shown="standard input")


def embed_files(
    opened: OpenedEncoder, settings: EmbedSettings, patterns: Sequence[str], to: Location, shown: str | None = None
) -> None:
    """Write the rows of all files that match, with all of their columns and the column `vector`, into the folder `to`.

    `shown`: what the summary calls a file that is not the user's. An interrupted command continues from its finished
    parts. Raises UserError when a file lacks the column of the text, the folder contains anything else, or the model
    has too few layers or positions.
    """
    embedder = load_embedder(opened.encoder, settings.representation, settings.max_length)
    with tempfile.TemporaryDirectory() as folder:
        digests = Location(folder) if shown or not opened.root else opened.root / "sources"
        sources, model = input_files(patterns, to, digests), opened.digests(digests)
    facts = {
        "model": opened.location.uri,
        "model_digests": model,
        **settings.representation.model_dump(mode="json"),
        "max_length": embedder.max_length,
        "dimension": embedder.dimension,
    }
    columns = {"text": [settings.text]} | ({} if settings.text_b is None else {"text_b": [settings.text_b]})
    computed = {key: value for key, value in facts.items() if key != "model"}  # wherever the model is
    digest = fingerprint("embed", VERSION, {**computed, "columns": columns}, {**model, **input_identities(sources)})
    predictor = VectorPredictor(
        opened.encoder,
        settings.representation,
        embedder.max_length,
        columns,
        computed,
        {COLUMN: pa.list_(pa.float32(), embedder.dimension)},
    )
    prediction = FilePrediction.plan(predictor, [source.location for source in sources], to, digest)
    inputs = [{**one, "file": shown or one["file"]} for one in described(sources)]
    about = {"fingerprint": digest, **facts, "notes": list(opened.encoder.notes), "inputs": inputs}
    notes = {
        "truncated": f"cut to {embedder.max_length} tokens",
        "without_vector": "without a vector, as their text is empty",
    }
    del embedder  # the workers load it themselves
    write_parts(prediction, "embed", about, notes)
