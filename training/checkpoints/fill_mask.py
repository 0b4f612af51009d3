"""checkpoint + text -> what the model says of it."""

from typing import NamedTuple, cast

import torch
from tokenizers import Tokenizer
from torch import nn

from cloze.pipeline.text.tokenizer import CLS, MASK, SEP
from cloze.training.checkpoints.checkpoint import CheckpointRef
from cloze.training.model.architectures import pretraining_model
from cloze.training.model.bert import BertConfig


class Guess(NamedTuple):
    """A piece that may stand behind a mask, and how likely the model thinks it."""

    piece: str
    probability: float


def load_model(checkpoint: CheckpointRef) -> nn.Module:
    """A pretrained model as its checkpoint has it."""
    saved = checkpoint.config()
    model = pretraining_model(saved.model, saved.vocab_size, nsp=saved.nsp)
    model.load_state_dict(checkpoint.weights())
    return model


@torch.inference_mode()
def predict_masked(model: nn.Module, tokenizer: Tokenizer, text: str, k: int = 5) -> list[list[Guess]]:
    """The `k` likeliest pieces for each [MASK] in `text`, the likeliest first.

    Raises ValueError when there is no [MASK], or more pieces than the model has positions.
    """
    cls, sep, mask = (tokenizer.token_to_id(token) for token in (CLS, SEP, MASK))
    first, *others = [tokenizer.encode(part, add_special_tokens=False).ids for part in text.split(MASK)]
    ids = [cls, *first]
    masks = []
    for part in others:  # each stands behind a [MASK], which the tokenizer itself would read as text
        masks.append(len(ids))
        ids += [mask, *part]
    ids.append(sep)
    positions = cast(BertConfig, model.config).max_position_embeddings
    if not masks:
        raise ValueError(f"{text!r} has no {MASK}; put one where a piece is to be guessed")
    if len(ids) > positions:
        raise ValueError(f"{text[:40]!r}... has {len(ids)} pieces, the model {positions} positions; shorten it")
    model.eval()
    device = next(model.parameters()).device
    input_ids = torch.tensor([ids], device=device)
    logits, _ = model(
        input_ids, torch.zeros_like(input_ids), None, torch.tensor(masks, device=device)
    )  # [masks, vocab]
    best = logits.softmax(-1).topk(k)
    return [
        [Guess(str(tokenizer.id_to_token(piece)), value) for piece, value in zip(pieces, values, strict=True)]
        for pieces, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
