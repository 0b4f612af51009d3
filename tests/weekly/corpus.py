"""The dumps of the weekly campaign: paragraphs of the quickstart's novels as JSON lines, more of them every week."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from tests.paths import REPOSITORY

NAME = "weekly"
VOCAB = REPOSITORY / "configs/vocab/bert-base-uncased.txt"
_FIRST, _MORE = 240, 12  # documents of the first week, and how many each week adds

CONFIG = """
name: weekly
root: {folder}/root
schedule: {{cron: "* * * * *", retries: 3, max_runtime_hours: 0.2, watch_seconds: 10, promote: true}}
checks: {{max_loss_increase: 0.5}}  # the model is too small for a finer limit
extract:
  heldout_fraction: 0.1
  sources: [{{kind: documents, name: dump, files: [{folder}/dump/*.jsonl], language: en}}]
vocab: {{file: {vocab}, lowercase: true}}  # the same each week: else no loss is compared and nothing promoted
examples: {{dupe_factor: 1, masking: dynamic, seed: 1}}
pretrain:
  model:
    {{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64,
      hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}}
  phases: [{{max_seq_length: 64, max_predictions_per_seq: 10, steps: 40}}]
  global_batch_size: 16
  micro_batch_size: 16
  workers: 1
  optimizer: {{learning_rate: 2e-3, warmup_steps: 5}}
  precision: fp32
  seed: 1
  checkpoint_every: 10
  log_every: 10
  eval_every: 20
  eval_batches: 2
"""


class Corpus:
    """The file dump.jsonl in a folder: the dump of a week."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        self._file = folder / "dump.jsonl"
        self._paragraphs = list(_paragraphs())
        self.week, self.is_bad = 0, False

    def write(self, week: int, *, bad: bool = False) -> None:
        """Replace the dump in one step. A bad one lacks half of the documents."""
        lines = self._lines(week)
        new = self._file.with_suffix(".new")
        new.write_text("".join(lines[: len(lines) // 2] if bad else lines))
        new.replace(self._file)
        self.week, self.is_bad = week, bad

    def write_slowly(self, week: int, seconds: float) -> Iterator[None]:
        """Replace the dump by one that grows for so many seconds, as an upload does."""
        lines, steps = self._lines(week), round(seconds / 2)
        with self._file.open("w") as file:
            for step in range(steps):
                file.write("".join(lines[len(lines) * step // steps : len(lines) * (step + 1) // steps]))
                file.flush()
                time.sleep(2)
                yield
        self.week, self.is_bad = week, False

    def _lines(self, week: int) -> list[str]:
        count = _FIRST + _MORE * week
        assert count <= len(self._paragraphs), "the novels are too short for so many weeks"
        return [json.dumps({"text": text}) + "\n" for text in self._paragraphs[:count]]


def _paragraphs() -> Iterator[str]:
    """Paragraphs of at least 60 words, in the order of the files."""
    for file in sorted((REPOSITORY / "configs/quickstart/books").glob("*.txt")):
        for paragraph in file.read_text().split("\n\n"):
            words = paragraph.split()
            if len(words) >= 60:
                yield " ".join(words)
