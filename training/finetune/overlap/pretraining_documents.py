"""A pretrained model -> the documents that it was pretrained on, by the manifests of the stages before pretraining."""

from typing import NamedTuple, Self

from cloze.pipeline.core.artifacts import Artifact, Manifest, missing_files, read_manifest
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.warm_start import is_digest, weights_files


class PretrainingDocuments(NamedTuple):
    """The outputs of the stage dedup that a model was pretrained on, and the names of the models, this one or those
    that its pretraining started from, whose pretraining texts are not known."""

    artifacts: tuple[Artifact, ...] = ()
    unknown: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: Location) -> Self:
        """The documents of a checkpoint, which are known while they are under its root, or of a Hugging Face folder,
        which are not known."""
        if not (model / "state.json").exists():
            return cls(unknown=(model.name,))
        artifact = _parent(model)
        root, manifest = _parent(artifact), read_manifest(artifact)
        if manifest is None or not (documents := _documents(root, manifest)):
            return cls(unknown=(model.name,))
        first = cls()
        if init := manifest.config.get("init"):
            first = cls._of_init(init, root)
        return cls((*documents, *first.artifacts), first.unknown)

    @classmethod
    def _of_init(cls, init: str, root: Location) -> Self:
        """The documents of the model that pretraining started from."""
        if not is_digest(init):
            return cls.of(Location(init))
        try:
            return cls.of(Location(weights_files(init, root)[0].rpartition("/")[0]))
        except UserError:  # no longer there
            return cls(unknown=(init,))


def _parent(location: Location) -> Location:
    """ROOT/STAGE/FINGERPRINT -> ROOT, and ROOT/STAGE/FINGERPRINT/checkpoints/NAME -> ROOT/STAGE/FINGERPRINT."""
    return Location(location.uri.rsplit("/", 2)[0])


def _documents(root: Location, pretrain: Manifest) -> list[Artifact]:
    """The outputs of dedup that a pretraining's examples are from; none if they are no longer under `root`."""
    documents = dict[str, Artifact]()
    for name, digest in pretrain.inputs.items():
        if name.startswith("examples-"):
            examples = read_manifest(root / name / digest)
            tokens = examples and read_manifest(root / "tokens" / examples.inputs["tokens"])
            if not tokens:
                return []
            digest = tokens.inputs["documents"]
            artifact = Artifact(root / "dedup" / digest, "dedup", digest)
            manifest = read_manifest(artifact.location)
            if manifest is None or missing_files(artifact.location, manifest):
                return []
            documents[digest] = artifact
    return list(documents.values())
