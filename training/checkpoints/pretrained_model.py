"""A pretrained model and its tokenizer -> predictions for [MASK] and a vector for each text, from Python."""

import itertools
from collections.abc import Sequence
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn

from cloze.pipeline.core.ragged import Ragged, offsets_of
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import CLS, SEP, load_tokenizer
from cloze.training.checkpoints.checkpoint import CheckpointRef
from cloze.training.checkpoints.fill_mask import MaskPrediction, load_model, predict_masked
from cloze.training.model.bert import BertConfig, BertForPreTraining
from cloze.training.vectors.hidden_states import LayeredEncoder
from cloze.training.vectors.pooling import text_vectors
from cloze.training.vectors.representation import Representation
from cloze.training.vectors.text_inputs import TextInputs


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

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts -> [texts, hidden]: the mean of the last layer over a text's tokens, [CLS] and [SEP] included.

        This is what sentence-transformers calls mean pooling. A text longer than the model is truncated.
        """
        cls, sep = (self.tokenizer.token_to_id(token) for token in (CLS, SEP))
        longest = self.config.max_position_embeddings - 2
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [[cls, *encoding.ids[:longest], sep] for encoding in encoded]
        offsets = offsets_of([len(row) for row in ids])
        flat = np.fromiter(itertools.chain(*ids), np.int64, offsets[-1])
        inputs = TextInputs(Ragged(flat, offsets), np.diff(offsets))
        encoder = cast(BertForPreTraining, self.model).bert
        layered = LayeredEncoder.of_modules(encoder, self.config.num_hidden_layers, self.config.hidden_size)
        [vectors] = text_vectors(layered, inputs, [Representation()], special_ids=())  # all tokens count
        return vectors
