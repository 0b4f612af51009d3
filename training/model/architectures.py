"""`model.architecture` -> the classes of a model: the list of everything that Cloze can train.

To add an architecture, add a file next to bert.py and an entry here. The file defines its configuration (a subclass of
BertConfig with the field `architecture: Literal["its name"]` and any fields of its own), its models, and how
transformers stores them. The models have the same inputs and outputs as BertForPreTraining and BertModel, keep their
`config`, and use the same names for the encoder (`bert`, with its `pooler`) and the heads (`mlm`, `nsp`): checkpoints
and fine-tuning recognise them by name. The layers that a GPU compiles are `bert.layers`; the
hidden states of vectors are what `bert.embeddings` and each of `bert.layers` return. `cloze inspect` draws attention
that is SelfAttention, as `attention` of each of `bert.layers`, and refuses others.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import SerializeAsAny, ValidationInfo, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError
from torch import nn

from cloze.training.model.bert import BertConfig, BertForPreTraining, BertModel, Layer
from cloze.training.model.transformers_names import BERT, TransformersLayout

DEFAULT_ARCHITECTURE = "bert"


@dataclass(frozen=True)
class Architecture:
    """The classes that belong to one architecture."""

    config: type[BertConfig]
    pretraining: Callable[..., nn.Module]  # same arguments as BertForPreTraining
    encoder: Callable[..., nn.Module]  # (config, vocab_size): what fine-tuning puts its heads on
    layer: Callable[[Any], nn.Module]  # one encoder layer, which is timed to choose a precision
    layout: TransformersLayout
    #: Whether the pretraining model's forward takes masked_lm_labels and then returns MaskedLMSums in place of logits.
    fused_loss: bool
    title: str  # in a model card


ARCHITECTURES = {
    DEFAULT_ARCHITECTURE: Architecture(
        BertConfig,
        BertForPreTraining,
        BertModel,
        Layer,
        BERT,
        True,
        "A BERT ([Devlin et al. 2019](https://arxiv.org/abs/1810.04805))",
    ),
}


def architecture_of(config: BertConfig) -> Architecture:
    """The architecture that a configuration belongs to."""
    return next(architecture for architecture in ARCHITECTURES.values() if architecture.config is type(config))


def architecture_name(config: BertConfig) -> str:
    """The value of `model.architecture`."""
    return getattr(config, "architecture", DEFAULT_ARCHITECTURE)


def pretraining_model(config: BertConfig, vocab_size: int, seed: int = 0, **settings: bool) -> nn.Module:
    """Build a model with random weights. `settings`: see BertForPreTraining."""
    return architecture_of(config).pretraining(config, vocab_size, seed, **settings)


def _validate(value: Any, validate_bert: ValidatorFunctionWrapHandler, info: ValidationInfo) -> BertConfig:
    """Plain data -> the configuration class of the architecture it names. BertConfig itself has no such key."""
    if not isinstance(value, Mapping):
        return validate_bert(value)
    name = value.get("architecture") or DEFAULT_ARCHITECTURE
    if not isinstance(name, str) or name not in ARCHITECTURES:
        error = PydanticCustomError("architecture", "give one of {known}", {"known": ", ".join(ARCHITECTURES)})
        details = InitErrorDetails(type=error, loc=("architecture",), input=name)
        raise ValidationError.from_exception_data("architecture", [details])
    if name == DEFAULT_ARCHITECTURE:
        return validate_bert({key: item for key, item in value.items() if key != "architecture"})
    config = ARCHITECTURES[name].config
    return config.model_validate_json(json.dumps(value)) if info.mode == "json" else config.model_validate(value)


#: The type of a field that holds a model's configuration.
ModelConfig = Annotated[SerializeAsAny[BertConfig], WrapValidator(_validate)]
