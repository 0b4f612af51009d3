"""A model of transformers with one of its heads -> a model with the inputs and outputs of those in heads.py."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cloze.pipeline.core.errors import UserError
from cloze.training.finetune.heads import pair_vectors, without_pooler


class TransformersModel(nn.Module):
    """The model of transformers, as `model`. Its head computes in fp32, as those in heads.py."""

    def __init__(self, model: Any, with_segments: bool) -> None:
        super().__init__()
        self.model, self.with_segments = model, with_segments
        in_encoder = set(self.encoder.modules())
        for module in model.modules():
            if isinstance(module, nn.Linear) and module not in in_encoder:
                module.__class__ = _LinearInFp32

    @property
    def encoder(self) -> nn.Module:
        return self.model.base_model

    def outputs(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor, **options: bool) -> Any:
        """The outputs of transformers' model. Padding becomes the model's own padding token."""
        if (padding := self.model.config.pad_token_id) is not None:
            input_ids = input_ids.masked_fill(~attention_mask.bool(), padding)
        segments = {"token_type_ids": token_type_ids} if self.with_segments else {}
        return self.model(input_ids=input_ids, attention_mask=attention_mask.long(), **segments, **options)

    def hidden_states(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Sequence[Tensor]:
        """Three [b, s] -> [layers + 1] tensors [b, s, hidden]: the embeddings' output, then that of each layer."""
        return self.outputs(input_ids, token_type_ids, attention_mask, output_hidden_states=True).hidden_states

    def attentions(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Sequence[Tensor]:
        """Three [b, s] -> [layers] tensors [b, heads, s, s]: the weight of each key (last) for each query.

        Raises UserError when the model does not have them, such as one with windows.
        """
        self.model.set_attn_implementation("eager")  # others never have the weights
        found = self.outputs(input_ids, token_type_ids, attention_mask, output_attentions=True).attentions
        length = input_ids.shape[1]
        if not found or any(layer is None or layer.shape[2:] != (length, length) for layer in found):
            raise UserError(f"{self.model.config.model_type}: transformers has no weights for all pairs of its tokens")
        return found


class _LinearInFp32(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


class LabelModel(TransformersModel):
    """A vector of numbers for each input, or each token."""

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Three [b, s] -> logits [b, outputs] or [b, s, outputs]."""
        return self.outputs(input_ids, token_type_ids, attention_mask).logits


class SpanModel(TransformersModel):
    """How likely each token is the start, and the end, of the answer."""

    def span_logits(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Three [b, s] -> start and end logits [b, s, 2], also at padding."""
        outputs = self.outputs(input_ids, token_type_ids, attention_mask)
        return torch.stack([outputs.start_logits, outputs.end_logits], -1)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Three [b, s] -> start and end logits [b, s, 2], very low at padding."""
        logits = self.span_logits(input_ids, token_type_ids, attention_mask)
        return logits.masked_fill(~attention_mask.bool()[..., None], -1e4)  # as in SpanClassifier


class ChoiceModel(TransformersModel):
    """Which of several texts fits."""

    @property
    def choices(self) -> int:
        return self.model.config.num_choices

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Three [b * choices, s], the choices of an example next to each other -> logits [b, choices]."""
        by_example = (one.unflatten(0, (-1, self.choices)) for one in (input_ids, token_type_ids, attention_mask))
        return self.outputs(*by_example).logits


class PieceModel(TransformersModel):
    """The masked-LM head at one position of each row, or at some of one row."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """[b, s], [b, s] and [n] -> log-probabilities [n, vocab]. n is b, or any number if b is 1."""
        rows = torch.arange(len(input_ids), device=positions.device)

        def at_positions(module: nn.Module, arguments: Any, outputs: Any) -> Any:
            outputs.last_hidden_state = outputs.last_hidden_state[rows, positions][:, None]  # [n, 1, hidden]
            return outputs

        # The head then computes [n, 1, vocab], not [b, s, vocab].
        hook = self.encoder.register_forward_hook(at_positions)
        try:
            logits = self.outputs(input_ids, torch.zeros_like(input_ids), attention_mask).logits
        finally:
            hook.remove()
        return logits[:, 0].log_softmax(-1)


class PairModel(TransformersModel):
    """A vector for each text of a pair."""

    def __init__(self, model: Any, with_segments: bool) -> None:
        super().__init__(model, with_segments)
        without_pooler(self)

    def last_hidden_state(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Three [b, s] -> [b, s, hidden]."""
        return self.outputs(input_ids, token_type_ids, attention_mask).last_hidden_state

    def forward(self, *inputs: Tensor) -> Tensor:
        """See `pair_vectors`."""
        return pair_vectors(self.last_hidden_state, inputs)


#: The classes by the names of transformers' heads.
MODELS: dict[str, type[TransformersModel]] = {
    "ForSequenceClassification": LabelModel,
    "ForTokenClassification": LabelModel,
    "ForQuestionAnswering": SpanModel,
    "ForMultipleChoice": ChoiceModel,
    "ForMaskedLM": PieceModel,
    "Model": PairModel,
}
