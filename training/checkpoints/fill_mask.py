"""Checkpoint + text with [MASK] -> the most likely pieces at each mask."""

from typing import NamedTuple, cast

import torch
from tokenizers import Tokenizer
from torch import nn

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.text.tokenizer import CLS, MASK, SEP
from cloze.training.checkpoints.checkpoint import CheckpointRef
from cloze.training.model.architectures import pretraining_model
from cloze.training.model.bert import BertConfig


class MaskPrediction(NamedTuple):
    """A piece predicted for a mask, and its probability according to the model."""

    piece: str
    probability: float


def load_model(checkpoint: CheckpointRef) -> nn.Module:
    """Build the pretrained model and load its weights."""
    saved = checkpoint.config()
    model = pretraining_model(saved.model, saved.vocab_size, nsp=saved.nsp)
    model.load_state_dict(checkpoint.weights())
    return model


@torch.inference_mode()
def predict_masked(model: nn.Module, tokenizer: Tokenizer, text: str, k: int = 5) -> list[list[MaskPrediction]]:
    """The `k` most likely pieces for each [MASK] in `text`, the most likely first.

    Raises UserError when `text` has no [MASK], or more pieces than the model has positions.
    """
    cls, sep, mask = (tokenizer.token_to_id(token) for token in (CLS, SEP, MASK))
    # the tokenizer reads [MASK] as ordinary text, so the parts between masks are tokenized separately
    before, *after_masks = [tokenizer.encode(part, add_special_tokens=False).ids for part in text.split(MASK)]
    ids = [cls, *before]
    masks = []
    for part in after_masks:
        masks.append(len(ids))
        ids += [mask, *part]
    ids.append(sep)
    positions = cast(BertConfig, model.config).max_position_embeddings
    if not masks:
        raise UserError(f"{text!r} has no {MASK}; put one where the model should predict a piece")
    if len(ids) > positions:
        raise UserError(f"{text[:40]!r}... has {len(ids)} pieces, the model {positions} positions; shorten it")
    model.eval()
    device = next(model.parameters()).device
    input_ids = torch.tensor([ids], device=device)
    logits, _ = model(
        input_ids, torch.zeros_like(input_ids), None, torch.tensor(masks, device=device)
    )  # [masks, vocab]
    best = logits.softmax(-1).topk(k)
    return [
        [
            MaskPrediction(str(tokenizer.id_to_token(piece_id)), probability)
            for piece_id, probability in zip(piece_ids, probabilities, strict=True)
        ]
        for piece_ids, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
