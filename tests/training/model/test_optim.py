"""The optimizer against BERT's own formula, step by step, and the learning rate schedule at its corner points."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cloze.pipeline.core.config import load
from cloze.training.model.bert import BertConfig, BertForPreTraining
from cloze.training.model.optim import LossScale, OptimizerConfig, adamw, learning_rate_at, parameter_groups

CONFIG = OptimizerConfig(learning_rate=0.01, warmup_steps=10)


def reference(weights: np.ndarray, gradients: list[np.ndarray], decay: float, corrected: bool) -> np.ndarray:
    """BERT's AdamWeightDecayOptimizer in fp64; `corrected` applies the bias correction of Kingma and Ba."""
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    for step, gradient in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        m = first / (1 - 0.9**step) if corrected else first
        v = second / (1 - 0.999**step) if corrected else second
        weights = weights - 0.01 * (m / (np.sqrt(v) + 1e-6) + decay * weights)
    return weights


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_five_updates_follow_the_formula(corrected: bool, decay: float):
    random = np.random.default_rng(2)
    start = random.normal(size=(7, 3))
    gradients = [random.normal(size=(7, 3)) for _ in range(5)]
    weight = nn.Parameter(torch.tensor(start))
    config = CONFIG.model_copy(update={"bias_correction": corrected})
    optimizer = adamw([{"params": [weight], "weight_decay": decay}], config)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    expected = reference(start, gradients, decay, corrected)
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-6, atol=1e-9)
    assert abs(expected - reference(start, gradients, decay, not corrected)).max() > 1e-3


def test_both_optimizers_have_the_same_state_names_and_restore_it():
    for corrected in (False, True):
        config = CONFIG.model_copy(update={"bias_correction": corrected})
        weight = nn.Parameter(torch.ones(3))
        optimizer = adamw([{"params": [weight]}], config)
        weight.grad = torch.tensor([1.0, -2.0, 3.0])
        optimizer.step()
        assert set(optimizer.state[weight]) == {"step", "exp_avg", "exp_avg_sq"}
        assert optimizer.state[weight]["step"] == 1

        copied = nn.Parameter(weight.detach().clone())
        restored = adamw([{"params": [copied]}], config)
        restored.load_state_dict(deepcopy(optimizer.state_dict()))  # else it would share the moments
        for parameter, each in ((weight, optimizer), (copied, restored)):
            parameter.grad = torch.tensor([0.5, 0.5, 0.5])
            each.step()
        assert torch.equal(weight, copied)


def test_parameters_without_a_gradient_are_not_updated():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = adamw([{"params": [used, unused], "weight_decay": 0.1}], CONFIG)
    used.grad = torch.ones(2)
    optimizer.step()
    assert (used < 1).all()
    assert (unused == 1).all()


def test_biases_and_layer_norms_are_not_decayed():
    config = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    model = BertForPreTraining(config, 20)
    decayed, free = parameter_groups(model, 0.01)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.01, 0.0)
    assert {id(parameter) for parameter in decayed["params"]} == {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Embedding)
    }
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero():
    rates = [learning_rate_at(step, CONFIG, total_steps=110) for step in range(111)]
    assert rates[0] == pytest.approx(0.001)
    assert rates[9] == rates[10] == pytest.approx(0.01)
    assert rates[60] == pytest.approx(0.005)
    assert rates[109] == pytest.approx(0.0001)
    assert rates[110] == 0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_without_warmup_the_first_update_has_the_peak():
    config = OptimizerConfig(learning_rate=0.5)
    assert learning_rate_at(0, config, total_steps=4) == 0.5
    assert learning_rate_at(3, config, total_steps=4) == 0.125


def test_warmup_may_last_to_the_end():
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=4)
    assert [learning_rate_at(step, config, total_steps=4) for step in range(5)] == [0.125, 0.25, 0.375, 0.5, 0.0]


def test_settings_are_read_from_yaml(tmp_path: Path):
    file = tmp_path / "optimizer.yaml"
    file.write_text("learning_rate: 1e-4\nbetas: [0.9, 0.98]\nwarmup_steps: 10000\n")
    config = load(OptimizerConfig, file)
    assert (config.learning_rate, config.betas, config.warmup_steps) == (1e-4, (0.9, 0.98), 10_000)


def test_a_loss_scale_halves_at_each_overflow_and_doubles_after_two_thousand_good_steps() -> None:
    scale = LossScale(2.0**16)
    for _ in range(1999):
        scale = scale.after_step(overflowed=False)
    assert scale.factor == 2**16 and scale.after_step(overflowed=False) == LossScale(2.0**17)
    assert scale.after_step(overflowed=True) == LossScale(2.0**15)


def test_a_loss_scale_never_falls_below_one() -> None:
    scale = LossScale(2.0)
    assert scale.can_decrease
    scale = scale.after_step(overflowed=True)
    assert not scale.can_decrease and scale == scale.after_step(overflowed=True) == LossScale(1.0)
