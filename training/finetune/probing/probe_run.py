"""The job of a probe in a worker: the vectors of a variant's encoder -> a classifier for each choice of layers."""

from collections.abc import Mapping, Sequence
from typing import Any

from cloze.pipeline.core import json_lines
from cloze.training.finetune.encoders.pretrained_encoder import PretrainedEncoder
from cloze.training.finetune.probing.layer_choices import LayerChoice, Probing, best
from cloze.training.finetune.tasks.probe import Probe
from cloze.training.finetune.tasks.published_scores import CONLL_LAYERS
from cloze.training.finetune.tasks.special_tokens import SpecialTokens
from cloze.training.finetune.tasks.task import splits_of
from cloze.training.finetune.trainer import FinetuneTrainer
from cloze.training.model.optim import autocast
from cloze.training.vectors.pooling import Vectors
from cloze.training.vectors.representation import layer_numbers


def evaluate_probe(trainer: FinetuneTrainer, variant: str) -> None:
    """Fit a classifier on each choice of layers, predict dev, test and the extra files with the best one, and commit
    the variant: its choices of layers and its predictions. The group has one worker.
    """
    setup, probe = trainer.setup, trainer.setup.task
    assert isinstance(probe, Probe)
    vectors = _vectors(trainer, probe, variant)
    probing = Probing(probe, setup.splits, setup.examples("train"), trainer.device)

    def report(note: str) -> None:
        trainer.report_progress(0, f"{variant}, {note}")

    choices = [
        probing.best(layers, {split: found[number] for split, found in vectors.items()}, report)
        for number, layers in enumerate(probe.config.layers)
    ]
    chosen = best(choices)
    number = choices.index(chosen)
    files, predicted = dict[str, bytes](), dict[str, list[Any]]()
    for split in [split for split in vectors if split != "train"]:
        probabilities = probing.probabilities(chosen.classifier, vectors[split][number], split)
        predictions = probe.predictions(setup.examples(split), probabilities, setup.splits[split])
        name = variant if split == probe.scored_split else f"{variant}-{split}"
        files[f"predictions/{name}.jsonl"] = json_lines.encode(predictions.rows, escaped=False)
        files |= {f"predictions/{name}/{file}": content for file, content in predictions.files.items()}
        if split in setup.scored_splits:
            predicted[split] = [row["predicted"] for row in predictions.rows]
    scored = vectors[probe.scored_split]
    rows = [_facts(trainer, probing, choice, scored[i]) for i, choice in enumerate(choices)]
    rows[number]["is_chosen"] = True
    facts = {"precision": trainer.precision, "layers": rows, "predicted": predicted}
    setup.out.commit(variant, files, facts=facts)


def check_layers(probe: Probe, encoder: PretrainedEncoder) -> None:
    """Raises UserError when the encoder has too few layers."""
    for layers in probe.config.layers:
        layer_numbers(layers, encoder.num_layers)


def _vectors(trainer: FinetuneTrainer, probe: Probe, variant: str) -> Mapping[str, Sequence[Vectors]]:
    """Split -> for each choice of layers the vectors of its units."""
    setup = trainer.setup
    encoder = setup.encoder.layered_encoder(setup.config.seed, pretrained=variant == "pretrained").to(trainer.device)
    special_ids = SpecialTokens.of(setup.encoder.tokenizer()).ids
    found = dict[str, Sequence[Vectors]]()
    for split in splits_of(probe.examples):
        if not (examples := setup.examples(split)):
            continue

        def report(rows: int, split: str = split, total: int = len(examples)) -> None:
            trainer.report_progress(0, f"{variant}, vectors of {split}: {rows:,} of {total:,}")

        with autocast(trainer.device, trainer.precision):
            found[split] = probe.vectors(encoder, setup.splits[split], special_ids, report)
    return found


def _facts(trainer: FinetuneTrainer, probing: Probing, choice: LayerChoice, vectors: Vectors) -> dict[str, Any]:
    """A choice of layers as the manifest has it (LayersFact), with its score on the scored split."""
    probe, split = probing.probe, probing.probe.scored_split
    examples = trainer.setup.examples(split)
    probabilities = probing.probabilities(choice.classifier, vectors, split)
    predictions = probe.predictions(examples, probabilities, trainer.setup.splits[split])
    scores = probe.scores(examples, [row["predicted"] for row in predictions.rows])
    published = CONLL_LAYERS.get(choice.layers) if probe.config.dataset else None
    return {
        "layers": choice.layers,
        "dimension": choice.dimension,
        **({} if choice.inverse_penalty is None else {"C": choice.inverse_penalty}),
        "dev": choice.dev,
        **({"folds": list(choice.folds)} if choice.folds else {}),
        "score": scores[probe.metric],
        "interval": scores["interval"],
        **({} if choice.classifier.converged else {"converged": False}),
        **({} if published is None else {"published": published}),
    }
