"""A pretrained model and its tokenizer -> predictions for [MASK] and a vector for each text, from Python."""

from collections.abc import Sequence
from typing import Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn

from cloze.pipeline.core.ragged import offsets_of, pad_rows
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import CLS, SEP, load_tokenizer
from cloze.training.checkpoints.checkpoint import CheckpointRef
from cloze.training.checkpoints.fill_mask import MaskPrediction, load_model, predict_masked
from cloze.training.model.bert import BertConfig, BertForPreTraining


class PretrainedModel:
    """A pretrained model with its tokenizer, as `cloze.load` returns it.

    `model` is a torch module, in eval mode on the CPU. After `model.to(device)` the methods compute on that device.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer

    @classmethod
    def from_checkpoint(cls, checkpoint: CheckpointRef, vocab: Location) -> Self:
        """The model of a checkpoint with the tokenizer in the folder of its vocabulary."""
        return cls(load_model(checkpoint), load_tokenizer(vocab / "tokenizer.json"))

    @property
    def config(self) -> BertConfig:
        return cast(BertConfig, self.model.config)

    def fill_mask(self, text: str, top: int = 5) -> list[list[MaskPrediction]]:
        """For each [MASK] in `text` the `top` most likely pieces, the most likely first.

        Raises UserError when there is no [MASK], or when the text is longer than the model.
        """
        return predict_masked(self.model, self.tokenizer, text, top)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], batch_size: int = 32) -> NDArray[np.float32]:
        """Texts -> [texts, hidden]: the mean of the last layer over a text's tokens, [CLS] and [SEP] included.

        This is what sentence-transformers calls mean pooling. A text longer than the model is truncated.
        """
        cls, sep = (self.tokenizer.token_to_id(token) for token in (CLS, SEP))
        longest = self.config.max_position_embeddings - 2
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ids = [[cls, *encoding.ids[:longest], sep] for encoding in encoded]
        by_length = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        vectors = np.empty((len(ids), self.config.hidden_size), np.float32)
        for start in range(0, len(ids), batch_size):
            batch = by_length[start : start + batch_size]
            vectors[batch] = self._mean_pooled([ids[index] for index in batch])
        return vectors

    def _mean_pooled(self, ids: list[list[int]]) -> NDArray[np.float32]:
        device = next(self.model.parameters()).device
        lengths = np.array([len(row) for row in ids])
        width = int(lengths.max())
        padded = pad_rows(np.concatenate(ids), offsets_of(lengths), width)  # [batch, seq]
        input_ids = torch.from_numpy(padded).to(device)
        mask = torch.from_numpy(np.arange(width) < lengths[:, None]).to(device)  # [batch, seq]
        encoder = cast(BertForPreTraining, self.model).bert
        hidden, _ = encoder(input_ids, torch.zeros_like(input_ids), mask)  # [batch, seq, hidden]
        total = (hidden * mask[..., None]).sum(1)  # [batch, hidden]
        return (total / mask.sum(1, keepdim=True)).float().cpu().numpy()
