"""The loss that keeps no logits equals cross_entropy of the logits, with its gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cloze.pipeline.core.schema import IGNORE_INDEX
from cloze.training.model import masked_lm_loss
from cloze.training.model.bert import _VOCAB_MULTIPLE, BertConfig, BertForPreTraining
from cloze.training.model.masked_lm_loss import MaskedLMSums, masked_lm_sums, softmax_step

ROWS, SIZE, VOCAB = 50, 24, 211
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}  # relative norms


@pytest.fixture
def head() -> dict[str, Tensor]:
    torch.manual_seed(0)
    tensors = {
        "hidden": torch.randn(ROWS, SIZE),
        "weight": torch.randn(VOCAB, SIZE) / SIZE**0.5,
        "bias": torch.randn(VOCAB),
    }
    labels = torch.randint(0, VOCAB, (ROWS,))
    labels[:20] = functional.linear(*tensors.values()).argmax(-1)[:20]  # right predictions
    labels[[3, 8, ROWS - 1]] = IGNORE_INDEX
    return {**{name: tensor.requires_grad_() for name, tensor in tensors.items()}, "labels": labels}


def with_logits(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> MaskedLMSums:
    logits = functional.linear(hidden, weight, bias).float()
    loss = functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE_INDEX)
    return MaskedLMSums(loss, (logits.argmax(-1) == labels).sum())


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("chunk", [1, 7, ROWS, 1024])
def test_loss_right_predictions_and_gradients_are_those_of_the_logits(head, chunk, monkeypatch):
    monkeypatch.setattr(masked_lm_loss, "CHUNK_ROWS", chunk)
    results = []
    for compute in (with_logits, masked_lm_sums):
        sums = compute(**head)
        gradients = torch.autograd.grad(sums.loss * 0.37, [head[name] for name in ("hidden", "weight", "bias")])
        results.append((sums, gradients))
    (expected, expected_gradients), (found, gradients) = results
    assert found.correct == expected.correct > 0
    assert distance(found.loss, expected.loss) < 1e-6
    assert all(map(lambda one, other: distance(one, other) < 1e-5, gradients, expected_gradients))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_round_no_more_than_with_logits(head, dtype):
    exact = masked_lm_sums(**head)
    expected = torch.autograd.grad(exact.loss, head["weight"])[0]
    with torch.autocast("cpu", dtype):
        found = masked_lm_sums(**head)
    gradient = torch.autograd.grad(found.loss, head["weight"])[0]
    assert found.loss.dtype == gradient.dtype == torch.float32
    assert distance(found.loss, exact.loss) < TOLERANCE[dtype]
    assert distance(gradient, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("positions", [3, 5119])
def test_a_mean_over_any_number_of_positions_does_not_scale_the_gradients(head, dtype, positions):
    """1 / 5119 in bf16 is 0.1 % too small: the factor of the loss must not be rounded to 16 bits."""
    with torch.autocast("cpu", dtype):
        whole, mean = masked_lm_sums(**head), masked_lm_sums(**head)
    for name in ("hidden", "weight", "bias"):
        expected = torch.autograd.grad(whole.loss, head[name], retain_graph=True)[0]
        gradient = torch.autograd.grad(mean.loss / positions, head[name], retain_graph=True)[0]
        assert distance(gradient * positions, expected) < 1e-6


def test_fp16_keeps_the_gradients_of_improbable_pieces():
    """A hundred thousand pieces of equal probability: their gradients are 1e-5, which fp16 cannot hold in full."""
    logits = torch.zeros(1, 100_000, dtype=torch.float16)
    _, _, gradient = softmax_step(logits, torch.tensor([0]))
    scaled = gradient[0, 1:].float() / masked_lm_loss._FP16_SCALE
    assert abs(scaled.mean() * 100_000 - 1) < 1e-3


def test_no_tensor_of_positions_times_pieces_is_kept_for_the_backward_pass(head):
    kept = list[tuple[int, ...]]()

    def record(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    for compute, keeps_logits in ((with_logits, True), (masked_lm_sums, False)):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            compute(**head)
        assert ((ROWS, VOCAB) in kept) == keeps_logits


def test_an_evaluation_computes_no_gradients(head, monkeypatch):
    products = list[int]()
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda *given: (products.append(1), product(*given))[1])
    with torch.no_grad():
        evaluated = masked_lm_sums(**head)
    assert not products and not evaluated.loss.requires_grad
    assert masked_lm_sums(**head).loss.detach() == evaluated.loss and products


def test_only_ignored_positions_have_a_loss_of_zero(head):
    sums = masked_lm_sums(**{**head, "labels": torch.full((ROWS,), IGNORE_INDEX)})
    assert sums == (0, 0)
    assert not any(gradient.any() for gradient in torch.autograd.grad(sums.loss, [head["hidden"], head["weight"]]))


@pytest.mark.parametrize("multiple", [1, 64])
def test_the_model_returns_the_sums_of_its_logits(multiple, monkeypatch):
    monkeypatch.setitem(_VOCAB_MULTIPLE, "cpu", multiple)  # 211 pieces are padded to 256
    config = BertConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=96)
    model = BertForPreTraining(config, VOCAB, seed=1).eval()
    ids = torch.randint(5, VOCAB, (3, 20), generator=torch.Generator().manual_seed(0))
    positions, labels = torch.tensor([1, 5, 25, 0]), torch.tensor([9, 200, 17, IGNORE_INDEX])
    logits, nsp = model(ids, torch.zeros_like(ids), None, positions)
    sums, same_nsp = model(ids, torch.zeros_like(ids), None, positions, labels)
    assert torch.equal(nsp, same_nsp) and logits.shape == (4, VOCAB)
    found, expected = [], functional.cross_entropy(logits, labels, reduction="sum")
    for loss in (expected, sums.loss):
        model.zero_grad()
        loss.backward()
        found.append(
            {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        )
    assert distance(sums.loss, expected) < 1e-6
    assert all(distance(found[1][name], gradient) < 1e-5 for name, gradient in found[0].items())
