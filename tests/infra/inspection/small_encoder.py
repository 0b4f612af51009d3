"""The folder of a small BERT with random weights that knows some words, as transformers saves it."""

from pathlib import Path

import torch
import transformers

from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, build_tokenizer

A = "She sat on the bank of the river."
B = "The Bank lent money to the banker <script>alert(1)</script>"
SENTENCES = [
    "a boat on the river",
    "the bank of the stream",
    "money in the bank",
    A,
    "the banks",
    *(f"boat {'river ' * number}" for number in range(1, 8)),
]
_WORDS = "she sat on the bank of river lent money to a boat stream in er script alert 1".split()  # noqa: SIM905
PIECES = [*SPECIAL_TOKENS, *_WORDS, "##er", "##s", *".()<>/"]
LAYERS, HEADS, POSITIONS = 3, 2, 40


def write_folder(folder: Path, class_name: str = "BertForMaskedLM") -> Path:
    settings = {"hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 24}
    config = transformers.BertConfig(
        vocab_size=len(PIECES), max_position_embeddings=POSITIONS, initializer_range=0.3, **settings
    )
    torch.manual_seed(3)
    getattr(transformers, class_name)(config).save_pretrained(folder)
    build_tokenizer(PIECES).save(str(folder / "tokenizer.json"))
    return folder
