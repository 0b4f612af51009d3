"""the `kind` of a fine-tuning task in a configuration -> the task."""

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Discriminator, Tag, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from cloze.training.finetune.tasks.classification import Classification, ClassificationConfig
from cloze.training.finetune.tasks.task import Task, TaskConfig

#: Every kind there is: its configuration, whose field `kind` has the kind's name by default, and its task.
TASKS: dict[type[TaskConfig], type[Task]] = {
    ClassificationConfig: Classification,
}


def of_any_kind(tasks: Mapping[type[TaskConfig], type[Task]]) -> Any:
    """The type of a configuration of any of these kinds, which its `kind` tells; one that says none is of the first."""
    kinds = [config.model_fields["kind"].default for config in tasks]

    def kind(given: Any) -> Any:
        return given.get("kind", kinds[0]) if isinstance(given, dict) else getattr(given, "kind", None)

    def known(given: Any, of_its_kind: ValidatorFunctionWrapHandler) -> Any:
        if kind(given) not in kinds:
            wrong = PydanticCustomError("kind", "give one of {kinds}", {"kinds": ", ".join(kinds)})
            at = InitErrorDetails(type=wrong, loc=("kind",), input=kind(given))
            raise ValidationError.from_exception_data("kind", [at])
        return of_its_kind(given)

    members = (Annotated[config, Tag(name)] for name, config in zip(kinds, tasks, strict=True))
    return Annotated[reduce(or_, members), Discriminator(kind), WrapValidator(known)]


if TYPE_CHECKING:
    FinetuneConfig = TaskConfig
else:
    FinetuneConfig = of_any_kind(TASKS)


def task_of(config: TaskConfig) -> type[Task]:
    """The kind of task that a configuration is of."""
    return TASKS[type(config)]
