"""A fine-tuned model -> its ONNX file, with the inputs and outputs of transformers' model for the task."""

import torch
from torch import Tensor, nn

from cloze.training.checkpoints.onnx_file import onnx_bytes
from cloze.training.finetune.encoders.transformers_heads import ChoiceModel, PairModel, SpanModel, TransformersModel
from cloze.training.finetune.heads import ChoiceClassifier, PairEncoder, SpanClassifier

_SPANS, _CHOICES, _PAIRS = (SpanClassifier, SpanModel), (ChoiceClassifier, ChoiceModel), (PairEncoder, PairModel)


class _WithTransformersInputs(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Three [batch, seq] -> logits, start and end logits, or the last hidden state; of a choice three [batch,
        choices, seq]."""
        segments = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        inputs = input_ids, segments, attention_mask
        if isinstance(self.model, _CHOICES):
            return self.model(*(one.flatten(0, 1) for one in inputs))
        if isinstance(self.model, _SPANS):
            start, end = self.model.span_logits(*inputs).unbind(-1)
            return start, end
        if isinstance(self.model, _PAIRS):
            return self.model.last_hidden_state(*inputs)
        return self.model(*inputs)


def fine_tuned_onnx(model: nn.Module) -> bytes:
    """The ONNX file of a task's model. Its output is `logits`; `start_logits` and `end_logits` for answers, and
    `last_hidden_state` where vectors were trained, as sentence-transformers and Optimum expect it."""
    outputs = ["start_logits", "end_logits"] if isinstance(model, _SPANS) else ["logits"]
    if isinstance(model, _PAIRS):
        outputs = ["last_hidden_state"]
    choices = model.choices if isinstance(model, _CHOICES) else None
    with_segments = model.with_segments if isinstance(model, TransformersModel) else True
    return onnx_bytes(_WithTransformersInputs(model), outputs, choices, with_segments=with_segments)
