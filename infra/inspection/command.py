"""`cloze inspect`: a run or the folder of a model, and texts -> the page, in a file."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from cloze.infra.display import relative_path, size
from cloze.infra.export import finished
from cloze.infra.inspection.model import InspectedModel
from cloze.infra.inspection.nearest import Sentences
from cloze.infra.inspection.page import inspect
from cloze.infra.planner import Run
from cloze.infra.report.read_run import heldout_documents
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.sentences import document_sentences
from cloze.training.checkpoints import huggingface
from cloze.training.finetune.encoders.pretrained_encoder import from_checkpoint, from_folder
from cloze.training.pretrain.stage import final_checkpoint

_HELDOUT_SENTENCES, _SENTENCES_PER_DOCUMENT = 1000, 20
_SENTENCE_CHARS = range(25, 300)
_MAX_LINES = 5000  # of a file of sentences


def model_folder(run: str) -> Location | None:
    """RUN, if it is the folder of a model in Hugging Face's format."""
    folder = Location(run)
    return folder if huggingface.find_config(folder).is_file() else None


def inspect_folder(
    folder: Location, texts: Sequence[str], to: Location, sentences: str | None, word: str | None
) -> str:
    """Write the page about the model in a folder. Returns the line to print. Raises UserError."""
    to = _checked_target(to)
    compared = _lines_of(sentences) if sentences else Sentences([], "")
    model = InspectedModel(from_folder(folder))
    return _write(to, inspect(model, folder.absolute().name, "", texts, compared, word))


def inspect_run(run: Run, texts: Sequence[str], to: Location, sentences: str | None, word: str | None) -> str:
    """Write the page about a run's pretrained model. Returns the line to print. Raises UserError."""
    to = _checked_target(to)
    checkpoint, vocab = final_checkpoint(finished(run, "pretrain")), finished(run, "vocab").location
    compared = _lines_of(sentences) if sentences else _heldout_sentences(run)
    identity = f"step {checkpoint.step:,} · checkpoint {checkpoint.digest[:16]}"
    model = InspectedModel(from_checkpoint(checkpoint, vocab))
    return _write(to, inspect(model, run.config.name, identity, texts, compared, word))


def _checked_target(to: Location) -> Location:
    if to.suffix not in (".html", ".htm"):
        raise UserError(f"--to {to}: is no name of an HTML file; give one that ends in .html")
    return to.absolute()


def _write(to: Location, page: str) -> str:
    data = page.encode()
    to.write_bytes(data)
    return f"{relative_path(to)}: {size(len(data))}"


def _lines_of(file: str) -> Sentences:
    """The lines of a text file, each once. Raises UserError when there is none."""
    location = Location(file)
    if not location.is_file():
        raise UserError(f"--sentences {file}: no such file; give a text file with a sentence in each line")
    try:
        text = location.read_text()
    except UnicodeDecodeError as error:
        raise UserError(f"--sentences {file}: is not UTF-8 ({error.reason}); give a text file in UTF-8") from error
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not lines:
        raise UserError(f"--sentences {file}: has no text; give a file with a sentence in each line")
    name = Path(location.name)
    if len(lines) > _MAX_LINES:
        return Sentences(lines[:_MAX_LINES], f"the first of the {len(lines):,} in {name}")
    return Sentences(lines, f"the lines of {name}")


def _heldout_sentences(run: Run) -> Sentences:
    """Sentences of the documents that the run was not trained on."""
    found = dict.fromkeys(islice(_each_sentence(run), _HELDOUT_SENTENCES))
    return Sentences(list(found), "from held-out documents of the run")


def _each_sentence(run: Run) -> Iterator[str]:
    for document in heldout_documents(finished(run, "dedup")):
        of_document = (one for one in document_sentences(document.text) if len(one) in _SENTENCE_CHARS)
        yield from islice(of_document, _SENTENCES_PER_DOCUMENT)
