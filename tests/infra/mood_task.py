"""A labelled file of moods and a tiny BERT that has its words, for runs that only fine-tune."""

import json
from pathlib import Path
from typing import Any

MOODS, WORDS = ("good", "bad"), ("day", "night")


def write_task(*models: str) -> None:
    """Write into the current folder mood.jsonl, with 40 rows of train, 12 of dev and 20 of test, and the same BERT as
    models/MODEL for each name, as transformers saves it."""
    from transformers import BertConfig, BertForMaskedLM

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *MOODS, *WORDS, "a"]
    shape: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 32, "max_position_embeddings": 16}
    model = BertForMaskedLM(BertConfig(vocab_size=len(pieces), **shape))
    for name in models:
        model.save_pretrained(f"models/{name}")
        Path(f"models/{name}/vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    rows = [
        {"text": f"a {mood} {word}", "label": mood, "split": split}
        for split, copies in (("train", 10), ("dev", 3), ("test", 5))
        for mood, word in [(mood, word) for mood in MOODS for word in WORDS] * copies
    ]
    Path("mood.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
