"""Promotions of a toy run that trains every week from the model that was promoted before."""

import json
import threading
from pathlib import Path

import pytest

from cloze.infra import named_runs
from cloze.infra.checks.results import ChecksFailed, require_passed
from cloze.infra.cli import main
from cloze.infra.open_run import open_run
from cloze.infra.planner import Run
from cloze.infra.promote import HeldBack, promote, promote_again, roll_back
from cloze.infra.promotion import registry
from cloze.infra.promotion.registry import Event
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from tests.infra.promotion.toy_pretraining import Weekly


@pytest.fixture
def weekly(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weekly:
    return Weekly(f"{folder}/root", tmp_path, monkeypatch)


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weekly:
    return Weekly(f"{tmp_path}/root", tmp_path, monkeypatch)


def execute(run: Run) -> list[str]:
    """Executes as `cloze run` does; returns what was done with each stage."""
    actions: list[str] = []
    for name in run.stages:
        actions.append(run.execute(name)[0].action)
        require_passed(run.check_results(name))
    return actions


def digest(run: Run) -> str:
    artifact = run.artifact("pretrain")
    assert artifact
    return artifact.manifest.facts["checkpoint"]["digest"]


def init(run: Run) -> str | None:
    assert run.resolved_config.pretrain
    return run.resolved_config.pretrain.init


def promoted(weekly: Weekly, loss: float) -> Run:
    """A week: its run is executed and promoted."""
    run = weekly.run(loss=loss)
    execute(run)
    promote(run)
    return run


def test_each_week_starts_from_the_week_before_and_never_from_its_own_result(weekly: Weekly) -> None:
    first = weekly.run(loss=3.0)
    assert init(first) is None
    assert "nothing is promoted as weekly" in first.notes[0] and "random weights" in first.notes[0]
    execute(first)
    promote(first)
    again = weekly.run()
    assert execute(again) == ["skip"] * 3
    assert init(again) is None and again.notes == ()
    second = weekly.run(loss=2.9)
    assert init(second) == digest(first)
    assert execute(second) == ["skip", "run", "run"]
    promote(second)
    assert execute(weekly.run()) == ["skip"] * 3
    assert init(weekly.run("pretrain.seed=7")) == digest(second)


def test_the_stored_configuration_keeps_the_name(local: Weekly) -> None:
    promoted(local, 3.0)
    named_runs.store(local.run(loss=2.9).config)
    assert "init: weekly@promoted" in (Location(local.root) / "runs/weekly.yaml").read_text()


def test_a_model_that_got_worse_stops_the_run_and_is_not_promoted(local: Weekly) -> None:
    first = promoted(local, 3.0)
    for _ in range(2):
        worse = local.run(loss=3.2)
        with pytest.raises(
            ChecksFailed, match=r"pretrain: held-out loss 3.2000, 3.0000 of the best promoted model: 6.67 %"
        ):
            execute(worse)
        with pytest.raises(ChecksFailed):
            worse.execute("finetune-authors")
        assert worse.artifact("finetune-authors") is None
        with pytest.raises(UserError, match=r"weekly: finetune-authors is not finished"):
            promote(worse)
    accepted = local.run("checks.max_loss_increase=0.07")
    execute(accepted)
    with pytest.raises(ChecksFailed):
        promote(local.run())
    assert registry.current(first.root, "weekly").digest == digest(first)  # type: ignore[union-attr]
    assert promote(accepted).digest == digest(accepted)


def test_a_model_that_gets_a_little_worse_every_week_is_compared_with_the_best(local: Weekly) -> None:
    for loss in (3.1, 3.0, 3.05):
        promoted(local, loss)
    with pytest.raises(ChecksFailed, match=r"held-out loss 3.1000, 3.0000 of the best promoted model: 3.33 % higher"):
        execute(local.run(loss=3.1))  # 1.6 % higher than the last
    roll_back(promoted(local, 2.0).root, "weekly")
    execute(accepted := local.run("checks.max_loss_increase=0.04", loss=3.1))
    promote(accepted)
    promoted(local, 3.15)  # a person has promoted 3.1, with which begins what is compared


def test_scores_that_fall_a_little_every_week_are_compared_with_the_best(local: Weekly) -> None:
    for loss, score in ((3.0, 0.9), (2.9, 0.88)):
        execute(run := local.run(loss=loss, score=score))
        promote(run)
    with pytest.raises(ChecksFailed, match=r"accuracy 0.860 .*, 0.900 \(0.880 to 0.920\) of the best promoted model"):
        execute(local.run(loss=2.8, score=0.86))  # within the intervals of the last


def test_a_run_is_compared_with_what_it_replaces_also_under_another_name(local: Weekly) -> None:
    execute(first := local.run(loss=3.0))
    promote(first, "prod")
    execute(worse := local.run(loss=9.0))  # nothing is promoted as weekly
    with pytest.raises(ChecksFailed, match=r"held-out loss 9.0000, 3.0000 of the best promoted model"):
        promote(worse, "prod")


def test_a_model_that_cannot_be_compared_is_left_to_a_person(local: Weekly) -> None:
    run = promoted(local, 3.0)
    event = registry.current(run.root, "weekly")
    assert event
    event.stages["pretrain"].figures["held-out loss"][0].basis["vocab.txt"] = "another"
    event.stages["finetune-authors"].figures["score"][0].basis["labelled files"] = "others"
    assert registry.append(run.root, "weekly", event, after=event.number)
    execute(other := local.run(loss=2.9))
    with pytest.raises(HeldBack, match=r"weekly: no loss or score can be compared with the promoted model's"):
        promote(other, automatic=True)
    assert promote(other).digest == digest(other)


def test_a_score_is_compared_by_its_interval(local: Weekly) -> None:
    promoted(local, 3.0)
    execute(local.run(loss=2.9, score=0.88))  # within the intervals
    with pytest.raises(
        ChecksFailed, match=r"finetune-authors: accuracy 0.800 \(0.780 to 0.820\), 0.900 \(0.880 to 0.9"
    ):
        execute(local.run(loss=2.8, score=0.8))


def test_losses_of_other_vocabularies_or_settings_are_not_compared(local: Weekly) -> None:
    promoted(local, 3.0)
    other = local.run("tokens.splitter=null", loss=9.0)
    event = registry.current(other.root, "weekly")
    assert event
    figures = event.stages["pretrain"].figures["held-out loss"]
    figures[0].basis["vocab.txt"] = "another"
    assert registry.append(other.root, "weekly", event, after=event.number)
    execute(other)
    [_, compared] = other.check_results("pretrain")
    assert compared.message == "not compared with the promoted model: vocab.txt changed"


def test_a_loss_that_is_not_finite_stops_the_run(local: Weekly) -> None:
    local.source.write_text('{"loss": NaN, "score": 0.9}')
    with pytest.raises(ChecksFailed, match=r"pretrain: training loss is nan, not a finite number"):
        execute(local.run())


def test_a_rollback_returns_to_the_model_before_and_automatic_promotion_leaves_it(weekly: Weekly) -> None:
    first, second = promoted(weekly, 3.0), promoted(weekly, 2.9)
    root = first.root
    event = roll_back(root, "weekly", why="wrong register", by="ann@host")
    assert (event.digest, event.restores, event.by) == (digest(first), 1, "ann@host")
    with pytest.raises(
        HeldBack, match=r"weekly: what event 2 promoted from the same files was rolled back; promote it by"
    ):
        promote(weekly.run(), automatic=True)
    assert execute(weekly.run()) == ["skip"] * 3  # still made from the first one
    assert promote(weekly.run()).digest == digest(second)
    assert roll_back(root, "weekly").restores == 1
    assert promote_again(root, "weekly", 2).digest == digest(second)
    assert roll_back(root, "weekly").restores == 1
    with pytest.raises(UserError, match=r"--event 9: weekly has the events 1 to 7"):
        promote_again(root, "weekly", 9)
    with pytest.raises(UserError, match=r"weekly: no other model was promoted before the present one, "):
        roll_back(root, "weekly")
    assert [event.kind[0] for event in registry.events(root, "weekly")] == [*"pprprpr"]


def test_promoting_the_same_outputs_again_adds_no_event(local: Weekly) -> None:
    run = promoted(local, 3.0)
    assert promote(local.run()).number == 1
    assert promote(local.run(), "prod").number == 1
    assert registry.names(run.root) == ["prod", "weekly"]


def test_of_two_that_promote_at_once_both_events_are_kept(weekly: Weekly) -> None:
    event = Event(number=0, kind="promote", digest="d", run="weekly", stages={}, config="", by="", when="")
    root, start = Location(weekly.root), threading.Barrier(4)

    def append(number: int) -> None:
        start.wait()
        why = event.model_copy(update={"why": str(number)})
        while registry.append(root, "weekly", why, after=len(registry.events(root, "weekly"))) is None:
            pass

    threads = [threading.Thread(target=append, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = registry.events(root, "weekly")
    assert [event.number for event in found] == [1, 2, 3, 4]
    assert sorted(event.why for event in found) == ["0", "1", "2", "3"]


def test_a_promoted_run_is_read_as_it_was_promoted(weekly: Weekly) -> None:
    first = promoted(weekly, 3.0)
    execute(weekly.run("pretrain.seed=5", loss=2.5))
    weekly.source.unlink()
    run = open_run("weekly@promoted", root=weekly.root)
    assert [planned.action for planned in run.plan()] == ["skip"] * 3
    assert digest(run) == digest(first)
    assert run.page.name == "weekly@promoted.html"
    with pytest.raises(UserError, match=r"pretrain.seed=5: weekly@promoted is read as it was promoted"):
        open_run("weekly@promoted", ["pretrain.seed=5"], weekly.root)
    assert promote(run, "prod").digest == digest(first)


def test_what_is_not_finished_or_lacks_a_file_is_not_promoted(local: Weekly) -> None:
    run = local.run(loss=3.0)
    run.execute("vocab")
    with pytest.raises(UserError, match=r"weekly: pretrain is not finished under .*; finish it with cloze run"):
        promote(run)
    execute(run)
    artifact = run.artifact("finetune-authors")
    assert artifact
    (artifact.location / "scores.json").delete()
    with pytest.raises(UserError, match=r"scores.json: is missing or truncated; write it again"):
        promote(run)
    with pytest.raises(UserError, match=r"nothing is promoted as weekly under .*; promote a finished run with cloze"):
        open_run("weekly@promoted", root=local.root)
    with pytest.raises(UserError, match=r"nothing: nothing is promoted under this name"):
        roll_back(run.root, "nothing")


def test_a_task_without_a_promoted_model_names_the_command(local: Weekly) -> None:
    settings = {"learning_rate": 1e-4, "batch_size": 8, "epochs": 1}
    task = {"name": "t", "kind": "classification", "file": "labels.jsonl", "init": "other@promoted", **settings}
    run = local.run(f"finetune={json.dumps([task])}", loss=3.0)
    with pytest.raises(UserError, match=r"finetune.t.init: other@promoted: nothing is promoted as other .* --as other"):
        run.plan()
    execute(local.run())
    event = promote(local.run(), "other")
    assert run.resolved_config.finetune[0].init == event.digest


def test_the_command_promotes_lists_and_rolls_back(local: Weekly, capsys: pytest.CaptureFixture[str]) -> None:
    named_runs.store(local.run(loss=3.0).config)
    execute(local.run())
    of_run = ["promote", "weekly", "--root", local.root]
    assert main([*of_run, "--as", "prod", "--why", "the first"]) == 0
    first = digest(local.run())
    assert capsys.readouterr().out == f"promoted weekly {first[:12]} as prod\n"
    execute(local.run(loss=2.9))
    assert main([*of_run, "--as", "prod"]) == 0
    assert capsys.readouterr().out.endswith(f"as prod; before: weekly {first[:12]}\n")
    assert main([*of_run, "--as", "prod"]) == 0
    assert "is promoted as prod already" in capsys.readouterr().out
    assert main(["promote", "prod", "--root", local.root, "--rollback", "--why", "slow"]) == 0
    assert capsys.readouterr().out.startswith(f"prod is again weekly {first[:12]}, promoted 20")
    assert main(["promote", "prod", "--root", local.root, "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(event["kind"], event["why"]) for event in listed] == [
        ("promote", "the first"),
        ("promote", ""),
        ("rollback", "slow"),
    ]
    assert listed[0]["stages"]["pretrain"]["folder"] == "pretrain"
    assert main(["run", "prod@promoted", "--root", local.root]) == 2
    assert "is finished, run has nothing to do" in capsys.readouterr().err
    assert main(["promote", "weekly", "--root", local.root, "--as", "a/b"]) == 2
    assert "--as a/b: is not a name" in capsys.readouterr().err
