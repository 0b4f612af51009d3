"""The `kind` of a fine-tuning task in a configuration -> its configuration class and its `Task`."""

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Discriminator, Tag, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from cloze.training.finetune.tasks.choice import Choice, ChoiceConfig
from cloze.training.finetune.tasks.classification import Classification, ClassificationConfig
from cloze.training.finetune.tasks.contrastive import Contrastive
from cloze.training.finetune.tasks.contrastive_config import ContrastiveConfig
from cloze.training.finetune.tasks.minimal_pairs import MinimalPairs, MinimalPairsConfig
from cloze.training.finetune.tasks.multilabel import Multilabel, MultilabelConfig
from cloze.training.finetune.tasks.probe import Probe
from cloze.training.finetune.tasks.probe_config import ProbeConfig
from cloze.training.finetune.tasks.question_answering.task import QuestionAnswering, QuestionAnsweringConfig
from cloze.training.finetune.tasks.regression import Regression, RegressionConfig
from cloze.training.finetune.tasks.tagging import Tagging, TaggingConfig
from cloze.training.finetune.tasks.task import Task
from cloze.training.finetune.tasks.task_config import TaskConfig

#: The configuration class of each kind, whose field `kind` has the kind's name by default, and its `Task`.
TASKS: dict[type[TaskConfig], type[Task]] = {
    ClassificationConfig: Classification,
    RegressionConfig: Regression,
    MultilabelConfig: Multilabel,
    ChoiceConfig: Choice,
    TaggingConfig: Tagging,
    QuestionAnsweringConfig: QuestionAnswering,
    ContrastiveConfig: Contrastive,
    MinimalPairsConfig: MinimalPairs,
    ProbeConfig: Probe,
}


def of_any_kind(tasks: Mapping[type[TaskConfig], type[Task]]) -> Any:
    """The type of a field that holds a task of any of these kinds, chosen by `kind`; the first is the default."""
    kinds = [config.model_fields["kind"].default for config in tasks]

    def kind(given: Any) -> Any:
        return given.get("kind", kinds[0]) if isinstance(given, dict) else getattr(given, "kind", None)

    def check_kind(given: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        if kind(given) not in kinds:
            error = PydanticCustomError("kind", "give one of {kinds}", {"kinds": ", ".join(kinds)})
            details = InitErrorDetails(type=error, loc=("kind",), input=kind(given))
            raise ValidationError.from_exception_data("kind", [details])
        return validate(_with_tuples(given))

    members = (Annotated[config, Tag(name)] for name, config in zip(kinds, tasks, strict=True))
    return Annotated[reduce(or_, members), Discriminator(kind), WrapValidator(check_kind)]


def _with_tuples(value: Any) -> Any:
    """Plain data with tuples in place of lists: pydantic's strict mode accepts a JSON list as a tuple, but not a list
    that a wrap validator passes on."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


if TYPE_CHECKING:
    FinetuneConfig = TaskConfig
else:
    FinetuneConfig = of_any_kind(TASKS)


def task_of(config: TaskConfig) -> type[Task]:
    """The `Task` class of a task's configuration."""
    return TASKS[type(config)]
