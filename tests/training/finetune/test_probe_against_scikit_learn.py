"""The guide's probe of 2,000 sentences of SST-2 next to scikit-learn on the vectors of transformers."""

from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from transformers import AutoModel, AutoTokenizer

from cloze.pipeline.core.file_digests import as_one_file, source_file
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.warm_start import weights_files
from cloze.training.finetune.encoders.pretrained_encoder import from_weights_file
from cloze.training.finetune.tasks.registry import FinetuneConfig
from cloze.training.finetune.trials import FinetuneSetup
from tests.paths import SHARED
from tests.training.finetune.tasks.trained import task_of_files, train_in_process

SST = SHARED / "data/finetune/sst2-clairett/train.tsv"
pytestmark = [pytest.mark.campaign, pytest.mark.skipif(not SST.is_file(), reason="requires ../shared/data")]


def vectors_of_transformers(folder: Path, texts: list[str]) -> np.ndarray:
    """The vectors of [CLS] [texts, hidden] in the last layer, in batches padded to the longest text."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    order, found = sorted(range(len(texts)), key=lambda number: len(texts[number])), list[np.ndarray]()
    with torch.inference_mode():
        for start in range(0, len(texts), 50):
            batch = [texts[number] for number in order[start : start + 50]]
            options = {"padding": True, "truncation": True, "max_length": 128, "return_tensors": "pt"}
            found.append(model(**tokenizer(batch, **options)).last_hidden_state[:, 0].numpy())
    return np.concatenate(found)[np.argsort(order)]


@pytest.mark.usefixtures("single_process_group")
def test_the_probe_of_the_guide_is_within_half_a_point_of_scikit_learn(bert: Path, tmp_path: Path) -> None:
    lines = SST.read_text().splitlines()[:2000]
    train, test = tmp_path / "train.tsv", tmp_path / "test.tsv"
    train.write_text("".join(f"{line}\n" for line in lines[:1500]))
    test.write_text("".join(f"{line}\n" for line in lines[1500:]))
    files = {"train": train, "dev": test, "test": test}
    settings = TypeAdapter(FinetuneConfig).validate_python(
        {
            "name": "sst2",
            "kind": "probe",
            "of": "classification",
            "files": {split: str(file) for split, file in files.items()},
            "columns": {"text": 1, "label": 2},
            "pooling": "cls",
            "cross_validation": 5,
            "init": str(bert),
        }
    )
    root = Location(str(tmp_path))
    init = [source_file(Location(file), root / "sources") for file in weights_files(str(bert), root)]
    encoder, task = from_weights_file(as_one_file(init, root)), task_of_files(settings, files)
    out = Output(Location(str(tmp_path / "out")), "finetune-sst2", 1, "0")
    train_in_process(FinetuneSetup(settings, task, task.encode(encoder.tokenizer()).splits, encoder, out))
    [row] = out.finished_parts(["pretrained"])["pretrained"].facts["layers"]

    texts, labels = zip(*(line.split("\t") for line in lines), strict=True)
    vectors, truth = vectors_of_transformers(bert, list(texts)), np.array(labels)
    regression = LogisticRegression(max_iter=1000)
    folds = StratifiedKFold(5, shuffle=True, random_state=settings.seed)
    cross_validated = cross_val_score(regression, vectors[:1500], truth[:1500], cv=folds)
    score = regression.fit(vectors[:1500], truth[:1500]).score(vectors[1500:], truth[1500:])
    print(f"test: {row['score']:.4f}, scikit-learn {score:.4f}; ", end="")
    print(f"folds: {fmean(row['folds']):.4f}, scikit-learn {cross_validated.mean():.4f}")
    assert score > 0.7
    assert row["score"] == pytest.approx(score, abs=0.005)
    assert fmean(row["folds"]) == pytest.approx(cross_validated.mean(), abs=0.005)
