import pytest

from cloze.pipeline.core.beam_losses import LossCounter, LostWorker
from cloze.pipeline.core.beam_workers import LostWorkerError

NODE = "with its node or its process"


def test_a_node_whose_workers_are_idle_is_one_loss():
    losses = LossCounter()
    for _ in range(2):
        losses.add_attempt([LostWorker("", NODE)] * 64, finished_items=False)
    losses.add_attempt([LostWorker(f"range {number}", NODE) for number in range(64)], finished_items=False)
    with pytest.raises(LostWorkerError, match="workers were lost 3 times while no item was finished"):
        losses.add_attempt([LostWorker("", NODE)], finished_items=False)


def test_nodes_may_be_lost_as_often_as_items_are_finished_between():
    losses = LossCounter()
    for _ in range(100):
        losses.add_attempt([LostWorker("", NODE)] * 4, finished_items=True)
    losses.add_attempt([LostWorker("", NODE)], finished_items=False)
    with pytest.raises(LostWorkerError, match="workers were lost 3 times while no item was finished"):
        losses.add_attempt([LostWorker("", NODE)], finished_items=False)


def test_workers_that_never_start_end_the_run_in_one_line():
    losses = LossCounter()
    never = [LostWorker("", "with exit status 1")] * 8
    for _ in range(2):
        losses.add_attempt(never, finished_items=False)
    with pytest.raises(LostWorkerError) as error:
        losses.add_attempt(never, finished_items=False)
    assert str(error.value) == (
        "beam: workers were lost 3 times while no item was finished, the last one with exit status 1: is the memory or "
        "the disk of its node full? Run again: finished work is kept"
    )


def test_an_item_on_which_workers_are_lost_in_three_attempts_ends_the_run_though_others_are_finished():
    losses = LossCounter()
    for number in range(2):
        losses.add_attempt([LostWorker("c", NODE), LostWorker(f"{number}", NODE)], finished_items=True)
    with pytest.raises(LostWorkerError, match=r"^beam: 3 workers were lost, the last one with exit status -9 while it"):
        losses.add_attempt([LostWorker("c", "with exit status -9")], finished_items=True)
