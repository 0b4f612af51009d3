"""Fine-tuning a real pretrained BERT next to transformers: equal tokens, losses and gradients."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cloze.pipeline.core.file_digests import source_file
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.warm_start import weights_files
from cloze.training.finetune.encoders.pretrained_encoder import PretrainedEncoder, from_weights_file
from cloze.training.finetune.tasks.classification import ClassificationConfig
from cloze.training.finetune.tasks.registry import task_of
from cloze.training.finetune.trainer import FinetuneTrainer, epoch_batches
from cloze.training.finetune.trials import FinetuneSetup
from cloze.training.model.transformers_names import BERT
from cloze.training.vectors.text_inputs import TextInputs
from tests.paths import SHARED

GLUE = SHARED / "data/finetune/glue"
STEPS, BATCH, LEARNING_RATE = 100, 32, 5e-5
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not GLUE.is_dir(), reason="requires ../shared/data")]


def read_encoder(folder: Path, root: Path) -> PretrainedEncoder:
    """Returns the encoder of `init: FOLDER`, as a run reads it."""
    [weights] = weights_files(str(folder), Location(str(root)))
    return from_weights_file(source_file(Location(weights), Location(str(root / "sources"))))


def task_setup(glue: str, files: dict[str, Path], encoder: PretrainedEncoder, root: Path) -> FinetuneSetup:
    config = ClassificationConfig.model_validate(
        {
            "name": glue,
            "glue": glue,
            "files": {split: str(file) for split, file in files.items()},
            "learning_rate": LEARNING_RATE,
            "batch_size": BATCH,
            "epochs": 1,
            "precision": "fp32",
        }
    )
    task = task_of(config).read(config, {split: Location(str(file)) for split, file in files.items()})
    out = Output(Location(str(root / "artifact")), f"finetune-{glue}", 1, "0")
    return FinetuneSetup(config, task, task.encode(encoder.tokenizer()).splits, encoder, out)


@pytest.mark.parametrize(("glue", "count"), [("SST-2", 2000), ("MRPC", 3667)])
def test_the_tokens_are_those_of_transformers_tokenizer(bert: Path, tmp_path: Path, glue: str, count: int) -> None:
    files = {split: GLUE / glue / f"{split}.tsv" for split in ("train", "dev")}
    setup = task_setup(glue, files, read_encoder(bert, tmp_path), tmp_path)
    examples = setup.examples("train")[:count]
    assert len(examples) == count
    data: Any = setup.splits["train"]
    expected = tokenized(bert, examples)
    for row, (ids, segments) in enumerate(zip(expected["input_ids"], expected["token_type_ids"], strict=True)):
        assert tokens(data.texts, row) == (ids, segments), examples[row]


def tokenized(folder: Path, examples: Sequence[Any]) -> Any:
    second = [example.text_b for example in examples]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first = [example.text for example in examples]
    return tokenizer(first, None if second[0] is None else second, truncation=True, max_length=128)


def tokens(texts: TextInputs, row: int) -> tuple[list[int], list[int]]:
    ids = texts.ids.values[slice(*texts.ids.offsets[row : row + 2])].tolist()
    return ids, [int(position >= texts.segment_b[row]) for position in range(len(ids))]


@dataclass
class Trained:
    """One side after some steps on SST-2. The names of weights are those of transformers."""

    losses: list[float]  # of each step
    gradients: dict[str, Tensor]  # of the last step, clipped


def sst2_setup(bert: Path, steps: int, root: Path) -> FinetuneSetup:
    """Returns a task with `steps` batches and a model without dropout."""
    folder = root / "model"
    folder.mkdir()
    for file in bert.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((bert / "config.json").read_text())
    (folder / "config.json").unlink()
    without_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config | without_dropout))
    header, *rows = (GLUE / "SST-2/train.tsv").read_text().splitlines(keepends=True)
    files = {split: root / f"{split}.tsv" for split in ("train", "dev")}
    files["train"].write_text("".join([header, *rows[: steps * BATCH]]))
    files["dev"].write_text("".join([header, *rows[-10:]]))
    return task_setup("SST-2", files, read_encoder(folder, root), root)


def train_cloze(setup: FinetuneSetup) -> tuple[Trained, dict[str, Tensor]]:
    """Returns the result of Cloze's trainer, and the weights before its first step by transformers' names."""
    trainer = FinetuneTrainer(setup, lambda done, note: None)
    model = trainer.new_model("pretrained")
    initial = BERT.to_transformers({name: weight.clone() for name, weight in model.state_dict().items()})
    with patch.object(trainer, "new_model", return_value=model):
        losses = trainer.run_trial("pretrained", setup.config.trials[0]).losses
    torch.use_deterministic_algorithms(False)
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return Trained(losses, BERT.to_transformers(gradients)), initial


def train_transformers(setup: FinetuneSetup, folder: Path, initial: dict[str, Tensor]) -> Trained:
    """Trains transformers' model, from its own reading of the folder, with the head in `initial`."""
    data, seed, steps = setup.splits["train"], setup.config.seed, setup.steps(setup.config.trials[0])
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32).train()
    for name in ("classifier.weight", "classifier.bias"):
        model.get_parameter(name).data.copy_(initial[name])
    groups = [
        {"params": [weight for weight in model.parameters() if weight.ndim > 1], "weight_decay": 0.01},
        {"params": [weight for weight in model.parameters() if weight.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, LEARNING_RATE, eps=1e-6)
    warmup = round(0.1 * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / max(1, warmup), (steps - step) / (steps - warmup))
    )
    examples = setup.examples("train")
    tokenizer, encodings = AutoTokenizer.from_pretrained(folder), tokenized(folder, examples)
    losses = []
    for rows in epoch_batches(data.lengths, BATCH, seed, 0):
        inputs = tokenizer.pad([{key: encodings[key][row] for key in encodings} for row in rows], return_tensors="pt")
        optimizer.zero_grad()
        loss = model(**inputs, labels=torch.tensor([int(examples[row].label) for row in rows])).loss
        loss.backward()
        losses.append(loss.item())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return Trained(losses, gradients)


def both_sides(bert: Path, steps: int, root: Path) -> tuple[Trained, Trained]:
    setup = sst2_setup(bert, steps, root)
    cloze, initial = train_cloze(setup)
    return cloze, train_transformers(setup, root / "model", initial)


def test_the_gradients_of_the_first_step_are_those_of_transformers(bert, single_process_group, tmp_path):
    cloze, transformers = both_sides(bert, 1, tmp_path)
    assert cloze.gradients.keys() == transformers.gradients.keys()
    assert len(cloze.gradients) == 5 + 6 * 16 + 4
    for name, gradient in transformers.gradients.items():
        assert gradient.norm() > 0 or name.endswith("key.bias"), name
        torch.testing.assert_close(cloze.gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.campaign
def test_the_losses_of_a_hundred_steps_are_those_of_transformers(bert, single_process_group, tmp_path):
    cloze, transformers = both_sides(bert, STEPS, tmp_path)
    assert len(cloze.losses) == STEPS
    np.testing.assert_allclose(cloze.losses, transformers.losses, rtol=0, atol=1e-4)
    assert np.mean(cloze.losses[-20:]) < 0.7 * np.mean(cloze.losses[:20])  # it learns
