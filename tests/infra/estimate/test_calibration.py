"""The speed of this machine, measured on pieces of the data stages."""

import json
from pathlib import Path

import pytest

from cloze.infra.estimate import calibration
from cloze.infra.estimate.rates import rates


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOZE_HOME", str(tmp_path / "home"))


def test_every_piece_is_timed_and_kept_for_this_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibration, "_SECONDS", 0.0)
    shown: list[str] = []
    found = calibration.calibrate(shown.append)
    assert list(found.seconds) == shown
    assert all(0.1 < seconds / rates().value(f"calibration.{piece}") < 10 for piece, seconds in found.seconds.items())
    assert calibration.stored() == found
    slower = found.model_copy(update={"seconds": {piece: 2 * seconds for piece, seconds in found.seconds.items()}})
    assert slower.factor("tokens") == pytest.approx(2 * found.factor("tokens"))
    assert found.factor("start.seconds") == 1.0


def test_a_calibration_of_another_processor_or_version_is_not_used():
    assert calibration.stored() is None
    entry = {"version": calibration.VERSION, "date": "", "machine": "another", "commit": "", "seconds": {}}
    calibration.file().parent.mkdir()
    calibration.file().write_text(json.dumps(entry))
    assert calibration.stored() is None
    calibration.file().write_text(json.dumps({**entry, "machine": calibration._processor()}))
    assert calibration.stored() is not None
    calibration.file().write_text(json.dumps({**entry, "machine": calibration._processor(), "version": 0}))
    assert calibration.stored() is None
