"""another model's weights -> those that pretraining begins with, once vocabulary and shape are found to be the same.

The other model is a checkpoint of ours, in its artifact, or the folder of a Hugging Face BERT, as cloze export writes.
"""

import glob
import json
import re
from typing import NamedTuple

from torch import Tensor

from cloze.pipeline.core.artifacts import read_manifest
from cloze.pipeline.core.errors import MissingFile, UserError
from cloze.pipeline.core.source_files import SourceFile
from cloze.pipeline.core.storage import Location, find_files
from cloze.pipeline.text import vocab_file
from cloze.pipeline.text.vocab_file import VocabFile
from cloze.training.checkpoints import huggingface
from cloze.training.checkpoints.checkpoint import CheckpointRef, reference
from cloze.training.model.architectures import architecture_name
from cloze.training.model.bert import BertConfig

_WEIGHTS = "model.safetensors"
_DIGESTS = "digests"  # under a root: a file for each finished checkpoint, named by its digest and its artifact's
_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_HEADS = {"bert.pooler.": "pooler", "mlm.": "masked-LM head", "nsp.": "next-sentence head"}
_OF_PAIRS = ("bert.pooler.", "nsp.")


class Start(NamedTuple):
    """What another model brings, by our names; `notes` are what its user should know."""

    weights: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def starting_weights(file: SourceFile, model: BertConfig, vocab: VocabFile | None, *, nsp: bool) -> Start:
    """`file` is the other model's file of weights; what belongs to them lies beside it.

    A head that it lacks is not among the weights; without `nsp` its pooler and its head for pairs are left out.

    Raises UserError when it cannot be read, has another vocabulary, case or accents than `vocab`, if that is to be
    compared, or another shape than `model`.
    """
    folder = Location(file.uri.rpartition("/")[0] or ".")
    if (folder / "state.json").exists():
        ref = reference(folder)
        saved = ref.config()
        _check(folder, saved.model, model, _trained_on(folder), vocab, "the vocab.txt that it was trained with")
        weights, notes = ref.weights(), ()
    else:
        found = huggingface.read(folder)
        _check(folder, found.model, model, found.vocab, vocab, f"{folder}/vocab.txt")
        weights, notes = found.weights, found.notes
    unwanted = () if nsp else _OF_PAIRS
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(unwanted)}
    lacking = (
        what
        for prefix, what in _HEADS.items()
        if prefix not in unwanted and not any(name.startswith(prefix) for name in weights)
    )
    return Start(weights, (*(f"{folder.name} has no {what}: it began with random weights" for what in lacking), *notes))


def _trained_on(checkpoint: Location) -> VocabFile:
    """The vocabulary of a checkpoint of ours: ROOT/pretrain/FINGERPRINT/checkpoints/NAME -> ROOT/vocab/FINGERPRINT."""
    artifact = Location(checkpoint.uri.rsplit("/", 2)[0])
    root = Location(artifact.uri.rsplit("/", 2)[0])
    manifest = read_manifest(artifact)
    vocab = root / "vocab" / (manifest.inputs["vocab"] if manifest else "?") / "tokenizer.json"
    if not vocab.is_file():
        raise UserError(
            f"{checkpoint}: its vocabulary is not beside it; export it and name that folder as pretrain.init"
        )
    return vocab_file.read_file(vocab)


def _check(
    folder: Location,
    theirs: BertConfig,
    ours: BertConfig,
    their_vocab: VocabFile | None,
    our_vocab: VocabFile | None,
    file: str,
) -> None:
    if their_vocab is None:
        raise UserError(f"pretrain.init: {folder} has no vocab.txt or tokenizer.json; put the one of the model there")
    if our_vocab and their_vocab.pieces != our_vocab.pieces:
        raise UserError(
            f"pretrain.init: {folder} has another vocabulary ({len(their_vocab.pieces):,} pieces, this run's "
            f"{len(our_vocab.pieces):,}); set vocab.file to {file}"
        )
    if our_vocab and our_vocab.lowercase is not None:  # an artifact's tokenizer.json always says it
        vocab_file.check_case_and_accents(
            their_vocab, f"pretrain.init: {folder}", our_vocab.lowercase, our_vocab.strip_accents
        )
    if type(theirs) is not type(ours):
        raise UserError(
            f"pretrain.init: {folder} has the architecture {architecture_name(theirs)}; set "
            f"pretrain.model.architecture to it, which is {architecture_name(ours)}"
        )
    for name in ours.SHAPE:
        if getattr(theirs, name) != getattr(ours, name):
            raise UserError(
                f"pretrain.init: {folder} has {name} {getattr(theirs, name)}; set pretrain.model.{name} to it, "
                f"which is {getattr(ours, name)}"
            )


def is_digest(init: str) -> bool:
    """Whether `pretrain.init` names a checkpoint under the run's root; else it names a folder."""
    return _DIGEST.fullmatch(init) is not None


def weights_file(init: str, root: Location) -> str:
    """`pretrain.init` -> the file of weights that it names: in a folder, or of the checkpoint under `root` whose digest
    begins like that. Raises MissingFile when there is none, UserError when there are several."""
    if not is_digest(init):
        folder = Location(init)
        legacy = folder / "pytorch_model.bin"
        return (legacy if legacy.is_file() and not (folder / _WEIGHTS).is_file() else folder / _WEIGHTS).uri
    try:
        named = find_files(f"{glob.escape(root.uri)}/{_DIGESTS}/{init}*.json")
    except MissingFile:
        named = []
    found: dict[str, str] = {}  # by digest: another artifact may have the same one
    for record in named:
        if (file := root / json.loads(record.read_bytes())["weights"]).is_file():
            found[record.name.partition(".")[0]] = file.uri
    if len(found) > 1:
        raise UserError(f"pretrain.init: {init} begins {len(found)} digests; give more of it")
    if not found:
        raise MissingFile(
            f"pretrain.init: no finished checkpoint under {root} has a digest that begins with {init}; give the folder "
            "of a model, or a digest from the manifest.json of a pretrain artifact"
        )
    return next(iter(found.values()))


def register(root: Location, checkpoint: CheckpointRef) -> None:
    """Make a checkpoint known by its digest to `weights_file`."""
    path = checkpoint.location.uri.removeprefix(f"{root}/")
    file = root / _DIGESTS / f"{checkpoint.digest}.{path.split('/')[-3]}.json"
    file.write_text(json.dumps({"weights": f"{path}/{_WEIGHTS}"}))
