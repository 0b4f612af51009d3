"""The files of a model for transformers -> those that SentenceTransformer loads, with vectors of the last layer."""

import json
from collections.abc import Mapping
from typing import Any, Literal

Pooling = Literal["mean", "cls"]

# The names under which all versions of the library find its modules.
_MODULES = (("", "sentence_transformers.models.Transformer"), ("1_Pooling", "sentence_transformers.models.Pooling"))


def with_sentence_vectors(
    files: Mapping[str, bytes], hidden_size: int, max_length: int, pooling: Pooling
) -> dict[str, bytes]:
    """`files` by name, with those that add the pooling. `max_length` in tokens: longer texts are cut.

    Special tokens in a text, such as "[MASK]", are text, as in training and in `cloze embed`.
    """
    tokenizer_config = json.loads(files["tokenizer_config.json"]) | {"split_special_tokens": True}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": name} for number, (path, name) in enumerate(_MODULES)
    ]
    of_pooling = {
        "word_embedding_dimension": hidden_size,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    return {
        **files,
        "tokenizer_config.json": _json(tokenizer_config),
        "modules.json": _json(modules),
        "sentence_bert_config.json": _json({"max_seq_length": max_length, "do_lower_case": False}),
        "config_sentence_transformers.json": _json({"prompts": {}, "similarity_fn_name": "cosine"}),
        "1_Pooling/config.json": _json(of_pooling),
    }


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
