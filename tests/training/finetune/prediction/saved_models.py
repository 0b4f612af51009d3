"""Fine-tuned models of each kind with random weights, as transformers saves them."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, build_tokenizer
from cloze.training.finetune.prediction.fine_tuned_model import FineTunedModel
from cloze.training.finetune.tasks.registry import TASKS

PIECES = [*SPECIAL_TOKENS, *"abcdefgh"]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
LABELS = {"id2label": {0: "x", 1: "y", 2: "z"}, "label2id": {"x": 0, "y": 1, "z": 2}}
CHOICES = 3
KINDS = {config.model_fields["kind"].default: config for config in TASKS}
#: Kind -> transformers' class and the settings of its head.
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "classification": ("BertForSequenceClassification", LABELS),
    "regression": ("BertForSequenceClassification", {"num_labels": 1}),
    "multilabel": ("BertForSequenceClassification", LABELS),
    "choice": ("BertForMultipleChoice", {"num_choices": CHOICES}),
    "tagging": ("BertForTokenClassification", LABELS),
    "question_answering": ("BertForQuestionAnswering", {"with_null": False}),
    "contrastive": ("BertModel", {}),
}


def task(kind: str, **settings: Any) -> Any:
    """The configuration of a task."""
    return KINDS[kind].model_validate({"name": "a", "kind": kind, "file": "x", "learning_rate": 1e-3, **settings})


def saved(folder: Path, kind: str) -> tuple[Any, FineTunedModel]:
    """A model with random weights, as transformers and as Cloze load it."""
    name, settings = HEADS[kind]
    torch.manual_seed(5)
    config = transformers.BertConfig(
        vocab_size=len(PIECES), max_position_embeddings=64, initializer_range=0.2, **SHAPE, **settings
    )
    model = getattr(transformers, name)(config).eval()
    model.save_pretrained(folder)
    if name == "BertModel":  # Cloze's names have the prefix of models with heads
        named = {f"bert.{name}": tensor for name, tensor in model.state_dict().items()}
        save_file(named, folder / "model.safetensors", {"format": "pt"})
    build_tokenizer(PIECES).save(str(folder / "tokenizer.json"))
    return model, FineTunedModel.from_folder(Location(str(folder)), task(kind))
