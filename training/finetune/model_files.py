"""A fine-tuned model -> the files of its folder, which transformers' AutoModel and pipelines load."""

import json
from collections.abc import Mapping

from torch import Tensor

from cloze.pipeline.text.tokenizer import PAD
from cloze.training.checkpoints.huggingface import tokenizer_files
from cloze.training.finetune.encoders import PretrainedEncoder
from cloze.training.finetune.tasks.task import Task
from cloze.training.model.architectures import architecture_of

FOLDER = "model"
POOLER = "bert.pooler."  # the names of its weights begin with this; transformers' heads without it do not expect them


def model_files(encoder: PretrainedEncoder, task: Task, weights: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Relative path -> content, nothing for a task without a head. The file of weights has transformers' names."""
    from safetensors.torch import save

    layout, head = architecture_of(encoder.config).layout, task.head()
    if head is None:
        return {}
    config = {
        "architectures": [f"{layout.classes[0].removesuffix('ForPreTraining')}{head.class_name}"],
        "model_type": layout.model_type,
        "vocab_size": encoder.vocab_size,
        "pad_token_id": encoder.tokenizer().token_to_id(PAD),
        "position_embedding_type": "absolute",
        **encoder.config.model_dump(mode="json", exclude={"architecture"}),
        **head.settings,
    }
    kept = [name for name in weights if head.has_pooler or not name.startswith(POOLER)]
    tensors = layout.to_transformers({name: weights[name].cpu() for name in kept})
    files = {
        "model.safetensors": save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"}),
        "config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
        **tokenizer_files(encoder.tokenizer_files, encoder.config.max_position_embeddings),
    }
    return {f"{FOLDER}/{name}": data for name, data in files.items()}
