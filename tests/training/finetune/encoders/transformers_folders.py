"""Folders of small encoders that transformers runs, with random weights and tokenizers trained on the tests' texts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

SQUAD = Path(__file__).parents[3] / "data/finetune/squad-dev.json"
MODEL_TYPES = ("albert", "distilbert", "modernbert", "roberta")
BRACKETS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def texts() -> Iterator[str]:
    for article in json.loads(SQUAD.read_text())["data"]:
        for paragraph in article["paragraphs"]:
            yield paragraph["context"]
            yield from (question["question"] for question in paragraph["qas"])


def write_folder(folder: Path, model_type: str, class_name: str = "ForMaskedLM", **settings: Any) -> Path:
    """Writes config.json, model.safetensors and tokenizer.json; `settings` are of the configuration."""
    tokenizer = {"albert": _unigram, "distilbert": _wordpiece, "modernbert": _modernbert, "roberta": _roberta}[
        model_type
    ]()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    # Larger weights than usual: the logits of different inputs differ.
    config = _configuration(model_type, tokenizer, {"initializer_range": 0.2, **settings})
    torch.manual_seed(5)
    model = getattr(transformers, f"AutoModel{class_name}").from_config(config)
    model.save_pretrained(folder)
    return folder


def _configuration(model_type: str, tokenizer: Tokenizer, settings: dict[str, Any]) -> Any:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    size, positions = tokenizer.get_vocab_size(), 128
    common = {"vocab_size": size, "max_position_embeddings": positions}
    if model_type == "albert":
        return transformers.AlbertConfig(**{**common, **shape, "embedding_size": 16, **settings})
    if model_type == "distilbert":
        return transformers.DistilBertConfig(**common, dim=32, n_layers=2, n_heads=2, hidden_dim=48, **settings)
    if model_type == "roberta":
        common["max_position_embeddings"] = positions + 2  # as in roberta-base: 514 for 512 tokens
        return transformers.RobertaConfig(**common, **shape, type_vocab_size=1, **settings)
    names = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "bos": "[CLS]", "eos": "[SEP]"}
    ids = {f"{role}_token_id": tokenizer.token_to_id(name) for role, name in names.items()}
    return transformers.ModernBertConfig(**common, **shape, **ids, global_attn_every_n_layers=2, **settings)


def _wordpiece() -> Tokenizer:
    """As DistilBERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=list(BRACKETS), show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = _template(tokenizer, segment=1)
    return tokenizer


def _unigram() -> Tokenizer:
    """As ALBERT's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Replace(" {2,}", " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.UnigramTrainer(vocab_size=500, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = _template(tokenizer, segment=1)
    return tokenizer


def _byte_level(special: tuple[str, ...] = BRACKETS) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def _modernbert() -> Tokenizer:
    """With the second text of a pair in segment 0, as ModernBERT has no others."""
    tokenizer = _byte_level()
    tokenizer.post_processor = _template(tokenizer, segment=0)
    return tokenizer


def _roberta() -> Tokenizer:
    """With settings for padding and truncation, as in the folders of sentence encoders."""
    tokenizer = _byte_level(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.enable_padding(length=40)
    tokenizer.enable_truncation(16)
    return tokenizer


def _template(tokenizer: Tokenizer, segment: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] $B:{segment} [SEP]:{segment}",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
