"""The baselines of fine-tuning."""

from cloze.training.finetune.baselines import majority


def test_majority_uses_the_train_labels_only():
    assert majority(["x", "y", "y"], 2) == ["y", "y"]
    assert majority(["y", "x"], 1) == ["x"]
