"""An encoder + token ids -> the attention probabilities of every layer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cloze.pipeline.core.errors import UserError
from cloze.training.model.bert import SelfAttention
from cloze.training.vectors.hidden_states import LayeredEncoder, hooks


def attention_probabilities(
    encoder: LayeredEncoder, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor
) -> Sequence[Tensor]:
    """Three [b, s] -> [layers] tensors [b, heads, s, s] in fp32: the weight of each key (last) for each query.

    Keys at padding have weight 0; the others of a query add up to 1. As transformers' `attentions`. Raises UserError
    for an encoder whose attention has no such probabilities.
    """
    of_transformers = getattr(encoder.encoder, "attentions", None)
    if of_transformers:
        return of_transformers(input_ids, token_type_ids, attention_mask)
    visible = attention_mask.bool()[:, None, None, :]  # [b, 1, 1, s]
    found = list[Tensor]()

    def keep(attention: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(attention, SelfAttention)
        found.append(_probabilities(attention, arguments[0], visible))

    with hooks(attention.register_forward_pre_hook(keep) for attention in _attentions(encoder.encoder)):
        encoder(input_ids, token_type_ids, attention_mask)
    return found


def _attentions(encoder: nn.Module) -> list[SelfAttention]:
    """That of each layer of one of Cloze's own encoders. Raises UserError when it is of another kind."""
    found = list[SelfAttention]()
    for layer in encoder.get_submodule("layers").children():
        attention = getattr(layer, "attention", None)
        if not isinstance(attention, SelfAttention):
            raise UserError(f"the attention of {type(layer).__name__} is not BERT's and cannot be drawn; give a BERT")
        found.append(attention)
    return found


def _probabilities(attention: SelfAttention, hidden: Tensor, visible: Tensor) -> Tensor:
    """What SelfAttention multiplies its values with, which it never has whole: [b, s, hidden] -> [b, heads, s, s]."""
    batch, length, size = hidden.shape
    qkv = attention.qkv(hidden).view(batch, length, 3, attention.heads, size // attention.heads)
    query, key, _ = qkv.permute(2, 0, 3, 1, 4)  # each [b, heads, s, head_size]
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)  # [b, heads, s, s]
    return scores.float().masked_fill(~visible, -torch.inf).softmax(-1)
