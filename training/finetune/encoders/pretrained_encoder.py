"""A checkpoint, or the folder of a Hugging Face model -> the encoder that tasks start from, with its tokenizer."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Protocol

from tokenizers import Tokenizer
from torch import Tensor, nn

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text import vocab_file
from cloze.pipeline.text.tokenizer import build_tokenizer, parse_tokenizer, tokenizer_config_json
from cloze.pipeline.text.vocab_file import VocabFile
from cloze.training.checkpoints import huggingface
from cloze.training.checkpoints.checkpoint import CheckpointRef, checkpoint_ref
from cloze.training.checkpoints.warm_start import checkpoint_vocab, folder_of, is_digest, weights_files
from cloze.training.finetune.encoders import cloze_encoder, transformers_encoder
from cloze.training.finetune.encoders.cloze_encoder import ClozeEncoder
from cloze.training.finetune.tasks.task import ModelTask, TransformersHead
from cloze.training.vectors.hidden_states import LayeredEncoder

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
_NO_POOLER = (
    "The checkpoint has no pooler (examples.objective mlm): where the task uses one, it began with random weights"
)


class PretrainedEncoder(Protocol):
    """An encoder that tasks start from. Workers receive it without its weights, which each reads.

    Its models have the inputs and outputs of those in heads.py.
    """

    @property
    def tokenizer_files(self) -> Mapping[str, bytes]:
        """Name -> content; `tokenizer` reads tokenizer.json."""
        ...

    @property
    def max_tokens(self) -> int | None:
        """The length of the longest input, None without a limit."""
        ...

    @property
    def num_layers(self) -> int: ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the weights, for the user."""
        ...

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, which treats special tokens in a text as ordinary text."""
        ...

    def check_head(self, head: TransformersHead | None) -> None:
        """Raises UserError when the encoder has no such head; of None, MissingHead when the pretrained model has no
        masked-LM head, with which the task scores."""
        ...

    def new_model(self, task: ModelTask, seed: int, *, pretrained: bool) -> nn.Module:
        """The task's model before the first step: random weights from the seed; those of the encoder are the pretrained
        ones if `pretrained`.

        Raises MissingHead when the task scores with the masked-LM head of the pretrained model and there is none.
        """
        ...

    def layered_encoder(self, seed: int, *, pretrained: bool) -> LayeredEncoder:
        """The encoder with the hidden states of every layer, for vectors: pretrained, or random from the seed."""
        ...

    def frozen_parameters(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """The parameters that freeze_encoder does not train: those of the encoder, except its pooler."""
        ...

    def model_files(self, head: TransformersHead, weights: Mapping[str, Tensor]) -> dict[str, bytes]:
        """The state of a fine-tuned model -> the files that transformers loads."""
        ...


def from_checkpoint(checkpoint: CheckpointRef, vocab: Location) -> ClozeEncoder:
    """The encoder of a checkpoint, and the folder of its vocabulary's artifact.

    Raises UserError when it was trained with another vocabulary.
    """
    saved, files = checkpoint.config(), vocab_file.read_files(vocab)
    encoder = ClozeEncoder(saved.model, saved.vocab_size, files, checkpoint.weights, () if saved.nsp else (_NO_POOLER,))
    if saved.vocab_size != (pieces := encoder.tokenizer().get_vocab_size()):
        raise UserError(
            f"the checkpoint has {saved.vocab_size} pieces, the vocabulary {pieces}; use the vocabulary that the "
            "checkpoint was trained with"
        )
    return encoder


def from_weights_file(file: SourceFile) -> PretrainedEncoder:
    """The encoder that `init` names, by its file of weights: of a checkpoint, or in a Hugging Face folder.

    Raises UserError when it cannot be used, or its vocabulary is missing.
    """
    return from_folder(folder_of(file))


def from_folder(folder: Location) -> PretrainedEncoder:
    """The encoder in the folder of a checkpoint or of a Hugging Face model. Raises as `from_weights_file`."""
    if (folder / "state.json").exists():
        return from_checkpoint(checkpoint_ref(folder), checkpoint_vocab(folder))
    if huggingface.other_model_type(folder):
        return transformers_encoder.from_folder(folder)
    found = huggingface.read(folder)
    if found.vocab is None:
        raise _no_vocabulary(folder)
    files = _tokenizer_files(found.vocab)
    no_pooler = f"{folder.name} has no pooler: where the task uses one, it began with random weights"
    notes = () if "bert.pooler.weight" in found.weights else (no_pooler,)
    read_weights = partial(_weights_of_folder, folder)
    return ClozeEncoder(found.model, found.vocab_size, files, read_weights, (*found.notes, *notes), str(folder))


def tokenizer_paths(init: str, root: Location) -> list[str]:
    """The `init` of a task -> the files that its tokenizer is read from, in one folder. Raises as `weights_files`."""
    if is_digest(init):
        checkpoint = weights_files(init, root)[0].rpartition("/")[0]
        vocab = checkpoint_vocab(Location(checkpoint))
        return [(vocab / name).uri for name in vocab_file.FILES]
    folder = Location(init)
    present = [file.uri for name in _TOKENIZER_FILES if (file := folder / name).is_file()]
    return [huggingface.find_config(folder).uri, *present]


def tokenizer_of(folder: Location) -> Tokenizer:
    """The tokenizer in the folder of `tokenizer_paths`, or of a vocab artifact, as `PretrainedEncoder` has it."""
    return parse_tokenizer(_tokenizer_files_of(folder)["tokenizer.json"])


def _tokenizer_files_of(folder: Location) -> Mapping[str, bytes]:
    if not huggingface.find_config(folder).is_file():  # not a model
        return vocab_file.read_files(folder)
    if huggingface.other_model_type(folder):
        return transformers_encoder.read_tokenizer(folder)
    vocab, _ = huggingface.read_vocabulary(folder)
    if vocab is None:
        raise _no_vocabulary(folder)
    return _tokenizer_files(vocab)


def _tokenizer_files(vocab: VocabFile) -> dict[str, bytes]:
    """The files of a vocab artifact with this vocabulary."""
    tokenizer = build_tokenizer(vocab.pieces, vocab.lowercase is not False, vocab.strip_accents)
    return {
        "vocab.txt": "".join(f"{piece}\n" for piece in vocab.pieces).encode(),
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": tokenizer_config_json().encode(),
    }


def _no_vocabulary(folder: Location) -> UserError:
    return UserError(f"{folder}: has no vocab.txt or tokenizer.json; add the one that belongs to the weights")


def _weights_of_folder(folder: Location) -> Mapping[str, Tensor]:
    return huggingface.read(folder).weights


def load_fine_tuned(folder: Location, task: ModelTask) -> nn.Module:
    """The task's model in the folder that it was saved in."""
    other = huggingface.other_model_type(folder)
    return transformers_encoder.load_fine_tuned(folder, task) if other else cloze_encoder.load_fine_tuned(folder, task)
