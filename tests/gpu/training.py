"""Models, engines and batches of the packed examples, for checks without Ray. This process is the only worker."""

import json
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text import vocab_file
from cloze.training.model.bert import BertConfig, BertForPreTraining
from cloze.training.model.optim import OptimizerConfig, Precision
from cloze.training.pretrain.data_loader import Batch, ExampleDataset, collate
from cloze.training.pretrain.engine import Engine
from cloze.training.pretrain.prefetch import GPU_MULTIPLES, _dynamic_masking
from tests.gpu.kit import Kit

OPTIMIZER = OptimizerConfig(learning_rate=1e-3)
SEED = 1


def artifact(kit: Kit, name: str) -> Artifact:
    """One of the packed artifacts: vocab, examples-128, examples-512."""
    folder = Path(kit.corpus, name)
    return Artifact(Location(str(folder)), name, json.loads((folder / "manifest.json").read_text())["fingerprint"])


@cache
def pieces(kit: Kit) -> tuple[str, ...]:
    return tuple(vocab_file.read_pieces(artifact(kit, "vocab").location))


def shape(kit: Kit, **changed: Any) -> dict[str, Any]:
    """A small model's configuration."""
    size, layers = (32, 2) if kit.tiny else (256, 4)
    heads = {"num_hidden_layers": layers, "num_attention_heads": size // 16 if kit.tiny else size // 64}
    return {"hidden_size": size, "intermediate_size": 4 * size, **heads, **changed}


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def model(kit: Kit, *, activation_checkpointing: bool = False, **changed: Any) -> BertForPreTraining:
    config = BertConfig.model_validate(shape(kit, **changed))
    return BertForPreTraining(config, len(pieces(kit)), SEED, activation_checkpointing=activation_checkpointing)


def packed_batches(kit: Kit, count: int, size: int, length: int = 128) -> Iterator[Batch]:
    """Yields `count` batches with dynamic masks, padded as on a GPU and there in pinned memory."""
    examples = artifact(kit, f"examples-{length}")
    masking = _dynamic_masking(SEED, examples, pieces(kit))
    size = min(size, 8) if kit.tiny else size
    for arrays in islice(ExampleDataset(examples, "train").batches(SEED, 0, size), count):
        batch = collate(arrays, masking, GPU_MULTIPLES)
        yield batch.pinned() if kit.device == "cuda" else batch


def join_group(kit: Kit) -> None:
    """Make this process a process group of its own."""
    if dist.is_initialized():
        return
    os.environ["LOCAL_RANK"] = "0"
    store = tempfile.mkdtemp(dir=kit.work)
    backend = "nccl" if kit.device == "cuda" else "gloo"
    if kit.device == "cuda":
        torch.cuda.set_device(0)
    dist.init_process_group(backend, init_method=f"file://{store}/store", rank=0, world_size=1)


def engine(
    kit: Kit,
    trained: torch.nn.Module,
    precision: Precision = "fp32",
    zero_stage: int = 0,
    optimizer: OptimizerConfig = OPTIMIZER,
    **variant: bool,
) -> Engine:
    """`variant`: compiled, fused_loss."""
    join_group(kit)
    return Engine(trained, optimizer, zero_stage=zero_stage, precision=precision, **variant)


def synchronize(kit: Kit) -> None:
    if kit.device == "cuda":
        torch.cuda.synchronize()
