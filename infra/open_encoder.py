"""What a command is given as RUN -> its encoder: a run's, or that of a folder in Hugging Face's format."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cloze.infra.export import fine_tuned, finished, trained_vectors
from cloze.infra.open_run import open_run
from cloze.infra.planner import Run
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import source_files
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints import huggingface
from cloze.training.checkpoints.warm_start import weights_files
from cloze.training.finetune.encoders.pretrained_encoder import (
    PretrainedEncoder,
    from_checkpoint,
    from_folder,
    tokenizer_paths,
)
from cloze.training.finetune.model_files import FOLDER
from cloze.training.pretrain.stage import final_checkpoint
from cloze.training.vectors.representation import Representation


@dataclass(frozen=True)
class OpenedEncoder:
    """An encoder, and where it is from."""

    encoder: PretrainedEncoder
    location: Location  # of its artifact, or its folder
    inputs: dict[str, str]  # the digests of what the vectors depend on, by name; those of a folder are left out
    root: Location | None = None  # of the run
    notes: tuple[str, ...] = ()  # for the user
    run: Run | None = None
    trained: Representation = field(default_factory=Representation)  # the vectors that a contrastive task has trained
    trained_length: int | None = None  # to which it cut texts, in tokens

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the user should know of the run and of the weights. Vectors need no pooler."""
        return (*self.notes, *(note for note in self.encoder.notes if "has no pooler" not in note))

    def digests(self, cache: Location) -> dict[str, str]:
        """The digests of what the vectors depend on, by name. `cache` has those of users' files."""
        if self.inputs:
            return self.inputs
        paths = [*weights_files(self.location.uri, self.location), *tokenizer_paths(self.location.uri, self.location)]
        files = source_files([Location(path).absolute() for path in dict.fromkeys(paths)], cache)
        return {file.location.name: file.sha256 for file in files}


def open_encoder(
    run: str, overrides: Sequence[str] = (), root: str | None = None, task: str | None = None
) -> OpenedEncoder:
    """The encoder of a finished pretraining, or with `task` of a fine-tuned model.

    `run`, `overrides` and `root` are those of the command line. A folder with a config.json (or bert_config.json) is
    read as a Hugging Face model: a BERT, or any encoder with masked LM that AutoModel loads.

    Raises UserError: no such run, a stage is not finished, the folder has no encoder.
    """
    folder = Location(run)
    if huggingface.find_config(folder).is_file():
        if given := [*overrides, *(["--task"] if task else [])]:
            raise UserError(f"{given[0]}: {run} is the folder of a model, which is read as it is; leave it out")
        return OpenedEncoder(from_folder(folder.absolute()), folder.absolute(), {})
    if "/" in run and folder.local_path and folder.local_path.is_dir():
        raise UserError(f"{run}: has no config.json; give the folder of a model in Hugging Face's format, or a run")
    opened = open_run(run, overrides, root)
    if task:
        config, artifact = fine_tuned(opened, task)
        inputs, of_task = {"model": artifact.fingerprint}, trained_vectors(config)
        encoder = from_folder(artifact.location / FOLDER)
        return OpenedEncoder(encoder, artifact.location, inputs, opened.root, opened.notes, opened, *of_task)
    pretrain, vocab = finished(opened, "pretrain"), finished(opened, "vocab")
    checkpoint = final_checkpoint(pretrain)
    inputs = {"model": checkpoint.digest, "vocab": vocab.fingerprint}
    return OpenedEncoder(
        from_checkpoint(checkpoint, vocab.location), pretrain.location, inputs, opened.root, opened.notes, opened
    )
