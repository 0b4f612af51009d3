"""An opened encoder, texts and the sentences to compare them with -> the page, in a file."""

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from cloze.infra.display import relative_path, size
from cloze.infra.inspection.model import InspectedModel
from cloze.infra.inspection.nearest import Sentences
from cloze.infra.inspection.page import inspect
from cloze.infra.open_encoder import OpenedEncoder
from cloze.infra.planner import Run
from cloze.infra.report.read_run import heldout_documents
from cloze.pipeline.core.artifacts import Artifact, missing_files
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.sentences import document_sentences

_HELDOUT_SENTENCES, _SENTENCES_PER_DOCUMENT = 1000, 20
_SENTENCE_CHARS = range(25, 300)
_MAX_LINES = 5000  # of a file of sentences


def write_page(opened: OpenedEncoder, texts: Sequence[str], to: Location, file: str | None, word: str | None) -> str:
    """Write the page about an encoder and texts. Returns the line to print: where it is, and its size.

    `file`: has the sentences to compare with, by default held-out ones of the run. Raises UserError.
    """
    to, run = _checked_target(to), opened.run
    sentences = Sentences([], "")
    if file:
        sentences = _lines_of(file)
    elif run and (documents := _documents(run)):
        sentences = heldout_sentences(documents)
    if sentences.texts:
        print(f"cloze: computes the vectors of {len(sentences.texts):,} sentences", file=sys.stderr)
    name = run.config.name if run else opened.location.name
    identity = f"model {opened.inputs['model'][:16]}" if run else ""
    model = InspectedModel(opened.encoder, opened.trained, opened.trained_length)
    page = inspect(model, name, identity, texts, sentences, word).encode()
    to.write_bytes(page)
    return f"{relative_path(to)}: {size(len(page))}"


def _checked_target(to: Location) -> Location:
    if to.suffix not in (".html", ".htm"):
        raise UserError(f"--to {to}: is no name of an HTML file; give one that ends in .html")
    return to.absolute()


def _documents(run: Run) -> Artifact | None:
    """A run's documents, if they are finished and were not deleted since, to free space."""
    documents = run.artifact("dedup") if "dedup" in run.stages else None
    return documents if documents and not missing_files(documents.location, documents.manifest) else None


def _lines_of(file: str) -> Sentences:
    """The lines of a text file, each once. Raises UserError when there is none."""
    location = Location(file)
    if not location.is_file():
        raise UserError(f"--sentences {file}: no such file; give a text file with a sentence in each line")
    try:
        text = location.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"--sentences {file}: is not UTF-8 ({error.reason}); give a text file in UTF-8") from error
    lines = list(dict.fromkeys(line.strip() for line in text.split("\n") if line.strip()))
    if not lines:
        raise UserError(f"--sentences {file}: has no text; give a file with a sentence in each line")
    name = Path(location.name)
    if len(lines) > _MAX_LINES:
        return Sentences(lines[:_MAX_LINES], f"the first of the {len(lines):,} in {name}")
    return Sentences(lines, f"the lines of {name}")


def heldout_sentences(documents: Artifact) -> Sentences:
    """Sentences of a run's documents that are not used for training."""
    found = dict.fromkeys(islice(_each_sentence(documents), _HELDOUT_SENTENCES))
    return Sentences(list(found), "from held-out documents of the run")


def _each_sentence(documents: Artifact) -> Iterator[str]:
    for document in heldout_documents(documents):
        of_document = (one for one in document_sentences(document.text) if len(one) in _SENTENCE_CHARS)
        yield from islice(of_document, _SENTENCES_PER_DOCUMENT)
