"""Files of pairs of texts, and settings, for the tests of contrastive training."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, build_tokenizer
from cloze.training.finetune.tasks.contrastive_config import ContrastiveConfig
from tests.training.finetune.tasks.trained import SETTINGS

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENIZER = build_tokenizer([*SPECIAL_TOKENS, *LETTERS])


def config(**settings: Any) -> ContrastiveConfig:
    return ContrastiveConfig.model_validate({**SETTINGS, "file": "x", **settings})


def row(text: str, text_b: Any, split: str = "train") -> dict[str, Any]:
    return {"text": text, "text_b": text_b, "split": split}


GOOD = [row("a b", "c"), row("d", "e f g"), row("a", "b", "dev"), row("c", "d", "dev")]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def toy_rows() -> list[dict[str, Any]]:
    """Pairs that share a letter, between others that say nothing; dev and test have pairs of letters of train."""
    random = np.random.default_rng(5)
    rows = []
    for split, repeats in (("train", 16), ("dev", 1), ("test", 1)):
        for letter in LETTERS[:12] * repeats:
            noise = ["".join(random.choice(list("wxyz"), 1)) for _ in range(4)]
            rows.append(row(f"{noise[0]} {letter} {noise[1]}", f"{letter} {noise[2]} {noise[3]}", split))
    return rows
