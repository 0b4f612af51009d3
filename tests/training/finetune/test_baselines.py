"""The baselines of fine-tuning."""

from cloze.training.finetune.baselines import bag_of_words, majority


def test_majority_uses_the_train_labels_only():
    assert majority(["x", "y", "y"], 2) == ["y", "y"]
    assert majority(["y", "x"], 1) == ["x"]


def test_a_bag_of_words_learns_words_in_either_text_of_a_pair():
    train = ["a good film", "a bad film", "good!", "so bad"] * 3
    labels = ["yes", "no", "yes", "no"] * 3
    assert bag_of_words((train, None), labels, (["good", "bad, bad"], None)) == ["yes", "no"]
    same = ["the film"] * len(train)
    assert bag_of_words((same, train), labels, (["the film"] * 2, ["good", "bad"])) == ["yes", "no"]
    assert bag_of_words((["良い", "悪い"] * 3, None), ["yes", "no"] * 3, (["良い"], None)) == ["yes"]
