"""A run, or the folder of a Hugging Face BERT -> its pretrained model, ready to use from Python."""

from pathlib import Path

from cloze.infra.export import finished
from cloze.infra.open_run import open_run
from cloze.infra.planner import Run
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import build_tokenizer
from cloze.training.checkpoints import huggingface
from cloze.training.checkpoints.pretrained_model import PretrainedModel
from cloze.training.model.architectures import pretraining_model
from cloze.training.pretrain.stage import final_checkpoint


def load(run: str | Path, root: str | None = None) -> PretrainedModel:
    """The model of a finished pretraining.

    `run` and `root` are those of the command line: a YAML file, a run's name under `root` ("runs" by default), or
    NAME@promoted, the model that is promoted there as NAME. A folder that has a config.json (or bert_config.json) is
    read as a Hugging Face BERT, such as `cloze export` writes.

    Raises UserError: no such run, pretraining is not finished, the folder is not a BERT.
    """
    folder = Location(str(run))
    if huggingface.find_config(folder).is_file():
        return _from_folder(folder)
    return model_of(open_run(str(run), root=root, root_option="root="))


def model_of(run: Run) -> PretrainedModel:
    """The model that a run's pretraining ended with. Raises UserError when a stage is not finished."""
    checkpoint = final_checkpoint(finished(run, "pretrain"))
    return PretrainedModel.from_checkpoint(checkpoint, finished(run, "vocab").location)


def _from_folder(folder: Location) -> PretrainedModel:
    found = huggingface.read(folder)
    if not found.vocab:
        raise UserError(f"{folder}: has no vocab.txt or tokenizer.json; add the one that belongs to the weights")
    vocab = found.vocab
    if "mlm.bias" not in found.weights:
        raise UserError(f"{folder}: has no masked-language-model head; give a model as it was pretrained")
    has_pooler = "bert.pooler.weight" in found.weights
    model = pretraining_model(found.model, found.vocab_size, nsp=has_pooler)
    if has_pooler and "nsp.weight" not in found.weights:  # the pooler is kept
        model.register_module("nsp", None)
    model.load_state_dict({name: found.weights[name] for name in model.state_dict()})
    return PretrainedModel(model, build_tokenizer(vocab.pieces, vocab.lowercase is not False, vocab.strip_accents))
