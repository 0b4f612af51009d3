"""One worker of pretraining, in this process: loss spikes, full disks, stop requests, and resuming after each."""

import contextlib
import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.schema import IGNORE_INDEX
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.checkpoint import CheckpointRef, best_checkpoint
from cloze.training.model import hardware
from cloze.training.pretrain import async_save, run_control, trainer
from cloze.training.pretrain.baselines import training_counts, unigram_baseline
from cloze.training.pretrain.cloze_choice import Distractors
from cloze.training.pretrain.data_loader import ExampleDataset
from cloze.training.pretrain.train_state import TrainState
from tests.training.small_examples import PIECES, examples_artifact
from tests.training.small_pretraining import config, last, same_bits, single_worker, small_inputs, steps_of, untimed

pytestmark = pytest.mark.usefixtures("single_process_group")

DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
Inputs = dict[str, Artifact]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return small_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def saved_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps at which a save was tried; at step 4 it always fails, at step 6 the first time."""
    tried: list[int] = []
    real = async_save.save_checkpoint

    def save(artifact: Location, step: int, *rest: Any) -> CheckpointRef:
        tried.append(step)
        if step in (4, 6) and tried.count(step) < (2 if step == 6 else 99):
            raise OSError("No space left on device")
        return real(artifact, step, *rest)

    monkeypatch.setattr(async_save, "save_checkpoint", save)
    monkeypatch.setattr(async_save, "_RETRY_SECONDS", 0.0)
    return tried


def test_a_full_disk_does_not_end_training(inputs: Inputs, tmp_path: Path, saved_at: list[int]) -> None:
    notes: list[str] = []
    worker = single_worker(
        config(keep_checkpoints=9),
        inputs,
        tmp_path,
        on_step=lambda rank, step: worker.saver.wait(),
        report_progress=lambda done, note: notes.append(note) or False,
    )
    worker.train()
    assert saved_at == [2, 4, 4, 4, 6, 6, 8]  # it never succeeds at 4, and at the second attempt at 6
    assert steps_of(tmp_path) == [2, 6, 8]
    failed = "checkpoint at step 4 not written (No space left on device), attempt 3"
    assert failed in notes
    assert [failed in note for note in notes if note.startswith("loss")] == [step in (5, 6) for step in range(1, 9)]


def test_a_store_that_denies_deletions_ends_no_training(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(artifact: Location, keep: int) -> None:
        raise OSError("access is denied")

    monkeypatch.setattr(async_save, "prune_checkpoints", denied)
    notes: list[str] = []
    worker = single_worker(
        config(keep_checkpoints=1), inputs, tmp_path, report_progress=lambda done, note: notes.append(note) or False
    )
    worker.train()
    assert worker.is_finished and steps_of(tmp_path) == [2, 4, 6, 8] and not worker.saver.failure
    assert "old checkpoints not deleted at step 4 (access is denied)" in notes


def test_a_last_checkpoint_that_cannot_be_written_is_an_error_of_one_line(
    inputs: Inputs, tmp_path: Path, saved_at: list[int]
) -> None:
    phases = [{"max_seq_length": 16, "max_predictions_per_seq": 3, "steps": 4}]
    with pytest.raises(UserError, match="the last checkpoint cannot be written"):
        single_worker(config(phases=phases), inputs, tmp_path).train()
    assert last(tmp_path).step == 2


def test_training_continues_while_a_checkpoint_is_written(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save of step 2 ends when step 3 is done; that of step 4 waits for it, and contains the weights of step 4."""
    import threading

    real, third = async_save.save_checkpoint, threading.Event()

    def save(artifact: Location, step: int, *rest: Any) -> CheckpointRef:
        assert step > 2 or third.wait(60)
        return real(artifact, step, *rest)

    def hook(rank: int, step: int) -> None:
        if step == 3:
            assert not (tmp_path / "slow/checkpoints").exists()
            third.set()

    settings = config(keep_checkpoints=9)
    single_worker(settings, inputs, tmp_path / "plain").train()
    monkeypatch.setattr(async_save, "save_checkpoint", save)
    single_worker(settings, inputs, tmp_path / "slow", on_step=hook).train()
    assert steps_of(tmp_path / "slow") == steps_of(tmp_path / "plain") == [2, 4, 6, 8]
    digests = [
        {f.name[:11]: digest(f) for f in (tmp_path / name / "checkpoints").glob("step-*")} for name in ("slow", "plain")
    ]
    assert digests[0] == digests[1]


def digest(folder: Path) -> str:
    return json.loads((folder / "manifest.json").read_bytes())["digest"]


def test_files_finished_by_another_run_are_not_overwritten_and_a_pruned_checkpoint_is_an_os_error(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_save, "_METRICS_SECONDS", -1.0)
    for name in ("manifest.json", "metrics.jsonl"):
        (tmp_path / name).write_text("another's")
    single_worker(config(), inputs, tmp_path).train()
    assert (tmp_path / "metrics.jsonl").read_text() == "another's"
    pruned = last(tmp_path)
    shutil.rmtree(pruned.location.path)
    monkeypatch.setattr(trainer, "newest_checkpoint", lambda location: pruned)
    with pytest.raises(OSError, match="is missing"):  # after which a new group starts
        single_worker(config(), inputs, tmp_path)


def test_a_run_resumes_inside_the_phase_where_it_stopped(inputs: Inputs, tmp_path: Path) -> None:
    """Stopped in either phase, the run resumes inside it. Masks are dynamic in the first and stored in the second."""
    both = {**inputs, "examples-12": examples_artifact(tmp_path / "inputs", length=12, masked=False)}
    phases = [
        {"max_seq_length": length, "max_predictions_per_seq": 3, "steps": steps} for length, steps in ((12, 3), (16, 4))
    ]
    settings = config(phases=phases, checkpoint_every=1, model=config().model.model_dump() | DROPOUT)

    def outcome(folder: str, stop_after: int) -> list[dict[str, Any]]:
        def stop(rank: int, step: int) -> None:
            if step == stop_after:
                raise InterruptedError

        with contextlib.suppress(InterruptedError):
            single_worker(settings, both, tmp_path / folder, stop).train()
        worker = single_worker(settings, both, tmp_path / folder)
        assert worker.state.step == stop_after
        worker.train()
        return untimed(worker.state.metrics.rows)

    whole = outcome("whole", 7)
    assert outcome("first", 2) == outcome("edge", 3) == outcome("second", 5) == whole
    assert [row["step"] for row in whole if row["split"] == "heldout"] == [3, 4, 7]


def schedule_phases(*phases: dict[str, Any]) -> list[dict[str, Any]]:
    """Phases of length 16."""
    return [{"max_seq_length": 16, "max_predictions_per_seq": 3} | phase for phase in phases]


def test_phases_with_their_own_batches_and_schedules_resume_to_the_same_bits(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at the end of a phase, in a second warmup, and in a phase that continues the second schedule."""
    from cloze.training.pretrain.engine import Engine

    phases = schedule_phases(
        {"steps": 4, "micro_batch_size": 6},
        {"steps": 5, "global_batch_size": 8, "learning_rate": 4e-4},
        {"steps": 3, "micro_batch_size": 3},
    )
    model = config().model.model_dump() | DROPOUT
    settings = config(phases=phases, checkpoint_every=1, zero_stage=0, model=model)
    real, sizes = Engine.step, list[list[int]]()

    def step(engine: Engine, batches: Any, *rest: Any) -> Any:
        sizes.append([len(batch.input_ids) for batch in batches])
        return real(engine, batches, *rest)

    monkeypatch.setattr(Engine, "step", step)
    whole = single_worker(settings, inputs, tmp_path / "whole")
    whole.train()
    second = [4e-4 * factor for factor in (0.5, 1, 1, *(part / 6 for part in range(5, 0, -1)))]
    assert rates(whole) == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.5e-3, *second])
    assert sizes == [[6, 6]] * 4 + [[4, 4]] * 5 + [[3, 3, 3, 3]] * 3
    heldout = [row for row in whole.state.metrics.rows if row["split"] == "heldout"]
    assert [(row["step"], row["examples"]) for row in heldout] == [(4, 12), (8, 8), (9, 8), (12, 12)]
    for stop_after in (4, 5, 10):
        folder = tmp_path / str(stop_after)
        single_worker(settings, inputs, folder, report_progress=lambda done, note, end=stop_after: done >= end).train()
        again = single_worker(settings, inputs, folder)
        assert again.state.step == stop_after and again.state.schedule_start == 4
        again.train()
        assert same_bits(last(folder), last(tmp_path / "whole"))
        assert untimed(again.state.metrics.rows) == untimed(whole.state.metrics.rows)


def test_a_state_of_an_earlier_version_has_one_schedule(inputs: Inputs, tmp_path: Path) -> None:
    single_worker(config(), inputs, tmp_path).train()
    state = last(tmp_path).state()
    del state["schedule_start"]
    assert TrainState.from_json(state).schedule_start == 0


def test_evaluations_have_the_baselines_of_the_examples_that_they_use(inputs: Inputs, tmp_path: Path) -> None:
    """24 of the 40 held-out examples in the first phase, all twelve in the second."""
    both = {**inputs, "examples-12": examples_artifact(tmp_path / "inputs", heldout=40, length=12, masked=False)}
    phases = [
        {"max_seq_length": length, "max_predictions_per_seq": 3, "steps": steps} for length, steps in ((12, 4), (16, 2))
    ]
    worker = single_worker(config(phases=phases, eval_every=2, eval_batches=2), both, tmp_path / "out")
    worker.train()
    rows = [row for row in worker.state.metrics.rows if row["split"] == "heldout"]
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row, length in zip(rows, (12, 12, 16), strict=True):
        artifact = both[f"examples-{length}"]
        looked_at = ExampleDataset(artifact, "heldout").sample(0, 24, 12)
        labels = np.concatenate([one.next_sentence_label for one in looked_at])
        assert row["pairs"] == row["examples"] == len(labels) == (24 if length == 12 else 12)
        assert row["pairs_1"] == labels.sum() and 0 <= row["answers_1"] <= row["pairs"]
        assert row["masked"] == sum(len(one.masks.labels.values) for one in looked_at)
        counts = training_counts(ExampleDataset(artifact, "train"), PIECES)
        unigram, distractors = unigram_baseline(counts, looked_at), Distractors(counts, PIECES)
        choices = sum(int((distractors.of_masks(one) != IGNORE_INDEX).sum()) for one in looked_at)
        assert 0 < row["choices"] == choices < row["masked"]
        assert 0 <= row["choice_accuracy"] <= 1 and row["choice_accuracy_baseline"] == 0.5
        assert (row["mlm_loss_baseline"], row["mlm_accuracy_baseline"]) == unigram
    assert rows[1]["mlm_loss_baseline"] != rows[2]["mlm_loss_baseline"]


def test_a_run_resumes_in_the_precision_it_started_with(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the second machine the other precision would be faster."""

    def machine(gain: float) -> None:
        monkeypatch.setattr(trainer, "layer_seconds", lambda shape, where, precisions: [gain, 1.0])

    settings = config(precision="auto", checkpoint_every=4)
    for gain, precision in ((2.0, "bf16"), (0.5, "fp32")):
        machine(gain)
        worker = single_worker(settings, inputs, tmp_path / precision, report_progress=lambda done, note: done >= 4)
        worker.train()
        machine(1 / gain)
        again = single_worker(settings, inputs, tmp_path / precision)
        assert again.state.step == 4 and worker.state.precision == again.state.precision == precision
        again.train()
        assert last(tmp_path / precision).state()["precision"] == precision
    assert not same_bits(last(tmp_path / "bf16"), last(tmp_path / "fp32"))


def test_activation_checkpointing_is_set_by_the_configuration(inputs: Inputs, tmp_path: Path) -> None:
    for wanted in (False, True):
        worker = single_worker(config(activation_checkpointing=wanted), inputs, tmp_path)
        assert worker.engine.model.bert.activation_checkpointing is wanted


def test_every_train_row_has_the_flops_utilization(inputs: Inputs, tmp_path: Path) -> None:
    worker = single_worker(config(), inputs, tmp_path)
    worker.train()
    assert all(0 < row["mfu"] < 1 for row in worker.state.metrics.rows if row["split"] == "train")
    assert last(tmp_path).state()["peak"] == {"flops": worker.state.peak.flops, "origin": "measured"}


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_fp16_steps_that_overflow_are_not_bad_and_a_run_resumes_with_their_scale_to_the_same_bits(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero_stage: int
) -> None:
    """The first steps lower the scale; the run is stopped among them."""
    from cloze.training.pretrain import engine

    monkeypatch.setattr(engine, "_INITIAL_LOSS_SCALE", 2.0**24)
    monkeypatch.setitem(hardware._PEAK_SIZE, "cpu", 64)  # processors take seconds for an fp16 product of the usual size
    settings = config(precision="fp16", zero_stage=zero_stage, max_rollbacks=0)
    whole = single_worker(settings, inputs, tmp_path / "whole")
    whole.train()
    single_worker(settings, inputs, tmp_path / "stopped", report_progress=lambda done, note: done >= 2).train()
    assert last(tmp_path / "stopped").state()["loss_scale"] == [2**22, 0]
    again = single_worker(settings, inputs, tmp_path / "stopped")
    again.train()
    assert same_bits(last(tmp_path / "whole"), last(tmp_path / "stopped"))
    assert untimed(again.state.metrics.rows) == untimed(whole.state.metrics.rows)
    rows = [row for row in whole.state.metrics.rows if row["split"] == "train"]
    overflows = [row["overflows"] for row in rows]
    assert overflows[:2] == [1, 2] and 2 <= overflows[-1] < 8
    assert [row["loss_scale"] for row in rows] == [2.0 ** (24 - count) for count in overflows]
    assert ["grad_norm" in row for row in rows] == [
        count == before for before, count in zip([0, *overflows], overflows, strict=False)
    ]
    assert whole.engine.updates == 8 - overflows[-1] and not (tmp_path / "whole/skipped.jsonl").exists()
    assert b"Infinity" not in (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_fp16_gradients_that_overflow_at_the_lowest_scale_are_bad(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloze.training.pretrain import engine

    monkeypatch.setattr(engine, "_INITIAL_LOSS_SCALE", 2.0)
    monkeypatch.setitem(hardware._PEAK_SIZE, "cpu", 64)
    worker = single_worker(config(precision="fp16", max_rollbacks=0), inputs, tmp_path)
    worker.engine.objective.register_forward_hook(lambda _, given, out: (out[0] * 1e38, out[1]))
    with pytest.raises(UserError, match=r"gradient norm inf at step 2; .*the gradient norm is not finite"):
        worker.train()


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call it with a condition on (updates, numbers of the batch's examples): such steps get NaN losses and weights."""
    from cloze.training.pretrain.engine import Engine
    from cloze.training.pretrain.objective import StepResult

    real = Engine.step

    def install(condition: Callable[[int, set[int]], bool]) -> None:
        def step(engine: Engine, batches: Any, *rest: Any) -> StepResult:
            done = real(engine, batches, *rest)
            assert done
            numbers = {int(piece) - 5 for batch in batches for piece in batch.input_ids[:, 1]}
            if not condition(engine.updates, numbers):
                return done
            for parameter in engine.model.parameters():  # as after an update with such a gradient
                parameter.data.fill_(float("nan"))
            done.sums[0] = float("nan")
            return done

        monkeypatch.setattr(Engine, "step", step)

    return install


def skipped(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def batch_examples(artifact: Artifact, count: int, size: int = 12, seed: int = 0) -> list[list[list[int]]]:
    """The epoch and index of each example in the first `count` batches."""
    batches = islice(ExampleDataset(artifact, "train").batches(seed, 0, size, 64), count)
    return [[[int(epoch), int(index)] for epoch, index in zip(b.epoch, b.index, strict=True)] for b in batches]


BAD = 17  # an example


def test_batches_with_a_bad_example_are_skipped_and_listed_reproducibly(
    inputs: Inputs, tmp_path: Path, spoil: Callable[..., None]
) -> None:
    spoil(lambda updates, numbers: BAD in numbers)
    worker = single_worker(config(max_rollbacks=9), inputs, tmp_path / "once")
    worker.train()
    found, data = skipped(tmp_path / "once"), batch_examples(inputs["examples-16"], 17)
    good = [number for number, batch in enumerate(data) if BAD not in [index for _, index in batch]][:8]
    assert [skip["batch"] for skip in found] == [n for n in range(good[-1]) if n not in good] and len(found) >= 2
    assert [skip["examples"] for skip in found] == [data[skip["batch"]] for skip in found]
    assert {(skip["reason"], skip["value"]) for skip in found} == {("the loss is not finite", "nan")}
    rows = [row for row in worker.state.metrics.rows if row["split"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, 9)) and rows[-1]["skipped"] == len(found)
    assert last(tmp_path / "once").step == 8 and last(tmp_path / "once").state()["skipped"] == found
    single_worker(config(max_rollbacks=9), inputs, tmp_path / "again").train()
    assert skipped(tmp_path / "again") == found
    assert same_bits(last(tmp_path / "once"), last(tmp_path / "again"))


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_rollback_has_the_result_of_training_without_that_batch(
    inputs: Inputs, tmp_path: Path, spoil: Callable[..., None], zero_stage: int
) -> None:
    """Before the first checkpoint and after it: the skipped batch has no effect on the weights."""
    settings = config(zero_stage=zero_stage)
    for name, step in (("first", 1), ("later", 6)):
        once = [step]
        spoil(lambda updates, numbers, once=once: updates in once and not once.clear())
        single_worker(settings, inputs, tmp_path / name).train()
        (found,) = skipped(tmp_path / name)
        assert (found["step"], found["batch"]) == (step, step - 1)
        spoil(lambda updates, numbers: False)
        (tmp_path / f"{name}-without").mkdir()
        (tmp_path / f"{name}-without/skipped.jsonl").write_bytes((tmp_path / name / "skipped.jsonl").read_bytes())
        single_worker(settings, inputs, tmp_path / f"{name}-without").train()
        assert same_bits(last(tmp_path / name), last(tmp_path / f"{name}-without"))
    assert not same_bits(last(tmp_path / "first"), last(tmp_path / "later"))


@pytest.mark.parametrize("stop_after", [4, 6])  # before the next checkpoint, and at it
def test_a_run_stopped_after_a_skip_resumes_to_the_same_bits(
    inputs: Inputs, tmp_path: Path, spoil: Callable[..., None], stop_after: int
) -> None:
    """The spike does not occur again in the resumed run: the batch is skipped because it is listed."""

    def stop(rank: int, step: int) -> None:
        if step == stop_after and (tmp_path / "stopped/skipped.jsonl").exists():
            raise InterruptedError

    for name in ("whole", "stopped"):
        once = [4]
        spoil(lambda updates, numbers, once=once: updates in once and not once.clear())
        with contextlib.suppress(InterruptedError):
            single_worker(config(checkpoint_every=3), inputs, tmp_path / name, stop).train()
        single_worker(config(checkpoint_every=3), inputs, tmp_path / name).train()
    assert same_bits(last(tmp_path / "whole"), last(tmp_path / "stopped"))
    assert skipped(tmp_path / "whole") == skipped(tmp_path / "stopped")
    states = [last(tmp_path / name).state() for name in ("whole", "stopped")]
    assert untimed(states[0]["metrics"]["rows"]) == untimed(states[1]["metrics"]["rows"])


@pytest.mark.parametrize("allowed", [0, 2])
def test_a_loss_that_stays_nan_ends_training_with_one_line(
    inputs: Inputs, tmp_path: Path, spoil: Callable[..., None], allowed: int
) -> None:
    spoil(lambda updates, numbers: updates == 4)
    message = (
        r"^pretrain: loss nan .* at step 4; lower pretrain\.optimizer\.learning_rate .* before: " + f"{allowed}\\)$"
    )
    with pytest.raises(UserError, match=message):
        single_worker(config(max_rollbacks=allowed), inputs, tmp_path).train()
    assert steps_of(tmp_path) == [2]
    if allowed:
        assert [(skip["step"], skip["batch"]) for skip in skipped(tmp_path)] == [(4, 3), (4, 4)]
    with pytest.raises(UserError, match=message):  # also when the run is started again
        single_worker(config(max_rollbacks=allowed), inputs, tmp_path).train()


def test_a_loss_spike_skips_its_batch(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cloze.training.pretrain import loss_spikes
    from cloze.training.pretrain.engine import Engine
    from cloze.training.pretrain.objective import StepResult

    real, once = Engine.step, [6]
    monkeypatch.setattr(loss_spikes, "_RECENT", 3)

    def step(engine: Engine, *given: Any) -> StepResult:
        done = real(engine, *given)
        assert done
        if engine.updates in once:
            once.clear()
            done.sums[0] += 1e4
        return done

    monkeypatch.setattr(Engine, "step", step)
    single_worker(config(), inputs, tmp_path).train()
    (found,) = skipped(tmp_path)
    assert found["step"] == 6 and found["reason"].startswith("the loss is far above the median of 3 steps")
    assert float(found["value"]) > 100
    still_warm = config().optimizer.model_dump() | {"warmup_steps": 6}
    for name, changed in (("unguarded", {"guard_factor": None}), ("in the warmup", {"optimizer": still_warm})):
        once.append(6)
        single_worker(config(**changed), inputs, tmp_path / name).train()
        assert not once and last(tmp_path / name).step == 8
        assert not (tmp_path / name / "skipped.jsonl").exists()


@pytest.mark.parametrize(("warmup_steps", "is_skipped"), [(3, True), (4, False)])
def test_a_second_schedule_has_no_loss_spikes_in_its_warmup(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warmup_steps: int, is_skipped: bool
) -> None:
    """The loss of the fourth step of the second phase is far above those of its first three."""
    from cloze.training.pretrain import loss_spikes
    from cloze.training.pretrain.engine import Engine

    real, once = Engine.step, [8]
    monkeypatch.setattr(loss_spikes, "_RECENT", 3)

    def step(engine: Engine, *given: Any) -> Any:
        done = real(engine, *given)
        if done and engine.updates in once:
            once.clear()
            done.sums[0] += 1e4
        return done

    monkeypatch.setattr(Engine, "step", step)
    phases = schedule_phases({"steps": 4}, {"steps": 6, "global_batch_size": 8, "warmup_steps": warmup_steps})
    worker = single_worker(config(phases=phases), inputs, tmp_path)
    worker.train()
    assert worker.state.step == 10 and not once
    assert (tmp_path / "skipped.jsonl").exists() == is_skipped
    if is_skipped:
        (found,) = skipped(tmp_path)
        assert (found["step"], found["phase"], found["batch"]) == (8, 1, 3)
        _, seed = worker.config.data_seeds
        assert seed != worker.config.seed
        assert found["examples"] == batch_examples(inputs["examples-16"], 4, size=8, seed=seed)[3]


def test_a_loss_that_stays_nan_names_the_keys_of_its_schedule(
    inputs: Inputs, tmp_path: Path, spoil: Callable[..., None]
) -> None:
    spoil(lambda updates, numbers: updates == 6)
    phases = schedule_phases({"steps": 4}, {"steps": 4, "learning_rate": 1e-3})
    message = r"at step 6; lower pretrain\.phases\.1\.learning_rate or raise pretrain\.optimizer\.warmup_steps \("
    with pytest.raises(UserError, match=message):
        single_worker(config(phases=phases, max_rollbacks=0), inputs, tmp_path).train()


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_nan_gradient_is_bad_even_if_the_loss_is_finite(inputs: Inputs, tmp_path: Path, zero_stage: int) -> None:
    """In the first of a step's three micro-batches."""
    worker, once = single_worker(config(zero_stage=zero_stage), inputs, tmp_path), [4]

    def poison(_: Any, given: Any, out: Any) -> None:
        if worker.state.step + 1 in once and out[0].requires_grad:
            once.clear()
            out[0].register_hook(lambda gradient: gradient * float("nan"))

    worker.engine.objective.register_forward_hook(poison)
    worker.train()
    (found,) = skipped(tmp_path)
    assert (found["step"], found["batch"], found["reason"]) == (4, 3, "the gradient norm is not finite")
    assert worker.state.step == 8
    assert all(value.isfinite().all() for value in last(tmp_path).weights().values())


def test_a_stop_request_saves_the_finished_step_and_the_run_resumes_to_the_same_bits(
    inputs: Inputs, tmp_path: Path
) -> None:
    worker = single_worker(config(), inputs, tmp_path / "stopped", report_progress=lambda done, note: done >= 3)
    worker.train()
    assert worker.state.step == last(tmp_path / "stopped").step == 3
    single_worker(config(), inputs, tmp_path / "stopped").train()
    single_worker(config(), inputs, tmp_path / "uninterrupted").train()
    assert same_bits(last(tmp_path / "stopped"), last(tmp_path / "uninterrupted"))


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_long_step_is_abandoned_between_micro_batches_and_the_run_resumes_to_the_same_bits(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero_stage: int
) -> None:
    monkeypatch.setattr(run_control, "_LONG_STEP", -1.0)
    settings = config(zero_stage=zero_stage, checkpoint_every=100, model=config().model.model_dump() | DROPOUT)
    calls: list[float] = []  # for each step: before its second and its third micro-batch, and at its end
    report_progress = lambda done, note: calls.append(done) or len(calls) >= 3 * 3 + 2  # noqa: E731
    worker = single_worker(settings, inputs, tmp_path / "stopped", report_progress=report_progress)
    worker.train()
    assert calls == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert worker.state.step == last(tmp_path / "stopped").step == 3 and worker.engine.updates == 3
    single_worker(settings, inputs, tmp_path / "stopped").train()
    single_worker(settings, inputs, tmp_path / "uninterrupted").train()
    assert same_bits(last(tmp_path / "stopped"), last(tmp_path / "uninterrupted"))


def test_a_preemption_notice_saves_once_and_training_continues(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_control, "_PREEMPTION_CHECK_SECONDS", 0.0)
    answers = iter([False, False, True])
    settings = config(checkpoint_every=100, keep_checkpoints=9)
    single_worker(settings, inputs, tmp_path, is_preempted=lambda: next(answers)).train()
    assert steps_of(tmp_path) == [3, 8]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_in_a_long_step_a_preemption_notice_saves_the_previous_step_and_changes_no_bit(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero_stage: int
) -> None:
    settings = config(zero_stage=zero_stage, checkpoint_every=100, keep_checkpoints=9)
    single_worker(settings, inputs, tmp_path / "uninterrupted").train()
    monkeypatch.setattr(run_control, "_LONG_STEP", -1.0)
    monkeypatch.setattr(run_control, "_PREEMPTION_CHECK_SECONDS", 0.0)
    answers = iter([*[False] * 3 * 3, True])  # for each step: before its second and its third micro-batch, at its end
    single_worker(settings, inputs, tmp_path / "preempted", is_preempted=lambda: next(answers)).train()
    assert steps_of(tmp_path / "preempted") == [3, 8]
    assert same_bits(last(tmp_path / "preempted"), last(tmp_path / "uninterrupted"))
    for folder in (tmp_path / "preempted/checkpoints").glob("step-000008-*"):
        shutil.rmtree(folder)
    assert single_worker(settings, inputs, tmp_path / "preempted").state.step == 3
    single_worker(settings, inputs, tmp_path / "preempted").train()
    assert same_bits(last(tmp_path / "preempted"), last(tmp_path / "uninterrupted"))


def test_metrics_are_written_before_there_is_a_checkpoint(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(rank: int, step: int) -> None:
        if step == 7:
            raise InterruptedError

    def steps() -> list[int]:
        rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        return [row["step"] for row in rows if row["split"] == "train"]

    monkeypatch.setattr(async_save, "_METRICS_SECONDS", -1.0)
    with contextlib.suppress(InterruptedError):
        single_worker(config(checkpoint_every=100), inputs, tmp_path, stop).train()
    assert steps() == list(range(1, 8))
    assert not (tmp_path / "checkpoints").exists()
    single_worker(config(), inputs, tmp_path).train()  # from the first step again
    assert steps() == list(range(1, 9))


def test_the_best_checkpoint_is_kept_in_addition_to_the_last(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([5.0, 3.0, 4.0, 4.5])
    real = trainer.Heldout
    monkeypatch.setattr(trainer, "Heldout", lambda phase, loss: real(phase=phase, loss=next(losses)))
    single_worker(config(keep_checkpoints=1, eval_every=2), inputs, tmp_path).train()
    assert steps_of(tmp_path) == [4, 8]
    found = best_checkpoint(Location(str(tmp_path)))
    assert found and found.step == 4 and found.manifest().heldout == real(phase=0, loss=3.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The trainer's clock, which only the test moves."""
    now = [1000.0]
    for module in (trainer, run_control):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def rates(worker: trainer.PretrainTrainer) -> list[float]:
    return [row["learning_rate"] for row in worker.state.metrics.rows if row["split"] == "train"]


def timed(
    inputs: Inputs, folder: Path, clock: list[float], seconds: float, stop_after: int = 0
) -> trainer.PretrainTrainer:
    """Train for 90 s, every step of which takes `seconds`."""

    def step_takes(rank: int, step: int) -> None:
        if step == stop_after:
            raise InterruptedError
        clock[0] += seconds

    phases = [{"max_seq_length": 16, "max_predictions_per_seq": 3}]
    worker = single_worker(config(phases=phases, budget="1.5m"), inputs, folder, step_takes)
    with contextlib.suppress(InterruptedError):
        worker.train()
    return worker


@pytest.mark.parametrize(("seconds", "steps"), [(10.0, 10), (30.0, 4), (1000.0, 2)])
def test_the_schedule_ends_with_the_budget_however_long_a_step_takes(
    inputs: Inputs, tmp_path: Path, clock: list[float], seconds: float, steps: int
) -> None:
    """The clock moves after a step: when the last one ends, 90 s are over."""
    worker = timed(inputs, tmp_path, clock, seconds)
    assert worker.state.step == last(tmp_path).step == steps and last(tmp_path).manifest().done
    warmup = [0.5] + [1.0] * (steps - 1)
    spent = [min(1.0, max(0, step - 1) * seconds / 90) for step in range(steps)]
    assert rates(worker) == pytest.approx([1e-3 * w * (1 - s) for w, s in zip(warmup, spent, strict=True)])


def test_a_run_with_a_budget_resumes_with_the_remaining_time(
    inputs: Inputs, tmp_path: Path, clock: list[float]
) -> None:
    whole = timed(inputs, tmp_path / "whole", clock, 10.0)
    assert timed(inputs, tmp_path / "stopped", clock, 10.0, stop_after=5).state.step == 5
    assert last(tmp_path / "stopped").step == 4
    clock[0] += 10_000.0  # between the two runs
    again = timed(inputs, tmp_path / "stopped", clock, 10.0)
    assert again.state.step == last(tmp_path / "stopped").step == 11  # the lost step does not reduce the remaining time
    assert rates(again)[:4] == rates(whole)[:4] and rates(again)[4] == rates(whole)[3] * 6 / 7


def test_the_time_of_steps_that_are_rolled_back_counts(
    inputs: Inputs, tmp_path: Path, clock: list[float], spoil: Callable[..., None]
) -> None:
    once = [6]
    spoil(lambda updates, numbers: updates in once and not once.clear())
    worker = timed(inputs, tmp_path, clock, 10.0)
    assert len(worker.state.skipped) == 1 and worker.state.step == 9 and last(tmp_path).state()["spent"] == 90.0


def test_phases_share_the_budget(inputs: Inputs, tmp_path: Path, clock: list[float]) -> None:
    both = {**inputs, "examples-12": examples_artifact(tmp_path / "inputs", length=12, masked=False)}
    phases = [
        {"max_seq_length": n, "max_predictions_per_seq": 3, "share": share} for n, share in ((12, 0.7), (16, 0.3))
    ]

    def step_takes(rank: int, step: int) -> None:
        clock[0] += 10.0

    worker = single_worker(config(phases=phases, budget="100s", eval_every=100), both, tmp_path / "out", step_takes)
    worker.train()
    assert [row["step"] for row in worker.state.metrics.rows if row["split"] == "heldout"] == [8, 11]


def test_a_second_schedule_ends_with_the_shares_of_its_phases_and_a_run_resumes_in_it(
    inputs: Inputs, tmp_path: Path, clock: list[float]
) -> None:
    """Stopped in the third phase, which continues the second schedule."""

    def step_takes(rank: int, step: int) -> None:
        if step == 10 and not resumed:
            raise InterruptedError
        clock[0] += 10.0

    phases = schedule_phases({"share": 0.5}, {"share": 0.2, "learning_rate": 2e-3}, {"share": 0.3})
    settings = config(phases=phases, budget="100s", checkpoint_every=1, eval_every=100)
    resumed = False
    with pytest.raises(InterruptedError):
        single_worker(settings, inputs, tmp_path, step_takes).train()
    resumed = True
    worker = single_worker(settings, inputs, tmp_path, step_takes)
    assert (worker.state.step, worker.state.phase_start, worker.state.schedule_start) == (10, 8, 6)
    worker.train()
    first = [1e-3 * factor for factor in (0.5, 1, 0.8, 0.6, 0.4, 0.2)]
    second = [2e-3 * factor for factor in (0.5, 0.8, 0.6, 0.4, 0.2, 0.2)]  # the clock moves after a step
    assert rates(worker) == pytest.approx(first + second)
