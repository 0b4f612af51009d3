"""An encoder of Cloze's own architectures with a task's head from heads.py, and the files of the fine-tuned model."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tokenizers import Tokenizer
from torch import Tensor, nn

from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import PAD, parse_tokenizer
from cloze.training.checkpoints.huggingface import read_model_config, tokenizer_files
from cloze.training.finetune.tasks.task import MissingHead, ModelTask, TransformersHead
from cloze.training.model.architectures import architecture_of
from cloze.training.model.bert import BertConfig, initialize, load_encoder
from cloze.training.vectors.hidden_states import LayeredEncoder

_POOLER = "bert.pooler."  # the names of its weights begin with this; transformers' heads without it do not expect them


@dataclass(frozen=True)
class ClozeEncoder:
    """A PretrainedEncoder (see pretrained_encoder.py) that Cloze runs itself."""

    config: BertConfig
    vocab_size: int
    tokenizer_files: Mapping[str, bytes]  # those of a vocab artifact, by name
    read_weights: Callable[[], Mapping[str, Tensor]]  # by Cloze's names, those of heads included
    notes: tuple[str, ...] = ()  # for the user
    where: str = "the checkpoint"  # for error messages

    @property
    def max_tokens(self) -> int:
        return self.config.max_position_embeddings

    @property
    def num_layers(self) -> int:
        return self.config.num_hidden_layers

    def tokenizer(self) -> Tokenizer:
        return parse_tokenizer(self.tokenizer_files["tokenizer.json"])

    def check_head(self, head: TransformersHead | None) -> None:
        if head is None:
            self._masked_lm_head(self.read_weights())

    def new_model(self, task: ModelTask, seed: int, *, pretrained: bool) -> nn.Module:
        """The task's model, whose encoder is `bert`. The masked-LM head, `mlm`, is pretrained, too, if it has one."""
        model = task.model(architecture_of(self.config).encoder(self.config, self.vocab_size), self.config)
        if seed != task.config.seed:
            initialize(model, self.config.initializer_range, seed)
        if pretrained:
            weights, head = self.read_weights(), getattr(model, "mlm", None)
            load_encoder(model, weights)
            if head is not None:
                head.load_state_dict(self._masked_lm_head(weights))
        return model

    def layered_encoder(self, seed: int, *, pretrained: bool) -> LayeredEncoder:
        encoder = architecture_of(self.config).encoder(self.config, self.vocab_size)
        model = nn.ModuleDict({"bert": encoder})  # the names of its weights decide on random values
        if pretrained:
            load_encoder(model, self.read_weights())
        else:
            initialize(model, self.config.initializer_range, seed)
        return LayeredEncoder.of_modules(encoder, self.config.num_hidden_layers, self.config.hidden_size)

    def _masked_lm_head(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        head = {name.removeprefix("mlm."): weight for name, weight in weights.items() if name.startswith("mlm.")}
        if not head:
            raise MissingHead(
                f"{self.where}: has no masked-LM head, with which this task scores; give a model as it was pretrained"
            )
        return head

    def frozen_parameters(self, model: nn.Module) -> Iterable[nn.Parameter]:
        named = model.get_submodule("bert").named_parameters()
        return [parameter for name, parameter in named if not name.startswith("pooler.")]

    def model_files(self, head: TransformersHead, weights: Mapping[str, Tensor]) -> dict[str, bytes]:
        from safetensors.torch import save

        layout = architecture_of(self.config).layout
        config = {
            "architectures": [f"{layout.classes[0].removesuffix('ForPreTraining')}{head.class_name}"],
            "model_type": layout.model_type,
            "vocab_size": self.vocab_size,
            "pad_token_id": self.tokenizer().token_to_id(PAD),
            "position_embedding_type": "absolute",
            **self.config.model_dump(mode="json", exclude={"architecture"}),
            **head.settings,
        }
        kept = [name for name in weights if head.has_pooler or not name.startswith(_POOLER)]
        tensors = layout.to_transformers({name: weights[name].cpu() for name in kept})
        return {
            "model.safetensors": save({name: one.contiguous() for name, one in tensors.items()}, {"format": "pt"}),
            "config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
            **tokenizer_files(self.tokenizer_files, self.config.max_position_embeddings),
        }


def load_fine_tuned(folder: Location, task: ModelTask) -> nn.Module:
    """The task's model in a folder with `ClozeEncoder.model_files`. Raises UserError for a damaged config.json."""
    from safetensors.torch import load

    config, vocab_size = read_model_config(folder)
    architecture = architecture_of(config)
    model = task.model(architecture.encoder(config, vocab_size), config)
    unused = {name: weight for name, weight in model.state_dict().items() if name.startswith(_POOLER)}
    weights = load((folder / "model.safetensors").read_bytes())
    model.load_state_dict(unused | architecture.layout.from_transformers(weights))
    return model
