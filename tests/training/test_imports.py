"""What training imports."""

import os
import subprocess
import sys
from pathlib import Path

from tests.paths import REPOSITORY
from tests.training.small_pretraining import small_inputs

BLOCKED = "import sys; sys.modules['apache_beam'] = sys.modules['dagster'] = None\n"
PRETRAIN = """
import sys
from pathlib import Path

import cloze.infra.load_model, cloze.training.checkpoints.huggingface, cloze.training.finetune.stage
from cloze.infra.ray_session import ray_session
from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.storage import Location
from tests.training.small_pretraining import config, trained

def on_step(rank, step):
    import sys
    assert sys.modules["apache_beam"] is None and sys.modules["dagster"] is None

root = Path(sys.argv[1])
inputs = {name: Artifact(Location(str(root / name / "0")), name, "0") for name in ("vocab", "examples-16")}
with ray_session(num_cpus=2):
    print(trained(root / "pretrain/0", inputs, config(workers=1), on_step=on_step).manifest.counts)
"""


def test_training_needs_neither_beam_nor_dagster(tmp_path: Path) -> None:
    small_inputs(tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(BLOCKED)  # read by Ray's workers as well
    path = f"{tmp_path / 'site'}{os.pathsep}{REPOSITORY}"
    command = [sys.executable, "-c", PRETRAIN, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and "'steps': 8" in done.stdout, done.stderr
