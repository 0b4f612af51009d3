"""A checkpoint, or the folder of a Hugging Face BERT -> the encoder that tasks start from, with its tokenizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from tokenizers import Tokenizer
from torch import Tensor, nn

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text import vocab_file
from cloze.pipeline.text.tokenizer import build_tokenizer, tokenizer_config_json
from cloze.pipeline.text.vocab_file import VocabFile
from cloze.training.checkpoints import huggingface
from cloze.training.checkpoints.checkpoint import CheckpointRef, checkpoint_ref
from cloze.training.checkpoints.warm_start import checkpoint_vocab, is_digest, weights_files
from cloze.training.model.architectures import architecture_of
from cloze.training.model.bert import BertConfig, load_encoder

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
_NO_POOLER = (
    "The checkpoint has no pooler (examples.objective mlm): where the task uses one, it began with random weights"
)


@dataclass(frozen=True)
class PretrainedEncoder:
    """An encoder that tasks start from. Workers receive it without its weights, which each reads."""

    config: BertConfig
    vocab_size: int
    tokenizer_files: Mapping[str, bytes]  # those of a vocab artifact, by name
    read_weights: Callable[[], Mapping[str, Tensor]]  # by Cloze's names, those of heads included
    notes: tuple[str, ...] = ()  # for the user
    where: str = "the checkpoint"  # for error messages

    def module(self) -> nn.Module:
        """The encoder with arbitrary weights."""
        return architecture_of(self.config).encoder(self.config, self.vocab_size)

    def load_into(self, model: nn.Module) -> None:
        """Copy the pretrained weights to the model's encoder, `bert`, and to its masked-LM head, `mlm`, if it has one.

        Raises UserError when the pretrained model has no such head.
        """
        weights, head = self.read_weights(), getattr(model, "mlm", None)
        load_encoder(model, weights)
        if head is not None:
            head.load_state_dict(self._masked_lm_head(weights))

    def check_masked_lm_head(self) -> None:
        """Raises UserError when the pretrained model has no masked-LM head."""
        self._masked_lm_head(self.read_weights())

    def _masked_lm_head(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        head = {name.removeprefix("mlm."): weight for name, weight in weights.items() if name.startswith("mlm.")}
        if not head:
            raise UserError(
                f"{self.where}: has no masked-LM head, with which this task scores; give a model as it was pretrained"
            )
        return head

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, which treats special tokens in a text as ordinary text."""
        return _tokenizer(self.tokenizer_files)


def from_checkpoint(checkpoint: CheckpointRef, vocab: Location) -> PretrainedEncoder:
    """The encoder of a checkpoint, and the folder of its vocabulary's artifact.

    Raises UserError when it was trained with another vocabulary.
    """
    saved, files = checkpoint.config(), vocab_file.read_files(vocab)
    encoder = PretrainedEncoder(
        saved.model, saved.vocab_size, files, checkpoint.weights, () if saved.nsp else (_NO_POOLER,)
    )
    if saved.vocab_size != (pieces := encoder.tokenizer().get_vocab_size()):
        raise UserError(
            f"the checkpoint has {saved.vocab_size} pieces, the vocabulary {pieces}; use the vocabulary that the "
            "checkpoint was trained with"
        )
    return encoder


def from_weights_file(file: SourceFile) -> PretrainedEncoder:
    """The encoder that `init` names, by its file of weights: of a checkpoint, or in a Hugging Face folder.

    Raises UserError when it is not a BERT, or its vocabulary is missing.
    """
    folder = Location(file.uri.rpartition("/")[0] or ".")
    if (folder / "state.json").exists():
        return from_checkpoint(checkpoint_ref(folder), checkpoint_vocab(folder))
    found = huggingface.read(folder)
    if found.vocab is None:
        raise _no_vocabulary(folder)
    files = _tokenizer_files(found.vocab)
    no_pooler = f"{folder.name} has no pooler: where the task uses one, it began with random weights"
    notes = () if "bert.pooler.weight" in found.weights else (no_pooler,)
    read_weights = partial(_weights_of_folder, folder)
    return PretrainedEncoder(found.model, found.vocab_size, files, read_weights, (*found.notes, *notes), str(folder))


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
    if not huggingface.find_config(folder).is_file():  # not a model
        return _tokenizer(vocab_file.read_files(folder))
    vocab, _ = huggingface.read_vocabulary(folder)
    if vocab is None:
        raise _no_vocabulary(folder)
    return _tokenizer(_tokenizer_files(vocab))


def _tokenizer(files: Mapping[str, bytes]) -> Tokenizer:
    tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
    tokenizer.encode_special_tokens = True
    return tokenizer


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
