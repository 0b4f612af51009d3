"""An encoder and a task's head -> the model that is fine-tuned, as in BERT's paper (arXiv:1810.04805, figure 4).

An encoder maps (input_ids, token_type_ids, attention_mask), each [b, s], to its hidden states [b, s, hidden] and the
pooled [CLS] [b, hidden]. Heads have the names that transformers gives them.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cloze.training.model.bert import BertConfig, Dropout, initialize
from cloze.training.model.linear import Linear
from cloze.training.vectors.pooling import mean


class _TaskModel(nn.Module):
    """The encoder, as `bert`, and the dropout before the head."""

    def __init__(self, encoder: nn.Module, config: BertConfig) -> None:
        super().__init__()
        self.bert = encoder
        self.dropout = Dropout(config.hidden_dropout_prob)


def _in_fp32(head: nn.Module, features: Tensor) -> Tensor:
    """The head's outputs without autocast: numbers and scores in 16 bits would tie."""
    with torch.autocast(features.device.type, enabled=False):
        return head(features.float())


class SequenceClassifier(_TaskModel):
    """One vector of `outputs` numbers for each text or pair of texts, from the pooled [CLS]."""

    def __init__(self, encoder: nn.Module, config: BertConfig, outputs: int, seed: int = 0) -> None:
        super().__init__(encoder, config)
        self.classifier = Linear(config.hidden_size, outputs)
        initialize(self, config.initializer_range, seed)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Three [b, s] -> logits [b, outputs] in fp32."""
        _, pooled = self.bert(input_ids, token_type_ids, attention_mask)
        return _in_fp32(self.classifier, self.dropout(pooled))


class TokenClassifier(_TaskModel):
    """A label for each token, from the hidden states."""

    def __init__(self, encoder: nn.Module, config: BertConfig, labels: int, seed: int = 0) -> None:
        super().__init__(encoder, config)
        self.classifier = Linear(config.hidden_size, labels)
        initialize(self, config.initializer_range, seed)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Three [b, s] -> logits [b, s, labels] in fp32."""
        hidden, _ = self.bert(input_ids, token_type_ids, attention_mask)
        return _in_fp32(self.classifier, self.dropout(hidden))


class SpanClassifier(_TaskModel):
    """How likely each token is the start, and the end, of the answer: without dropout, as in run_squad.py."""

    def __init__(self, encoder: nn.Module, config: BertConfig, seed: int = 0) -> None:
        super().__init__(encoder, config)
        self.qa_outputs = Linear(config.hidden_size, 2)
        initialize(self, config.initializer_range, seed)

    def span_logits(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Three [b, s] -> start and end logits [b, s, 2] in fp32, also at padding, as transformers has them."""
        hidden, _ = self.bert(input_ids, token_type_ids, attention_mask)
        return _in_fp32(self.qa_outputs, hidden)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Three [b, s] -> start and end logits [b, s, 2] in fp32, very low at padding."""
        logits = self.span_logits(input_ids, token_type_ids, attention_mask)
        return logits.masked_fill(~attention_mask.bool()[..., None], -1e4)  # finite: the loss of padding must be, too


class ChoiceClassifier(_TaskModel):
    """Which of several texts fits: a number for each, and the softmax over the texts of an example."""

    def __init__(self, encoder: nn.Module, config: BertConfig, choices: int, seed: int = 0) -> None:
        super().__init__(encoder, config)
        self.choices = choices
        self.classifier = Linear(config.hidden_size, 1)
        initialize(self, config.initializer_range, seed)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Three [b * choices, s], the choices of an example next to each other -> logits [b, choices] in fp32."""
        _, pooled = self.bert(input_ids, token_type_ids, attention_mask)
        return _in_fp32(self.classifier, self.dropout(pooled)).view(-1, self.choices)


class PairEncoder(nn.Module):
    """A vector for each text of a pair, which is encoded by itself. There is no head."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.bert = encoder
        without_pooler(self)

    def last_hidden_state(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Three [b, s] -> [b, s, hidden]."""
        return self.bert(input_ids, token_type_ids, attention_mask)[0]

    def forward(self, *inputs: Tensor) -> Tensor:
        """See `pair_vectors`."""
        return pair_vectors(self.last_hidden_state, inputs)


def without_pooler(model: nn.Module) -> None:
    """Leave the pooler, if there is one, out of the training: weight decay would change it."""
    for name, parameter in model.named_parameters():
        if "pooler." in name:
            parameter.requires_grad_(False)


def pair_vectors(hidden_state: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """For each text of a pair an encoder's three inputs and the tokens that count, each [b, s] -> the means of their
    hidden states, [b, 2, hidden] in fp32."""
    means = [
        mean(hidden_state(*encoder_inputs).float(), counted)
        for *encoder_inputs, counted in (inputs[start : start + 4] for start in range(0, len(inputs), 4))
    ]
    return torch.stack(means, 1)
