"""Fine-tuning through Ray Train: its output, and that neither a kill nor the number of workers changes it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional
from transformers import pipeline

from cloze.pipeline.core import json_lines
from cloze.pipeline.core.artifacts import Artifact, Manifest
from cloze.pipeline.core.config import Config
from cloze.pipeline.core.config import load as load_config
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile, source_file
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, build_tokenizer, tokenizer_config_json
from cloze.training.checkpoints import checkpoint
from cloze.training.checkpoints.checkpoint import SavedConfig
from cloze.training.finetune import stage
from cloze.training.finetune.encoders.pretrained_encoder import from_checkpoint
from cloze.training.finetune.prediction.fine_tuned_model import FineTunedModel
from cloze.training.finetune.stage import check
from cloze.training.finetune.tasks import registry
from cloze.training.finetune.tasks.classification import ClassificationConfig
from cloze.training.finetune.tasks.registry import task_of
from cloze.training.finetune.tasks.task_config import TaskConfig
from cloze.training.finetune.trainer import FinetuneTrainer, downsampled, epoch_batches
from cloze.training.finetune.trials import FinetuneSetup
from cloze.training.model.bert import BertConfig, BertForPreTraining
from cloze.training.model.hardware import cpu_threads
from tests.training.counting_task import Counting, CountingConfig
from tests.training.finetune.tasks.trained import MortalOutput, encoded, train_in_process

VARIANTS = ("pretrained", "random")
COLOURS, SHAPES, OTHERS = ("red", "blue", "green"), ("round", "square", "flat"), ("the", "a", "is", "of", "old", "new")
PIECES = [*SPECIAL_TOKENS, *COLOURS, *SHAPES, *OTHERS]
MODEL = BertConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=16
)
Inputs = dict[str, Any]
report_nothing: Callable[[float, str], None] = lambda done, note: None  # noqa: E731


def config(**changed: Any) -> ClassificationConfig:
    settings = {
        "max_seq_length": 16,
        "learning_rate": 0.02,
        "batch_size": 9,
        "epochs": 6,
        "precision": "fp32",
        "threads": 1,
        "seed": 3,
        "compare_random": True,
    }
    return ClassificationConfig(**{"name": "words", "file": "words.jsonl", **settings, **changed})


def labelled() -> list[dict[str, str]]:
    """Texts with one word that decides the label: colours are more frequent, 64 for train, 20 for dev, 20 for test."""
    draw = np.random.default_rng(4)
    rows = []
    for number in range(104):
        label, deciding = ("colour", COLOURS) if draw.random() < 0.6 else ("shape", SHAPES)
        words = [*draw.choice(OTHERS, int(draw.integers(2, 9))), draw.choice(deciding)]
        split = "train" if number < 64 else "dev" if number < 84 else "test"
        rows.append({"text": " ".join(draw.permutation(words)), "label": label, "split": split})
    return rows


def write_data(root: Path) -> SourceFile:
    (root / "words.jsonl").write_bytes(json_lines.encode(labelled()))
    return source_file(Location(str(root / "words.jsonl")), Location(str(root / "cache")))


def write_vocab(root: Path) -> Artifact:
    (root / "vocab").mkdir(parents=True)
    (root / "vocab/vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES))
    build_tokenizer(PIECES).save(str(root / "vocab/tokenizer.json"))
    (root / "vocab/tokenizer_config.json").write_text(tokenizer_config_json())
    return Artifact(Location(str(root / "vocab")), "vocab", "v")


def write_checkpoint(
    root: Path, model: BertConfig = MODEL, vocab_size: int = len(PIECES), nsp: bool = True
) -> checkpoint.CheckpointRef:
    weights = BertForPreTraining(model, vocab_size, seed=11, nsp=nsp).state_dict()
    saved = SavedConfig(model=model, vocab_size=vocab_size, nsp=nsp)
    return checkpoint.save_checkpoint(
        Location(str(root / "pretrain")), 5, {"model": weights}, checkpoint.CheckpointPayload(saved, {})
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("inputs")
    return {"checkpoint": write_checkpoint(root), "vocab": write_vocab(root), "data": write_data(root)}


def setup(settings: TaskConfig, inputs: Inputs, out: Output) -> FinetuneSetup:
    task = task_of(settings).read(settings, {"data": inputs["data"].location})
    encoder = from_checkpoint(inputs["checkpoint"], inputs["vocab"].location)
    return FinetuneSetup(settings, task, task.encode(encoder.tokenizer()).splits, encoder, out)


def output(folder: Path) -> Output:
    return Output(Location(str(folder)), "finetune-words", 1, "0")


def run(settings: TaskConfig, inputs: Inputs, out: Output) -> Manifest:
    """Encode the examples, and fine-tune."""
    folder = Path(out.location.path).with_suffix(".encoded")
    return stage.run(settings, inputs | {"encoded": encoded(settings, inputs, folder)}, out)


def trained_here(settings: TaskConfig, inputs: Inputs, folder: Path) -> Output:
    """Both variants, trained in this process on one thread."""
    out = output(folder)
    with cpu_threads(settings.threads):
        train_in_process(setup(settings, inputs, out))
    return out


@dataclass
class Finished:
    manifest: Manifest
    folder: Path
    commits: list[str]
    shown: list[tuple[Any, ...]]

    def lines(self, name: str) -> list[dict[str, Any]]:
        return json_lines.read(Location(str(self.folder / name)))


@pytest.fixture(scope="module")
def finished(ray_session: None, inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A whole run through Ray Train, whose worker is killed when the second variant's only trial is done."""

    class Mortal(MortalOutput):
        doomed = "random-"

    folder = tmp_path_factory.mktemp("finished") / "artifact"
    shown: list[tuple[Any, ...]] = []
    out = Mortal(Location(str(folder)), "finetune-words", 1, "0", lambda *report: shown.append(report))
    manifest = run(config(max_concurrent_trials=1), inputs, out)
    commits = [line.split()[0] for line in folder.with_suffix(".log").read_text().splitlines()]
    return Finished(manifest, folder, commits, shown)


def test_a_killed_worker_continues_after_the_finished_variant(finished):
    trial = config().trials[0].name
    pretrained, random = ([f"{variant}-{trial}", variant] for variant in VARIANTS)
    assert finished.commits == [*pretrained, random[0], *random, "scores"]


def test_progress_counts_the_steps_of_both_variants(finished):
    assert {(total, unit) for _, total, unit, _ in finished.shown} == {(2 * 6 * 8, "steps")}
    assert all(0 <= done <= 96 for done, *_ in finished.shown)
    done, _, _, note = finished.shown[-1]
    assert done > 48  # it continues after the finished variant
    assert note.startswith("random, epoch")


def test_ray_leaves_no_files(finished):
    assert {path.name for path in finished.folder.iterdir()} == {
        "manifest.json",
        "model",
        "parts",
        "predictions",
        "scores.json",
    }


def test_neither_a_kill_nor_ray_changes_a_bit(finished, inputs, single_process_group, tmp_path):
    out = trained_here(config(), inputs, tmp_path)
    for part in VARIANTS:
        committed = out.finished_part(part)
        assert committed
        for name, record in committed.files.items():
            assert finished.manifest.files[name] == record, name


def test_the_fine_tuned_model_scores_above_the_majority(finished):
    scores = json.loads((finished.folder / "scores.json").read_text())
    assert scores == finished.manifest.facts["scores"]
    assert list(scores) == ["pretrained", "random", "majority", "bag_of_words"]
    low, high = scores["pretrained"]["interval"]
    assert scores["majority"]["accuracy"] < low < scores["pretrained"]["accuracy"] <= high


def test_scores_are_those_of_the_predictions_in_the_order_of_the_file(finished):
    rows = labelled()
    for variant in VARIANTS:
        found = finished.lines(f"predictions/{variant}.jsonl")
        assert [line["row"] for line in found] == list(range(85, 105))
        assert [line["label"] for line in found] == [row["label"] for row in rows[84:]]
        right = sum(line["label"] == line["predicted"] for line in found)
        assert finished.manifest.facts["scores"][variant]["accuracy"] == right / 20
        for line in found:
            assert line["predicted"] == max(line["probabilities"], key=line["probabilities"].__getitem__)


def test_transformers_loads_the_model_alone_and_predicts_the_same(finished):
    folder = finished.folder / "model"
    classify = pipeline("text-classification", str(folder), top_k=None)
    assert type(classify.model).__name__ == "BertForSequenceClassification"
    for line in finished.lines("predictions/pretrained.jsonl"):
        [found] = classify([labelled()[line["row"] - 1]["text"]])
        probabilities = {answer["label"]: answer["score"] for answer in found}
        assert probabilities == pytest.approx(line["probabilities"], abs=1e-5)


def test_the_saved_model_predicts_new_texts_as_it_predicted_test(finished):
    model = FineTunedModel.from_folder(Location(str(finished.folder / "model")), config())
    expected = finished.lines("predictions/pretrained.jsonl")
    found = list(model.predict({"text": labelled()[line["row"] - 1]["text"]} for line in expected))
    assert [line["predicted"] for line in found] == [line["predicted"] for line in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == {"predicted", "probabilities"}
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_the_manifest_has_inputs_counts_curves_and_examples(finished, inputs):
    manifest, facts = finished.manifest, finished.manifest.facts
    assert manifest.inputs == {
        "checkpoint": inputs["checkpoint"].digest,
        "vocab": "v",
        "encoded": "e",
        "data": inputs["data"].identity,
    }
    assert manifest.counts == {"train": 64, "dev": 20, "test": 20}
    assert sum(facts["labels"]["train"].values()) == 64
    for variant in VARIANTS:
        curves = facts["variants"][variant]
        assert curves["trial"] == {"learning_rate": 0.02, "batch_size": 9, "epochs": 6}
        assert [step for step, _ in curves["loss"]] == list(range(1, 6 * 8 + 1))
        assert len(curves["dev_accuracy"]) == len(curves["dev_loss"]) == 6
        assert curves["dev_accuracy"][curves["best_epoch"] - 1] == max(curves["dev_accuracy"])
    texts = {row["text"]: row["label"] for row in labelled() if row["split"] == "test"}
    assert facts["notes"] == []
    assert facts["examples"]
    assert all(texts[example["text"]] == example["label"] for example in facts["examples"])


def test_two_workers_have_the_losses_of_one(ray_session, inputs, single_process_group, tmp_path):
    # the last of each epoch's 8 batches has one row: the second worker has none
    steady = MODEL.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    given = inputs | {"checkpoint": write_checkpoint(tmp_path, steady)}
    two = run(config(workers=2), given, output(tmp_path / "two"))
    one = trained_here(config(), given, tmp_path / "one")
    for variant in VARIANTS:
        part = one.finished_part(variant)
        assert part
        curves = two.facts["variants"][variant]
        np.testing.assert_allclose(curves["loss"], part.facts["loss"], atol=1e-4)
        np.testing.assert_allclose(curves["dev_loss"], part.facts["dev_loss"], atol=1e-4)
    losses = dict(two.facts["variants"]["random"]["loss"])
    assert losses[48] < losses[1] / 2


def test_a_trial_with_a_seed_is_the_task_with_that_seed(inputs, single_process_group, tmp_path):
    losses = []
    for number, settings in enumerate((config(epochs=1, seed=5), config(epochs=1, seeds=(4, 5)))):
        trainer = FinetuneTrainer(setup(settings, inputs, output(tmp_path / str(number))), report_nothing)
        losses.append([trainer.run_trial(variant, settings.trials[-1]).losses for variant in VARIANTS])
    torch.use_deterministic_algorithms(False)
    assert losses[0] == losses[1]


def test_a_seed_that_is_there_twice_is_refused():
    with pytest.raises(ValueError, match="4 is there more than once; give different values"):
        config(seeds=(4, 5, 4))


def test_a_frozen_encoder_stays_and_its_head_is_trained(inputs, single_process_group, tmp_path):
    trainer = FinetuneTrainer(setup(config(freeze_encoder=True, epochs=1), inputs, output(tmp_path)), report_nothing)
    before = trainer.new_model("pretrained").state_dict()
    after = trainer.run_trial("pretrained", trainer.setup.config.trials[0]).weights
    torch.use_deterministic_algorithms(False)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = ("weight", "bias")
    assert changed == {f"{module}.{part}" for module in ("bert.pooler", "classifier") for part in parts}


@pytest.mark.parametrize("weights", [None, "balanced"])
def test_micro_batches_accumulate_the_gradients_of_their_batch(inputs, single_process_group, tmp_path, weights):
    steady = MODEL.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    given = inputs | {"checkpoint": write_checkpoint(tmp_path, steady)}
    found = []
    for size in (None, 2):
        settings = config(micro_batch_size=size, class_weights=weights, epochs=2)
        trainer = FinetuneTrainer(setup(settings, given, output(tmp_path / str(size))), report_nothing)
        found.append(trainer.run_trial("pretrained", settings.trials[0]))
    torch.use_deterministic_algorithms(False)
    np.testing.assert_allclose(found[0].losses, found[1].losses, rtol=1e-4)


def test_balanced_weights_are_those_of_scikit_learn(inputs):
    task = task_of(config()).read(config(class_weights="balanced"), {"data": inputs["data"].location})
    labels = [example.label for example in task.examples if example.split == "train"]
    expected = compute_class_weight("balanced", classes=np.array(task.labels), y=labels)
    np.testing.assert_allclose(task._weights, expected)
    data = task.encode(build_tokenizer(PIECES)).splits["train"]
    logits, rows = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)), np.arange(9)
    mean = functional.cross_entropy(logits, torch.from_numpy(data.targets[rows]), torch.tensor(task._weights))
    torch.testing.assert_close(task.loss(logits, data, rows) / task.loss_terms(data, rows), mean)


def test_one_variant_starts_from_the_checkpoint_and_the_other_does_not(inputs, single_process_group, tmp_path):
    trainer = FinetuneTrainer(setup(config(learning_rate=1e-12, epochs=1), inputs, output(tmp_path)), report_nothing)
    weights = {variant: trainer.run_trial(variant, trainer.setup.config.trials[0]).weights for variant in VARIANTS}
    torch.use_deterministic_algorithms(False)
    name = "bert.embeddings.word_embeddings.weight"
    checkpoint_weight = inputs["checkpoint"].weights()[name]
    torch.testing.assert_close(weights["pretrained"][name], checkpoint_weight, rtol=0, atol=1e-9)
    assert (weights["random"][name] - checkpoint_weight).abs().max() > 0.01
    torch.testing.assert_close(
        weights["pretrained"]["classifier.weight"], weights["random"]["classifier.weight"], rtol=0, atol=1e-9
    )


def test_without_pairs_the_pooler_is_random_and_the_manifest_notes_it(inputs, single_process_group, tmp_path):
    given = inputs | {"checkpoint": write_checkpoint(tmp_path, nsp=False)}
    settings = config(learning_rate=1e-12, epochs=1)
    trainer = FinetuneTrainer(setup(settings, given, output(tmp_path)), report_nothing)
    pretrained, random = (trainer.new_model(variant).state_dict() for variant in VARIANTS)
    words, pooler = "bert.embeddings.word_embeddings.weight", "bert.pooler.weight"
    assert torch.equal(pretrained[words], given["checkpoint"].weights()[words])
    assert torch.equal(pretrained[pooler], random[pooler])
    out = trained_here(settings, given, tmp_path / "out")
    [note] = run(settings, given, out).facts["notes"]
    assert note.startswith("The checkpoint has no pooler")


def test_a_loss_of_nan_is_an_error_that_names_the_learning_rate(inputs, single_process_group, tmp_path):
    trainer = FinetuneTrainer(setup(config(learning_rate=1e30), inputs, output(tmp_path)), report_nothing)
    with pytest.raises(UserError, match=r"finetune-words: the loss is (nan|inf); lower learning_rate"):
        trainer.run_trial("random", trainer.setup.config.trials[0])
    torch.use_deterministic_algorithms(False)


def test_a_checkpoint_of_another_vocabulary_is_refused_before_training(inputs, tmp_path):
    given = inputs | {"checkpoint": write_checkpoint(tmp_path, vocab_size=99)}
    with pytest.raises(UserError, match=r"the checkpoint has 99 pieces, the vocabulary 17"):
        run(config(), given, output(tmp_path / "out"))


def test_texts_longer_than_the_models_positions_are_refused_before_training(inputs, tmp_path):
    with pytest.raises(UserError, match=r"max_seq_length 17 is more than the model's 16 positions"):
        run(config(max_seq_length=17), inputs, output(tmp_path / "out"))


def test_an_epoch_has_every_row_once_and_little_padding():
    lengths = np.random.default_rng(1).integers(10, 128, 1000)
    first = epoch_batches(lengths, 32, seed=1, epoch=0)
    assert sorted(np.concatenate(first).tolist()) == list(range(1000))
    assert max(map(len, first)) == 32
    padded = sum(lengths[rows].max() * len(rows) for rows in first) / lengths.sum()
    assert padded < 1.1
    widths = [lengths[rows].max() for rows in first]
    assert abs(np.corrcoef(widths, np.arange(len(widths)))[0, 1]) < 0.5  # not from short to long


def test_the_order_depends_on_seed_and_epoch_alone():
    lengths = np.arange(10, 110)
    assert all(map(np.array_equal, epoch_batches(lengths, 8, 1, 0), epoch_batches(lengths, 8, 1, 0)))
    for other in (epoch_batches(lengths, 8, 1, 1), epoch_batches(lengths, 8, 2, 0)):
        assert not all(map(np.array_equal, epoch_batches(lengths, 8, 1, 0), other))


def test_a_long_curve_is_downsampled_to_means():
    points = downsampled([float(step) for step in range(1000)])
    assert len(points) == 200
    assert points[0] == (5, 2.0)
    assert points[-1] == (1000, 997.0)
    assert downsampled([3.0, 2.0]) == [(1, 3.0), (2, 2.0)]
    assert sum(mean for _, mean in downsampled([1.0] * 401)) == pytest.approx(len(downsampled([1.0] * 401)))


def test_a_kind_of_task_is_a_file_and_an_entry_in_the_registry(inputs, single_process_group, tmp_path, monkeypatch):
    """A counting task, which only the test knows: read from YAML, checked, trained, scored."""
    monkeypatch.setitem(registry.TASKS, CountingConfig, Counting)

    class Tasks(Config):
        finetune: tuple[registry.of_any_kind(registry.TASKS), ...]

    file = tmp_path / "run.yaml"
    file.write_text(
        "finetune:\n"
        "  - {name: words, kind: counting, file: x, learning_rate: 2e-2, batch_size: 9, epochs: 2, "
        "max_seq_length: 16, threads: 1, compare_random: true}\n"
        "  - {name: others, file: x, learning_rate: 1e-3}\n"
    )
    settings, other = load_config(Tasks, file).finetune
    assert isinstance(settings, CountingConfig) and isinstance(other, ClassificationConfig)
    check(settings, inputs)
    with pytest.raises(UserError, match="every text is 0; give some that are not"):
        check(settings.model_copy(update={"column": "text"}), inputs)

    out = trained_here(settings, inputs, tmp_path / "out")
    manifest = run(settings, inputs, out)
    facts = manifest.facts
    assert list(facts["scores"]) == ["pretrained", "random", "mean"]
    assert facts["scores"]["mean"] == {"error": 0.25} and facts["shapes"] > 0
    curves = facts["variants"]["random"]
    assert len(curves["loss"]) == 2 * 8 and len(curves["dev_error"]) == 2
    assert curves["merit"] == [-min(curves["dev_error"])]
    assert {"predictions/pretrained/column.txt", "predictions/random.jsonl"} <= manifest.files.keys()
    assert manifest.config["kind"] == "counting" and manifest.counts["test"] == 20


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{name: a, kind: spans, file: x, learning_rate: 1e-3}", r'kind is "spans": give one of classification'),
        ("{name: a, file: x, learning_rate: 1e-3, column: label}", r"unknown key; did you mean columns"),
        ("{name: a, file: x, learning_rate: 1e-3, columns: {txt: b}}", r"columns\.txt: unknown key; did you mean text"),
        ("{name: a, file: x}", r"learning_rate: is missing; add it"),
    ],
)
def test_an_invalid_task_is_an_error_of_one_line(tmp_path, entry, message):
    class Tasks(Config):
        finetune: tuple[registry.FinetuneConfig, ...]

    (tmp_path / "run.yaml").write_text(f"finetune:\n  - {entry}\n")
    with pytest.raises(UserError, match=rf"run\.yaml:2: finetune\.0.*{message}") as caught:
        load_config(Tasks, tmp_path / "run.yaml")
    assert "\n" not in str(caught.value)
