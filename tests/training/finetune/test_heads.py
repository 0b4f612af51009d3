"""The heads of fine-tuned models."""

import torch

from cloze.training.finetune.heads import SequenceClassifier
from cloze.training.model.bert import BertConfig, BertModel


def test_with_16_bits_a_head_computes_in_32():
    """In bf16 most of 500 numbers would be equal to another one, and correlations of ranks would see ties."""
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    model = SequenceClassifier(BertModel(config, 50), config, 1).eval()
    ids = torch.randint(5, 50, (500, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        numbers = model(ids, torch.zeros_like(ids), torch.ones_like(ids))[:, 0]
    assert numbers.dtype == torch.float32 and len(set(numbers.tolist())) > 490
