"""`model.architecture` -> the classes of a model: the only list of what Cloze can train.

A new architecture is a file beside bert.py and a row here. The file has its configuration, a BertConfig with the
field `architecture: Literal["its name"]` and what else it wants, its models, and its layout in transformers. Its models
take and give what BertForPreTraining and BertForSequenceClassification do, hold their `config`, and name the encoder
(`bert`, with its `pooler`) and the heads (`mlm`, `nsp`) alike: checkpoints and fine-tuning tell them apart by name.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import SerializeAsAny, ValidationInfo, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError
from torch import nn

from cloze.training.model.bert import BertConfig, BertForPreTraining, BertForSequenceClassification, Layer
from cloze.training.model.transformers_names import BERT, Layout

DEFAULT = "bert"


@dataclass(frozen=True)
class Architecture:
    """What is chosen together."""

    config: type[BertConfig]
    pretraining: Callable[..., nn.Module]  # made with what BertForPreTraining is made with
    classifier: Callable[..., nn.Module]  # as BertForSequenceClassification is
    layer: Callable[[Any], nn.Module]  # one of the encoder's, which is timed to choose a precision
    layout: Layout
    title: str  # in a model's card


ARCHITECTURES = {
    DEFAULT: Architecture(
        BertConfig,
        BertForPreTraining,
        BertForSequenceClassification,
        Layer,
        BERT,
        "A BERT ([Devlin et al. 2019](https://arxiv.org/abs/1810.04805))",
    ),
}


def architecture_of(config: BertConfig) -> Architecture:
    """The one whose configuration it is."""
    return next(one for one in ARCHITECTURES.values() if one.config is type(config))


def architecture_name(config: BertConfig) -> str:
    """As a user writes it."""
    return getattr(config, "architecture", DEFAULT)


def pretraining_model(config: BertConfig, vocab_size: int, seed: int = 0, **settings: bool) -> nn.Module:
    """A model of these sizes with random weights, as its architecture has it; for `settings` see BertForPreTraining."""
    return architecture_of(config).pretraining(config, vocab_size, seed, **settings)


def _chosen(given: Any, of_bert: ValidatorFunctionWrapHandler, info: ValidationInfo) -> BertConfig:
    """Plain data -> the configuration of the architecture that it names; BERT's, which is none's, has no such key."""
    if not isinstance(given, Mapping):
        return of_bert(given)
    name = given.get("architecture") or DEFAULT
    if not isinstance(name, str) or name not in ARCHITECTURES:
        wrong = PydanticCustomError("architecture", "give one of {known}", {"known": ", ".join(ARCHITECTURES)})
        at = InitErrorDetails(type=wrong, loc=("architecture",), input=name)
        raise ValidationError.from_exception_data("architecture", [at])
    if name == DEFAULT:
        return of_bert({key: value for key, value in given.items() if key != "architecture"})
    kind = ARCHITECTURES[name].config
    return kind.model_validate_json(json.dumps(given)) if info.mode == "json" else kind.model_validate(given)


#: The type of a field that holds a model's configuration.
ModelConfig = Annotated[SerializeAsAny[BertConfig], WrapValidator(_chosen)]
