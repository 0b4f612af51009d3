"""Tables of new inputs -> the same rows with the predictions of a run's fine-tuned model, as Parquet files."""

import json
import time
from collections.abc import Sequence

from cloze.infra.display import Display, duration
from cloze.infra.export import fine_tuned
from cloze.infra.planner import Run
from cloze.infra.ray_session import ray_session
from cloze.pipeline.core.artifacts import fingerprint
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import source_file
from cloze.pipeline.core.storage import Location, find_files
from cloze.pipeline.core.threads import map_in_threads, run_periodically
from cloze.pipeline.text.table_files import FORMATS, is_table


def predict_files(run: Run, task: str, patterns: Sequence[str], to: Location) -> None:
    """Write the rows of all files that match, with all of their columns and the predictions, into the folder `to`.

    An interrupted prediction continues from its finished parts. Raises UserError when a file lacks a column of the
    task, or the folder contains anything else.
    """
    from cloze.training.finetune.model_files import FOLDER
    from cloze.training.finetune.prediction.file_prediction import SUMMARY_FILE, VERSION, FilePrediction

    started = time.monotonic()
    config, artifact = fine_tuned(run, task)
    files = input_files(patterns, to)
    sources = map_in_threads(lambda file: source_file(file, run.root / "sources"), files)
    inputs = {
        "model": artifact.fingerprint,
        **{file.name: artifact.manifest.files[f"{FOLDER}/{file.name}"].sha256 for file in artifact.files(f"{FOLDER}/")},
        **{f"input {number}": source.identity for number, source in enumerate(sources)},
    }
    prediction = FilePrediction.plan(
        artifact.location / FOLDER, config, files, to, fingerprint(f"predict-{task}", VERSION, {}, inputs)
    )
    finished = prediction.finished()
    display = Display([task])
    try:
        if missing := [name for name in prediction.parts if name not in finished]:
            reason = f"{len(missing):,} of {len(prediction.parts):,} parts to predict"
            display.start(task, "continue" if finished else "run", reason)

            def report() -> bool:
                display(task, prediction.num_finished_rows(), prediction.num_rows, "rows")
                return True

            with ray_session(), run_periodically(report, 2.0 if to.is_s3 else 0.5):
                prediction.run(missing)
            finished = prediction.finished()
        rows = sum(part.rows for part in finished.values())
        if rows != prediction.num_rows:
            raise UserError(f"{to}: has {rows} of {prediction.num_rows} rows; predict again: finished parts are kept")
        without = sum(part.without_prediction for part in finished.values())
        summary = {
            "task": task,
            "fingerprint": prediction.fingerprint,
            "model": artifact.location.uri,
            "inputs": [{"file": source.uri, "sha256": source.sha256} for source in sources],
            "rows": rows,
            "without_prediction": without,
        }
        (to / SUMMARY_FILE).write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
        note = f", {without:,} of them without a prediction, as their text is empty" if without else ""
        display.finish(task, f"done in {duration(time.monotonic() - started)}: {rows:,} rows{note}")
    finally:
        display.close()


def input_files(patterns: Sequence[str], to: Location) -> list[Location]:
    """The files that match the patterns, each once: a file, a glob, or a folder, whose tables are meant.

    Raises UserError when a pattern matches none. Files in the folder `to` are left out.
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
    return list(found)
