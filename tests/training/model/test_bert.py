"""Comparison with transformers' BERT: same weights and input, same outputs and gradients."""

from collections.abc import Mapping

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig as TheirConfig
from transformers import BertForMaskedLM as TheirMaskedLM
from transformers import BertForPreTraining as TheirBert
from transformers import BertForSequenceClassification as TheirClassifier

from cloze.training.finetune.heads import SequenceClassifier
from cloze.training.model.bert import (
    _VOCAB_MULTIPLE,
    BertConfig,
    BertForPreTraining,
    BertModel,
    Dropout,
    load_encoder,
)
from cloze.training.model.linear import linear
from cloze.training.model.transformers_names import BERT

VOCAB = 211
PARTS = ("weight", "bias")
CONFIG = BertConfig(
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=96,
    max_position_embeddings=40,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def their_config(**settings: object) -> TheirConfig:
    return TheirConfig(vocab_size=VOCAB, attn_implementation="eager", **CONFIG.model_dump(), **settings)


def sequence_classifier(
    labels: int, config: BertConfig = CONFIG, vocab: int = VOCAB, seed: int = 0
) -> SequenceClassifier:
    return SequenceClassifier(BertModel(config, vocab), config, labels, seed)


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    """Four rows of 33, 33, 20 and 7 pieces padded to 33, two segments in each, one masked piece in five."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.tensor([33, 33, 20, 7])[:, None]
    places = torch.arange(33)[None, :]
    real = (places < lengths).long()
    masked = (torch.rand(4, 33, generator=generator) < 0.2) & real.bool()
    return {
        "input_ids": torch.randint(5, VOCAB, (4, 33), generator=generator) * real,
        "token_type_ids": (places >= lengths // 2).long() * real,
        "attention_mask": real,
        "positions": masked.flatten().nonzero().flatten(),
        "labels": torch.randint(5, VOCAB, (int(masked.sum()),), generator=generator),
        "next_sentence_label": torch.tensor([0, 1, 1, 0]),
    }


@pytest.fixture(scope="module")
def pair() -> tuple[BertForPreTraining, TheirBert]:
    """Both models with the same weights, all different from their initial values."""
    torch.manual_seed(3)
    theirs = TheirBert(their_config())
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model = BertForPreTraining(CONFIG, VOCAB)
    model.load_state_dict(BERT.from_transformers(theirs.state_dict()))
    return model, theirs


def their_labels(batch):
    """Labels as transformers expects them: -100 at positions that are not masked, [b, s]."""
    labels = torch.full((batch["input_ids"].numel(),), -100).index_copy(0, batch["positions"], batch["labels"])
    return labels.view_as(batch["input_ids"])


def assert_gradients_close(model, theirs):
    gradients = BERT.from_transformers({name: parameter.grad for name, parameter in theirs.named_parameters()})
    mine = dict(model.named_parameters())
    assert gradients.keys() == mine.keys()
    for name, parameter in mine.items():
        assert_close(parameter.grad, gradients[name])


def encoder_input(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")}


def assert_close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def test_hidden_states_equal_those_of_transformers(pair, batch):
    model, theirs = pair
    hidden, pooled = model.bert(**encoder_input(batch))
    expected = theirs.bert(**encoder_input(batch))
    real = batch["attention_mask"].bool()
    assert_close(hidden[real], expected.last_hidden_state[real])
    assert_close(pooled, expected.pooler_output)
    # the comparison is sensitive to padding: without the mask the states differ
    unmasked, _ = model.bert(batch["input_ids"], batch["token_type_ids"], torch.ones_like(batch["attention_mask"]))
    assert (unmasked[real] - expected.last_hidden_state[real]).abs().max() > 1e-2


def test_logits_losses_and_every_gradient_equal_those_of_transformers(pair, batch):
    model, theirs = pair
    mlm, nsp = model(**encoder_input(batch), masked_lm_positions=batch["positions"])
    mlm_loss = functional.cross_entropy(mlm, batch["labels"])
    nsp_loss = functional.cross_entropy(nsp, batch["next_sentence_label"])
    (mlm_loss + nsp_loss).backward()

    expected = theirs(**encoder_input(batch))
    their_mlm = expected.prediction_logits.flatten(0, 1)[batch["positions"]]
    assert_close(mlm, their_mlm)
    assert_close(nsp, expected.seq_relationship_logits)
    assert_close(mlm_loss, functional.cross_entropy(their_mlm, batch["labels"]))
    assert_close(nsp_loss, functional.cross_entropy(expected.seq_relationship_logits, batch["next_sentence_label"]))

    whole = theirs(
        **encoder_input(batch),
        labels=their_labels(batch),
        next_sentence_label=batch["next_sentence_label"],
    )
    assert_close(mlm_loss + nsp_loss, whole.loss)
    whole.loss.backward()
    assert_gradients_close(model, theirs)


def test_masked_lm_only_loss_and_every_gradient_equal_those_of_transformers(batch):
    torch.manual_seed(6)
    theirs = TheirMaskedLM(their_config())
    model = BertForPreTraining(CONFIG, VOCAB, nsp=False)
    model.load_state_dict(BERT.from_transformers(theirs.state_dict()))
    mlm, nsp = model(**encoder_input(batch), masked_lm_positions=batch["positions"])
    assert nsp is None
    loss = functional.cross_entropy(mlm, batch["labels"])
    loss.backward()
    expected = theirs(**encoder_input(batch), labels=their_labels(batch))
    assert_close(mlm, expected.logits.flatten(0, 1)[batch["positions"]])
    assert_close(loss, expected.loss)
    expected.loss.backward()
    assert_gradients_close(model, theirs)
    for name, parameter in model.named_parameters():
        assert parameter.grad.any(), name  # every parameter is trained


def test_classifier_equals_that_of_transformers(batch):
    torch.manual_seed(4)
    theirs = TheirClassifier(their_config(num_labels=5)).eval()
    model = sequence_classifier(5).eval()
    model.load_state_dict(BERT.from_transformers(theirs.state_dict()))
    assert_close(model(**encoder_input(batch)), theirs(**encoder_input(batch)).logits)


def test_padding_changes_nothing_at_the_real_positions(pair, batch):
    model, _ = pair
    padded, _ = model.bert(**encoder_input(batch))
    alone, _ = model.bert(**{name: tensor[3:, :7] for name, tensor in encoder_input(batch).items()})
    assert_close(padded[3:, :7], alone)


def test_weights_start_from_the_truncated_normal_of_bert():
    model = BertForPreTraining(CONFIG, VOCAB, seed=1)
    words = model.bert.embeddings.word_embeddings.weight
    assert words.abs().max() <= 0.04
    assert words.std().item() == pytest.approx(0.02 * 0.8796, rel=0.02)  # the deviation of the truncated distribution
    assert not model.bert.layers[0].attention.qkv.bias.any()
    assert (model.bert.layers[0].output_norm.weight == 1).all()


def test_weights_depend_only_on_the_seed():
    torch.manual_seed(1)
    first = BertForPreTraining(CONFIG, VOCAB, seed=1).state_dict()
    torch.manual_seed(2)
    again = BertForPreTraining(CONFIG, VOCAB, seed=1).state_dict()
    classifier = sequence_classifier(3, seed=1).state_dict()
    alone = BertForPreTraining(CONFIG, VOCAB, seed=1, nsp=False).state_dict()
    other = BertForPreTraining(CONFIG, VOCAB, seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], classifier[name]) for name in first if name.startswith("bert."))
    assert first.keys() - alone.keys() == {f"{head}.{leaf}" for head in ("bert.pooler", "nsp") for leaf in PARTS}
    assert all(torch.equal(first[name], alone[name]) for name in alone)
    assert not torch.equal(first["nsp.weight"], other["nsp.weight"])
    assert not torch.equal(first["bert.layers.0.output.weight"], first["bert.layers.1.output.weight"])


def test_a_vocabulary_padded_for_tensor_cores_gives_the_same_logits_and_gradients(batch, monkeypatch):
    """211 pieces are padded to 256 in the product; the weights keep their shape."""
    found, shapes = [], []
    words = {VOCAB, 256}  # the number of rows of the decoder only
    record = lambda *given: (given[1].shape[0] in words and shapes.append(given[1].shape)) or linear(*given)  # noqa: E731
    monkeypatch.setattr("cloze.training.model.bert.linear", record)
    for multiple in (1, 64):
        monkeypatch.setitem(_VOCAB_MULTIPLE, "cpu", multiple)
        model = BertForPreTraining(CONFIG, VOCAB, seed=1)
        mlm, _ = model(**encoder_input(batch), masked_lm_positions=batch["positions"])
        functional.cross_entropy(mlm, batch["labels"]).backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        found.append({"logits": mlm, **gradients})
    plain, padded = found
    assert shapes == [(211, 48), (256, 48)]
    assert plain.keys() == padded.keys() >= {"mlm.bias", "bert.embeddings.word_embeddings.weight"}
    for name, tensor in plain.items():
        assert padded[name].shape == tensor.shape
        torch.testing.assert_close(padded[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_full_rows_need_no_mask(pair, batch, training):
    full = {name: tensor[:2] for name, tensor in encoder_input(batch).items()}
    config = CONFIG.model_copy(
        update={"attention_probs_dropout_prob": 0.1}
    )  # training and evaluation use different code
    model = BertForPreTraining(config, VOCAB).train(training)
    model.load_state_dict(pair[0].state_dict())
    positions, found = torch.arange(66), []
    for mask in (full["attention_mask"], None):
        torch.manual_seed(1)
        found.append(model(**full | {"attention_mask": mask}, masked_lm_positions=positions))
    for masked, unmasked in zip(*found, strict=True):
        torch.testing.assert_close(unmasked, masked, rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_activation_checkpointing_computes_layers_twice_and_gives_the_same_bits(batch, precision):
    config = CONFIG.model_copy(update={"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1})
    seen = []
    for recomputes in (False, True):
        model, layers = BertForPreTraining(config, VOCAB, seed=1, activation_checkpointing=recomputes), []
        for layer in model.bert.layers:
            layer.register_forward_pre_hook(lambda *_, layers=layers: layers.append(1))
        torch.manual_seed(8)
        with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
            mlm, nsp = model(**encoder_input(batch), masked_lm_positions=batch["positions"])
        loss = functional.cross_entropy(mlm, batch["labels"])
        (loss + functional.cross_entropy(nsp, batch["next_sentence_label"])).backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        seen.append((len(layers), {"mlm": mlm, "nsp": nsp, "next draw": torch.rand(1), **gradients}))
    (once, expected), (twice, found) = seen
    assert (once, twice) == (3, 6)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_dropout_acts_in_training_only():
    config = CONFIG.model_copy(update={"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1})
    model = sequence_classifier(3, config)
    ids = torch.arange(20)[None, :]
    arguments = (ids, torch.zeros_like(ids), torch.ones_like(ids))
    assert not torch.equal(model.bert(*arguments)[0], model.bert(*arguments)[0])
    model.eval()
    assert torch.equal(model.bert(*arguments)[0], model.bert(*arguments)[0])


def test_a_pretraining_checkpoint_loads_into_the_classifier(pair):
    model, _ = pair
    classifier = sequence_classifier(3)
    head = classifier.classifier.weight.clone()
    load_encoder(classifier, model.state_dict())
    assert torch.equal(classifier.bert.pooler.weight, model.bert.pooler.weight)
    assert torch.equal(classifier.classifier.weight, head)


def test_with_a_checkpoint_without_a_pooler_the_classifier_keeps_its_own(pair):
    alone = BertForPreTraining(CONFIG, VOCAB, seed=7, nsp=False)
    classifier = sequence_classifier(3, seed=2)
    load_encoder(classifier, alone.state_dict())
    fresh = sequence_classifier(3, seed=2)
    assert torch.equal(classifier.bert.pooler.weight, fresh.bert.pooler.weight)
    assert torch.equal(classifier.bert.layers[2].output.weight, alone.bert.layers[2].output.weight)
    half = {name: tensor for name, tensor in pair[0].state_dict().items() if name != "bert.pooler.bias"}
    with pytest.raises(RuntimeError, match=r"pooler\.bias"):
        load_encoder(classifier, half)


def test_a_checkpoint_of_another_shape_is_an_error(pair):
    model, _ = pair
    with pytest.raises(RuntimeError, match="word_embeddings"):
        load_encoder(sequence_classifier(3, vocab=VOCAB + 1), model.state_dict())
    with pytest.raises(RuntimeError, match=r"layers\.2"):
        deeper = {name: tensor for name, tensor in model.state_dict().items() if ".layers.2." not in name}
        load_encoder(sequence_classifier(3), deeper)


def test_heads_must_divide_the_hidden_size():
    with pytest.raises(ValidationError, match="hidden_size 10 is not a multiple of num_attention_heads 3"):
        BertConfig(hidden_size=10, num_hidden_layers=1, num_attention_heads=3, intermediate_size=8)


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "intermediate", "parameters"),
    [(12, 768, 12, 3072, 110_106_428), (24, 1024, 16, 4096, 336_226_108)],
)
def test_base_and_large_have_the_published_number_of_parameters(layers, hidden, heads, intermediate, parameters):
    config = BertConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=intermediate
    )
    with torch.device("meta"):
        model = BertForPreTraining(config, 30522)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_dropout_zeroes_the_given_fraction_and_keeps_the_mean():
    """A million elements: five standard deviations of the fraction are 0.0015."""
    dropout = Dropout(0.1).train()
    torch.manual_seed(1)
    hidden = torch.ones(1_000_003, requires_grad=True)
    dropped = dropout(hidden)
    share = (dropped == 0).float().mean().item()
    assert share == pytest.approx(0.1, abs=0.0015)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.9], rel=1e-4)
    dropped.sum().backward()
    assert torch.equal(hidden.grad, dropped)
    neighbours = ((dropped[1:] == 0) & (dropped[:-1] == 0)).float().mean().item()
    assert neighbours == pytest.approx(0.01, abs=0.0005)  # each element is dropped independently of the next


def test_dropout_depends_only_on_the_seed_and_does_nothing_in_evaluation():
    hidden = torch.randn(3, 5, 7)
    dropout = Dropout(0.5).train()

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return dropout(hidden)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert dropout.eval()(hidden) is hidden
    assert Dropout(0.0).train()(hidden) is hidden


def test_attention_with_dropout_differs_only_in_the_dropped_weights(pair, batch):
    """A probability below 1 / 65,536 drops nothing but uses the code of training."""
    model, _ = pair
    expected, _ = model.eval().bert(**encoder_input(batch))
    changed = [module for module in model.modules() if isinstance(module, Dropout)]
    try:
        for module in changed:
            module.probability = 1e-9
        hidden, _ = model.train().bert(**encoder_input(batch))
    finally:
        for module in changed:
            module.probability = 0.0
    real = batch["attention_mask"].bool()
    assert_close(hidden[real], expected[real])
