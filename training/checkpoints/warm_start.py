"""The weights of another model -> the initial weights of pretraining, if vocabulary and shape are the same.

The other model is a checkpoint in its artifact, or the folder of a Hugging Face BERT, such as `cloze export` writes.
"""

import glob
import json
import re
from typing import NamedTuple

from torch import Tensor

from cloze.pipeline.core.artifacts import read_manifest
from cloze.pipeline.core.config import NAME
from cloze.pipeline.core.errors import MissingFile, UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.storage import Location, find_files
from cloze.pipeline.text import vocab_file
from cloze.pipeline.text.vocab_file import VocabFile
from cloze.training.checkpoints import huggingface
from cloze.training.checkpoints.checkpoint import CheckpointRef, checkpoint_ref
from cloze.training.checkpoints.weight_files import SAFETENSORS, find_weight_files
from cloze.training.model.architectures import architecture_name
from cloze.training.model.bert import BertConfig

_DIGESTS = "digests"  # in the run's root: a file for each finished checkpoint, named by its digest and its artifact
_PROMOTED = re.compile(f"({NAME})@promoted")
_DIGEST_PREFIX = re.compile(r"[0-9a-f]{8,64}")
_HEADS = {"bert.pooler.": "pooler", "mlm.": "masked-LM head", "nsp.": "next-sentence head"}
_PAIR_HEAD = ("bert.pooler.", "nsp.")


class InitialWeights(NamedTuple):
    """The weights of another model by Cloze's names; `notes` are shown to the user."""

    weights: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def initial_weights(file: SourceFile, model: BertConfig, vocab: VocabFile | None, *, nsp: bool) -> InitialWeights:
    """Read the other model's weights; `file` is the first of `weights_files`, the other files are in the same folder.

    The result lacks the heads that the other model lacks; without `nsp` also its pooler and its head for pairs, since
    a model trained without pairs has neither.

    Raises UserError when the model cannot be read, has another shape than `model`, or, if `vocab` is given, another
    vocabulary, case or handling of accents.
    """
    folder = folder_of(file)
    if (folder / "state.json").exists():
        ref = checkpoint_ref(folder)
        vocab_to_use = "the vocab.txt that it was trained with"
        init_vocab = vocab_file.read_file(checkpoint_vocab(folder) / "tokenizer.json")
        _check_compatible(folder, ref.config().model, model, init_vocab, vocab, vocab_to_use)
        weights, notes = ref.weights(), ()
    else:
        other = huggingface.read(folder)
        _check_compatible(folder, other.model, model, other.vocab, vocab, f"{folder}/vocab.txt")
        weights, notes = other.weights, other.notes
    unused = () if nsp else _PAIR_HEAD
    present = {prefix for prefix in _HEADS if any(name.startswith(prefix) for name in weights)}
    random = (
        f"{folder.name} has no {head}: it began with random weights"
        for prefix, head in _HEADS.items()
        if prefix not in present and prefix not in unused
    )
    left_out = (
        f"the {_HEADS[prefix]} of {folder.name} was left out: examples.objective mlm does not train it"
        for prefix in unused
        if prefix in present
    )
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(unused)}
    return InitialWeights(weights, (*random, *left_out, *notes))


def checkpoint_vocab(checkpoint: Location) -> Location:
    """The vocabulary of a checkpoint: ROOT/pretrain/FINGERPRINT/checkpoints/NAME -> ROOT/vocab/FINGERPRINT.

    Raises UserError when it is not there.
    """
    artifact = Location(checkpoint.uri.rsplit("/", 2)[0])
    root = Location(artifact.uri.rsplit("/", 2)[0])
    manifest = read_manifest(artifact)
    vocab = root / "vocab" / (manifest.inputs["vocab"] if manifest else "?")
    if not (vocab / "tokenizer.json").is_file():
        raise UserError(
            f"{checkpoint}: the vocabulary it was trained with is not under {root}; "
            "export the model and set init to that folder"
        )
    return vocab


def _check_compatible(
    folder: Location,
    init_model: BertConfig,
    model: BertConfig,
    init_vocab: VocabFile | None,
    vocab: VocabFile | None,
    vocab_to_use: str,
) -> None:
    """Compare the model in `folder` with the run's. Raises UserError at the first difference."""
    if init_vocab is None:
        raise UserError(
            f"pretrain.init: {folder} has no vocab.txt or tokenizer.json; copy the model's vocabulary into the folder"
        )
    if vocab and init_vocab.pieces != vocab.pieces:
        raise UserError(
            f"pretrain.init: {folder} has another vocabulary ({len(init_vocab.pieces):,} pieces, this run's "
            f"{len(vocab.pieces):,}); set vocab.file to {vocab_to_use}"
        )
    if vocab and vocab.lowercase is not None:  # always known for an artifact's tokenizer.json
        vocab_file.check_case_and_accents(init_vocab, f"pretrain.init: {folder}", vocab.lowercase, vocab.strip_accents)
    if type(init_model) is not type(model):
        raise UserError(
            f"pretrain.init: {folder} has the architecture {architecture_name(init_model)}; set "
            f"pretrain.model.architecture to it, which is {architecture_name(model)}"
        )
    for name in model.SHAPE:
        if getattr(init_model, name) != getattr(model, name):
            raise UserError(
                f"pretrain.init: {folder} has {name} {getattr(init_model, name)}; set pretrain.model.{name} to it, "
                f"which is {getattr(model, name)}"
            )


def is_digest(init: str) -> bool:
    """Whether an `init` is the digest of a checkpoint under the run's root; otherwise it is a folder."""
    return _DIGEST_PREFIX.fullmatch(init) is not None


def promoted_name(init: str) -> str | None:
    """NAME@promoted, the model that is promoted as NAME when a run is planned -> NAME; None for another `init`."""
    match = _PROMOTED.fullmatch(init)
    return match and match[1]


def is_name(init: str) -> bool:
    """Whether an `init` is not a path, but a digest or NAME@promoted."""
    return is_digest(init) or promoted_name(init) is not None


def weights_files(init: str, root: Location) -> list[str]:
    """The `init` of pretraining or of a task -> the files of weights.

    They are in that folder, or those of the checkpoint under `root` with that digest. Of a model in several files the
    first is their index. config.json and tokenizer.json follow if transformers runs the model. The first digits of a
    digest are enough. Raises MissingFile when no checkpoint matches or a file is missing, UserError when several match
    or the index is invalid.
    """
    if not is_digest(init):
        folder = Location(init)
        files = find_weight_files(folder) or [folder / SAFETENSORS]
        if huggingface.other_model_type(folder):  # these two decide what transformers computes
            files += [file for name in ("config.json", "tokenizer.json") if (file := folder / name).is_file()]
        return [file.uri for file in files]
    try:
        records = find_files(f"{glob.escape(root.uri)}/{_DIGESTS}/{init}*.json")
    except MissingFile:
        records = []
    matching: dict[str, str] = {}  # by digest: two artifacts may contain the same checkpoint
    for record in records:
        if (file := root / json.loads(record.read_bytes())["weights"]).is_file():
            matching[record.name.partition(".")[0]] = file.uri
    if len(matching) > 1:
        raise UserError(f"init: {len(matching)} digests begin with {init}; give more of its digits")
    if not matching:
        raise MissingFile(
            f"init: no finished checkpoint under {root} has a digest that begins with {init}; give the folder "
            "of a model, or a digest from the manifest.json of a pretrain artifact"
        )
    return [next(iter(matching.values()))]


def folder_of(file: SourceFile) -> Location:
    """The folder of the model that a file of `weights_files` belongs to."""
    return Location(file.uri.rpartition("/")[0] or ".")


def register_digest(root: Location, checkpoint: CheckpointRef) -> None:
    """Record where a checkpoint is, so that `weights_files` finds it by its digest."""
    path = checkpoint.location.uri.removeprefix(f"{root}/")
    file = root / _DIGESTS / f"{checkpoint.digest}.{path.split('/')[-3]}.json"
    file.write_text(json.dumps({"weights": f"{path}/{SAFETENSORS}"}))
