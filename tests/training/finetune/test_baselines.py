"""The baselines of fine-tuning."""

import pytest

from cloze.training.finetune.baselines import bag_of_words, bag_of_words_choice, bag_of_words_multilabel, majority


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


@pytest.mark.filterwarnings("error")
def test_a_bag_of_words_learns_each_of_several_labels():
    train = ["red round", "red", "round", "flat", "red flat"] * 3
    labels = [("all", "red", "round"), ("all", "red"), ("all", "round"), ("all",), ("all", "red")] * 3
    found = bag_of_words_multilabel((train, None), labels, (["round red", "flat"], None))
    assert found == [["all", "red", "round"], ["all"]]
    assert bag_of_words_multilabel((["a", "b"], None), [("x",), ("x",)], (["c"], None)) == [["x"]]
    assert bag_of_words_multilabel((["a", "b"] * 3, None), [("x",), ()] * 3, (["a", "b"], None)) == [["x"], []]


def test_a_bag_of_words_chooses_the_choice_whose_words_were_right():
    train = (["who"] * 12, ["the cat", "a dog", "one cat", "no dog"] * 3)
    found = bag_of_words_choice(train, [True, False, True, False] * 3, (["who"] * 4, ["cat", "dog", "dog", "cat"]), 2)
    assert found == [0, 1]
