"""input ids -> hidden states -> logits: BERT's encoder and its heads.

Devlin et al. 2019 (arXiv:1810.04805): post-LayerNorm, learned positions, exact GELU, tied decoder. Optimizations keep
the published arithmetic: one matrix computes query, key and value; the masked-LM head sees the masked positions only
(15 % of the rows of the most expensive product); on CPUs dropout is implemented here and attention with dropout is
written out; fp32 products use the faster of PyTorch's two libraries (linear.py).
"""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from cloze.pipeline.core.config import Config
from cloze.training.model.linear import Linear, linear
from cloze.training.model.masked_lm_loss import MaskedLMSums, SoftmaxStep, masked_lm_sums, softmax_step

if TYPE_CHECKING:
    from cloze.training.model.batch_totals import Totals

_VOCAB_MULTIPLE = {"cuda": 64}  # by device type: tensor cores need a decoder whose rows are a multiple of this


class BertConfig(Config):
    """The size and settings of the encoder. The vocabulary size is not set here: it comes from the vocabulary."""

    hidden_size: int = Field(gt=0)
    """Width of the hidden states; a multiple of num_attention_heads."""
    num_hidden_layers: int = Field(gt=0)
    """Number of encoder layers."""
    num_attention_heads: int = Field(gt=0)
    """Attention heads in each layer."""
    intermediate_size: int = Field(gt=0)
    """Width of the feed-forward layer, usually 4 times hidden_size."""
    max_position_embeddings: int = Field(default=512, gt=0)
    """Longest sequence, in tokens, that the model can read."""
    type_vocab_size: int = Field(default=2, ge=2)
    """Number of segment types; a pair of texts needs 2."""
    hidden_dropout_prob: float = Field(default=0.1, ge=0, lt=1)
    """Dropout probability of embeddings and of the outputs of attention and feed-forward layers."""
    attention_probs_dropout_prob: float = Field(default=0.1, ge=0, lt=1)
    """Dropout probability of the attention weights."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the truncated normal distribution that initializes the weight matrices."""
    layer_norm_eps: float = Field(default=1e-12, gt=0)
    """Added to the variance in LayerNorm, for numerical stability."""
    hidden_act: Literal["gelu"] = "gelu"
    """Activation of the feed-forward layer; only the exact GELU is supported."""

    #: The fields that must be equal for one model to start from the weights of another.
    SHAPE: ClassVar[tuple[str, ...]] = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "type_vocab_size",
        "layer_norm_eps",
    )

    @model_validator(mode="after")
    def _heads_divide_hidden_size(self) -> "BertConfig":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self

    def training_flops(self, totals: "Totals", vocab_size: int) -> float:
        """The floating-point operations of the matrix products, forward and backward, that these examples need.

        Padding does not count, and dropout, norms and the pooled [CLS] are negligible. The backward pass costs twice
        the forward pass (arXiv:2001.08361, section 2.1).
        """
        hidden, intermediate = self.hidden_size, self.intermediate_size
        linear = 8 * hidden * hidden + 4 * hidden * intermediate  # query, key, value, output; the feed-forward layers
        attention = 4 * hidden  # scores and context, for each pair of tokens
        prediction = 2 * hidden * hidden + 2 * hidden * vocab_size
        encoder = self.num_hidden_layers * (linear * totals.tokens + attention * totals.squares)
        return 3 * (encoder + prediction * totals.masked)


class Dropout(nn.Module):
    """Set each element to zero with a probability and scale the others up; the identity in evaluation mode.

    On a CPU, sixteen random bits decide for each element. This takes a third of the time of PyTorch's dropout, which
    would be a sixth of a training step. The probability is exact to 1 / 65,536.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.training or not self.probability:
            return hidden
        if hidden.device.type != "cpu" or torch.compiler.is_compiling():  # compiled dropout needs no such shortcut
            return functional.dropout(hidden, self.probability)
        return cast(Tensor, _BitDropout.apply(hidden, self.probability))


class _BitDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, probability: float) -> Tensor:
        dropped = min(round(probability * 2**16), 2**16 - 1)
        ctx.scale = 2**16 / (2**16 - dropped)
        bits = torch.empty(-(-hidden.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = (bits[: hidden.numel()] >= dropped - 2**15).view(hidden.shape)
        ctx.save_for_backward(kept)
        return (hidden * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (kept,) = ctx.saved_tensors
        return (gradient * kept).mul_(ctx.scale), None


class Embeddings(nn.Module):
    """ids [b, s] -> the sum of word, position and segment embeddings, normalized: [b, s, hidden]."""

    def __init__(self, config: BertConfig, vocab_size: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        words = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.norm(words + self.position_embeddings(positions)))


class SelfAttention(nn.Module):
    """[b, s, hidden] -> [b, s, hidden]. `visible` masks the keys at padding; without it every key is visible."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = Dropout(config.attention_probs_dropout_prob)
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, visible: Tensor | None) -> Tensor:
        batch, length, size = hidden.shape
        qkv = self.qkv(hidden).view(batch, length, 3, self.heads, size // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [b, heads, s, head_size]
        dropout = self.dropout.probability if self.training else 0.0
        if dropout and hidden.device.type == "cpu":  # PyTorch has no fused kernel with dropout there
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)  # [b, heads, s, s]
            if visible is not None:
                scores = scores.masked_fill(~visible, -torch.inf)
            context = self.dropout(scores.softmax(-1)) @ value  # the softmax of bf16 accumulates in fp32
        else:
            context = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)
        return self.output(context.transpose(1, 2).reshape(batch, length, size))


class Layer(nn.Module):
    """Attention, then the feed-forward network, each with a residual connection followed by LayerNorm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.intermediate = Linear(config.hidden_size, config.intermediate_size)
        self.output = Linear(config.intermediate_size, config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, visible: Tensor | None) -> Tensor:
        hidden = self.attention_norm(hidden + self.dropout(self.attention(hidden, visible)))
        expanded = functional.gelu(self.intermediate(hidden))  # [b, s, intermediate]
        return self.output_norm(hidden + self.dropout(self.output(expanded)))


class BertModel(nn.Module):
    """The encoder. Its parameters have the prefix `bert.` in the models below and in every checkpoint.

    With `activation_checkpointing` (Chen et al. 2016, arXiv:1604.06174) training stores only the input of each layer
    and recomputes the rest, with the same dropout, in the backward pass: less memory, a third more work.
    """

    def __init__(
        self, config: BertConfig, vocab_size: int, *, pooler: bool = True, activation_checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.embeddings = Embeddings(config, vocab_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.pooler = Linear(config.hidden_size, config.hidden_size) if pooler else None

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Three [b, s] (mask: 1 real, 0 padding) -> hidden states [b, s, hidden] and the pooled [CLS] [b, hidden].

        Without a mask there is no padding, and attention may use a faster kernel. Without a pooler, the second is None.
        """
        visible = None  # [b, 1, 1, s]: the same for each head and query
        if attention_mask is not None:
            visible = attention_mask.bool()[:, None, None, :]
        hidden = self.embeddings(input_ids, token_type_ids)
        for layer in self.layers:
            if self.activation_checkpointing and self.training:
                hidden = checkpoint(layer, hidden, visible, use_reentrant=False, early_stop=False)
            else:
                hidden = layer(hidden, visible)
        return hidden, torch.tanh(self.pooler(hidden[:, 0])) if self.pooler else None


class MaskedLMHead(nn.Module):
    """Hidden states of masked positions [n, hidden] and the word embeddings -> logits [n, vocab] in fp32.

    With labels [n] -> the sums of their losses and right predictions, without keeping the logits.
    """

    def __init__(self, config: BertConfig, vocab_size: int) -> None:
        super().__init__()
        self.transform = Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.softmax: SoftmaxStep = softmax_step

    def forward(self, hidden: Tensor, word_embeddings: Tensor, labels: Tensor | None = None) -> Tensor | MaskedLMSums:
        hidden, bias, vocab_size = self.norm(functional.gelu(self.transform(hidden))), self.bias, len(self.bias)
        if missing := -vocab_size % _VOCAB_MULTIPLE.get(hidden.device.type, 1):
            word_embeddings = functional.pad(word_embeddings, (0, 0, 0, missing))
            bias = functional.pad(bias, (0, missing), value=-torch.inf)  # no prediction has a probability there
        if labels is not None:
            return masked_lm_sums(hidden, word_embeddings, bias, labels, self.softmax)
        logits = linear(hidden, word_embeddings, bias)[:, :vocab_size]
        return logits.float()  # before the softmax: a loss of bf16 logits has a resolution of 1/128


class BertForPreTraining(nn.Module):
    """The encoder with a masked-LM head and, if `nsp`, a pooler and a binary classifier of segment pairs.

    Label 1 of a pair means a random second segment with the objective mlm+nsp, and swapped segments with mlm+sop.
    """

    def __init__(
        self,
        config: BertConfig,
        vocab_size: int,
        seed: int = 0,
        *,
        nsp: bool = True,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.bert = BertModel(config, vocab_size, pooler=nsp, activation_checkpointing=activation_checkpointing)
        self.mlm = MaskedLMHead(config, vocab_size)
        self.nsp = Linear(config.hidden_size, 2) if nsp else None
        initialize(self, config.initializer_range, seed)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor | None,
        masked_lm_positions: Tensor,
        masked_lm_labels: Tensor | None = None,
    ) -> tuple[Any, Tensor | None]:
        """Three [b, s] and flat indices into b * s [n] -> masked-LM logits [n, vocab], NSP logits [b, 2], in fp32.

        NSP logits are None without a head for pairs. With labels [n], MaskedLMSums replace the masked-LM logits.
        """
        hidden, pooled = self.bert(input_ids, token_type_ids, attention_mask)
        masked = hidden.flatten(0, 1).index_select(0, masked_lm_positions)  # [n, hidden]
        masked_lm = self.mlm(masked, self.bert.embeddings.word_embeddings.weight, masked_lm_labels)
        return masked_lm, self.nsp(pooled).float() if self.nsp else None


class BertForSequenceClassification(nn.Module):
    """One label for each text (or pair of texts), predicted from the pooled [CLS]."""

    def __init__(self, config: BertConfig, vocab_size: int, num_labels: int, seed: int = 0) -> None:
        super().__init__()
        self.bert = BertModel(config, vocab_size)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.classifier = Linear(config.hidden_size, num_labels)
        initialize(self, config.initializer_range, seed)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Three [b, s] -> logits [b, num_labels] in fp32."""
        _, pooled = self.bert(input_ids, token_type_ids, attention_mask)
        return self.classifier(self.dropout(pooled)).float()


@torch.no_grad()
def initialize(model: nn.Module, deviation: float, seed: int) -> None:
    """Initialize every weight as in BERT: matrices from a normal truncated at two deviations, gains 1, biases 0.

    Each matrix has its own generator, keyed by (seed, its name). Its values do not depend on the other parts of the
    model, the number of workers or earlier draws.
    """
    gains = {id(module.weight) for module in model.modules() if isinstance(module, nn.LayerNorm)}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0 if id(parameter) in gains else 0.0)
            continue
        key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:4], "big"))
        nn.init.trunc_normal_(parameter, 0.0, deviation, -2 * deviation, 2 * deviation, generator)


def load_encoder(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy the `bert.` weights of a checkpoint into `model.bert`; the weights of other heads are ignored.

    A checkpoint trained with masked-LM only has no pooler: the model keeps its own. Raises RuntimeError when a weight
    of the encoder is missing, unknown or has another shape.
    """
    prefix, bert = "bert.", model.get_submodule("bert")
    encoder = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
    if not any(name.startswith("pooler.") for name in encoder):
        encoder |= {name: weight for name, weight in bert.state_dict().items() if name.startswith("pooler.")}
    bert.load_state_dict(encoder)
