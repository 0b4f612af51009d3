"""BERT's original create_pretraining_data on a file of sentences: instances, and CPU seconds before writing.

The code is from the package bert-tensorflow. It needs flags, logging and file access from TensorFlow. This module
replaces them, so that TensorFlow does not have to be installed.
"""

import argparse
import json
import random
import sys
import time
import types
from pathlib import Path
from unittest.mock import MagicMock

from tests.paths import REPOSITORY

VOCABULARY = REPOSITORY / "configs/vocab/bert-base-uncased.txt"
VOCAB_SIZE = 30522


def vocabulary() -> list[str]:
    """The pieces of the published vocabulary."""
    return VOCABULARY.read_text().split("\n")[:-1]


def install_tensorflow_stub() -> None:
    v1 = types.ModuleType("tensorflow.compat.v1")
    vars(v1).update(flags=MagicMock(), logging=MagicMock(), gfile=types.SimpleNamespace(GFile=Path.open))
    compat = types.ModuleType("tensorflow.compat")
    tensorflow = types.ModuleType("tensorflow")
    vars(compat).update(v1=v1)
    vars(tensorflow).update(vars(v1), compat=compat)
    sys.modules |= {"tensorflow": tensorflow, "tensorflow.compat": compat, "tensorflow.compat.v1": v1}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sentences", type=Path)
    parser.add_argument("dupe_factor", type=int)
    options = parser.parse_args()
    install_tensorflow_stub()
    from bert import create_pretraining_data, tokenization

    vars(tokenization)["FLAGS"] = types.SimpleNamespace(preserve_unused_tokens=False)  # read for each token
    start = time.process_time()
    tokenizer = tokenization.FullTokenizer(VOCABULARY, do_lower_case=True)
    instances = create_pretraining_data.create_training_instances(
        [options.sentences],
        tokenizer,
        max_seq_length=128,
        dupe_factor=options.dupe_factor,
        short_seq_prob=0.1,
        masked_lm_prob=0.15,
        max_predictions_per_seq=20,
        rng=random.Random(12345),
    )
    print(json.dumps({"instances": len(instances), "cpu_seconds": time.process_time() - start}))


if __name__ == "__main__":
    main()
