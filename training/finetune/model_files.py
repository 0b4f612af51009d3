"""A fine-tuned model -> the files of its folder, which transformers' AutoModel and pipelines load."""

from collections.abc import Mapping

from torch import Tensor

from cloze.training.finetune.encoders.pretrained_encoder import PretrainedEncoder
from cloze.training.finetune.tasks.task import ModelTask

FOLDER = "model"


def model_files(encoder: PretrainedEncoder, task: ModelTask, weights: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Relative path -> content, nothing for a task without a head. The file of weights has transformers' names."""
    head = task.head()
    files = {} if head is None else encoder.model_files(head, weights)
    return {f"{FOLDER}/{name}": data for name, data in files.items()}
