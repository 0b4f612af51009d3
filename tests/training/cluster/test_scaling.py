"""What a user sees while a cluster that scales adds nodes. tests/test_scaling_cluster.py runs on such a cluster."""

import pytest
from ray._private.state import state

from cloze.pipeline.core.errors import UserError
from cloze.training.cluster import scaling
from cloze.training.cluster.elastic import Placement


@pytest.mark.parametrize(
    ("placement", "seconds", "note"),
    [
        (Placement(8, 1, True), 59, "waiting for 8 GPUs (5 of 8 there)"),
        (Placement(8, 4, True), 299, "waiting for 8 GPUs (3 of 8 there), 4 min"),
        (Placement(1, 9, True), 3600, "waiting for 1 GPU (0 of 1 there), 60 min"),
        (Placement(2, 9, False), 0, "waiting for 2 workers (1 of 2 there)"),
    ],
)
def test_the_note_says_what_is_there_and_for_how_long_the_run_waits(monkeypatch, placement, seconds, note):
    nodes = [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 5.0, "GPU": 1.0}, {"CPU": 12.0}]
    monkeypatch.setattr(scaling, "node_resources", lambda: nodes)
    assert scaling._waiting_note(placement, seconds) == note


def test_nodes_that_the_autoscaler_cannot_start_are_not_waited_for(monkeypatch):
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: {"CPU": 64, "GPU": 4})
    scaling._check_autoscaler(Placement(4, 2, True))
    with pytest.raises(UserError, match="8 GPUs requested, but Ray's autoscaler can start 4 at most; correct max_gpus"):
        scaling._check_autoscaler(Placement(8, 1, True))
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: None)
    scaling._check_autoscaler(Placement(8, 1, True))
