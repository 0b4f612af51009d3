"""Tables of new inputs -> the same rows with the predictions of a run's fine-tuned model, as Parquet files."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cloze.infra.display import Display, duration
from cloze.infra.export import fine_tuned
from cloze.infra.planner import Run
from cloze.infra.ray_session import ray_session
from cloze.pipeline.core.artifacts import fingerprint
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile, source_file
from cloze.pipeline.core.storage import Location, find_files
from cloze.pipeline.core.threads import map_in_threads, run_periodically
from cloze.pipeline.text.table_files import FORMATS, is_table
from cloze.training.finetune.prediction.file_prediction import VERSION, FilePrediction


def predict_files(run: Run, task: str, patterns: Sequence[str], to: Location) -> None:
    """Write the rows of all files that match, with all of their columns and the predictions, into the folder `to`.

    An interrupted prediction continues from its finished parts. Raises UserError when a file lacks a column of the
    task, or the folder contains anything else.
    """
    from cloze.training.finetune.model_files import FOLDER
    from cloze.training.finetune.prediction.task_predictor import TaskPredictor

    config, artifact = fine_tuned(run, task)
    sources = input_files(patterns, to, run.root / "sources")
    inputs = {
        "model": artifact.fingerprint,
        **{file.name: artifact.manifest.files[f"{FOLDER}/{file.name}"].sha256 for file in artifact.files(f"{FOLDER}/")},
        **input_identities(sources),
    }
    digest = fingerprint(f"predict-{task}", VERSION, {}, inputs)
    predictor = TaskPredictor.of(artifact.location / FOLDER, config)
    prediction = FilePrediction.plan(predictor, [source.location for source in sources], to, digest)
    about = {"task": task, "fingerprint": digest, "model": artifact.location.uri, "inputs": described(sources)}
    write_parts(prediction, task, about, {"without_prediction": "without a prediction, as their text is empty"})


def write_parts(prediction: FilePrediction, title: str, about: Mapping[str, Any], notes: Mapping[str, str]) -> None:
    """Compute the parts that are missing, with progress under `title`, and write the summary: `about`, the number of
    rows, and the model's counts.

    `notes`: the name of a count -> what it says of these rows. Raises UserError.
    """
    started, to = time.monotonic(), prediction.to
    finished = prediction.finished()
    display = Display([title])
    try:
        if missing := [name for name in prediction.parts if name not in finished]:
            reason = f"{len(missing):,} of {len(prediction.parts):,} parts to compute"
            display.start(title, "continue" if finished else "run", reason)

            def report() -> bool:
                display(title, prediction.num_finished_rows(), prediction.num_rows, "rows")
                return True

            with ray_session(), run_periodically(report, 2.0 if to.is_s3 else 0.5):
                prediction.run(missing)
            finished = prediction.finished()
        rows = sum(part.rows for part in finished.values())
        if rows != prediction.num_rows:
            raise UserError(f"{to}: has {rows} of {prediction.num_rows} rows; run again: finished parts are kept")
        counts = {name: sum(part.counts[name] for part in finished.values()) for name in notes}
        summary = {**about, "rows": rows, **counts}
        file = to / prediction.predictor.summary_file
        file.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
        said = "".join(f", {counts[name]:,} of them {note}" for name, note in notes.items() if counts[name])
        display.finish(title, f"done in {duration(time.monotonic() - started)}: {rows:,} rows{said}")
    finally:
        display.close()


def input_identities(sources: Sequence[SourceFile]) -> dict[str, str]:
    """What the files of the inputs contribute to a fingerprint."""
    return {f"input {number}": source.identity for number, source in enumerate(sources)}


def described(sources: Sequence[SourceFile]) -> list[dict[str, str]]:
    """The files of the inputs, for the summary."""
    return [{"file": source.uri, "sha256": source.sha256} for source in sources]


def input_files(patterns: Sequence[str], to: Location, digests: Location) -> list[SourceFile]:
    """The files that match the patterns, each once: a file, a glob, or a folder, whose tables are meant.

    `digests`: the cache of their digests. Raises UserError when a pattern matches none. Files in the folder `to` are
    left out.
    """
    found = dict[Location, None]()
    for pattern in patterns:
        location = Location(pattern)
        if any(mark in pattern for mark in "*?[") or not location.exists() or location.is_file():
            files = find_files(pattern)
        elif not (files := [file for file in location.files() if is_table(file)]):
            raise UserError(f"{pattern}: has no tables ({FORMATS}); name another folder or a file")
        absolute = (file.absolute() for file in files)
        found |= {file: None for file in absolute if not file.uri.startswith(f"{to}/")}
    if not found:
        raise UserError(f"{patterns[0]}: all files are those of --to {to}; name other files")
    return map_in_threads(lambda file: source_file(file, digests), list(found))
