"""The folder of an encoder that transformers runs, such as ALBERT or RoBERTa -> its models with transformers' heads.

transformers is an extra, and this is the only file that imports it. It runs its own classes, never code of the folder.
"""

import inspect
import json
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import load_tokenizer, parse_tokenizer
from cloze.training.checkpoints.weight_files import SAFETENSORS, find_weight_files, printable, read_json, read_tensors
from cloze.training.finetune.encoders.transformers_heads import MODELS, TransformersModel
from cloze.training.finetune.tasks.special_tokens import SpecialTokens, mask_id
from cloze.training.finetune.tasks.task import MissingHead, ModelTask, TransformersHead
from cloze.training.vectors.hidden_states import LayeredEncoder

_TAGGING, _MASKED_LM = "ForTokenClassification", "ForMaskedLM"
_MAPPINGS = {  # from a class of configurations to one of models, by the end of the latter's name
    "Model": "MODEL_MAPPING",
    _MASKED_LM: "MODEL_FOR_MASKED_LM_MAPPING",
    "ForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    _TAGGING: "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    "ForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING",
    "ForMultipleChoice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING",
}
_TASK_HEADS = ("classifier.", "pre_classifier.", "qa_outputs.")  # the weights of other tasks' heads begin with these
_ROLES = (("unk_token", "[UNK]"), ("unk_token", "<unk>"), ("mask_token", "[MASK]"), ("mask_token", "<mask>"))
_BYTE_LEVEL = ("ByteLevel", "RobertaProcessing")  # the steps of a tokenizer with the setting add_prefix_space
# Keys of config.json about the head of another task, the code, and the precision of the file.
_REPLACED_KEYS = {
    *("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task"),
}


@dataclass(frozen=True)
class TransformersEncoder:
    """A PretrainedEncoder (see pretrained_encoder.py) that transformers runs."""

    folder: Location
    config: Mapping[str, Any]  # config.json without the keys that fine-tuning replaces
    tokenizer_files: Mapping[str, bytes]  # tokenizer.json
    max_tokens: int | None
    num_layers: int
    notes: tuple[str, ...] = ()

    def tokenizer(self) -> Tokenizer:
        return parse_tokenizer(self.tokenizer_files["tokenizer.json"])

    def check_head(self, head: TransformersHead | None) -> None:
        if head is not None:
            _build(self.folder, {**self.config, **head.settings}, head.class_name, on_meta=True)
            return
        try:
            mask_id(self.tokenizer())
        except UserError as error:
            raise MissingHead(f"{self.folder}: {error}") from None
        _load_pretrained(_build(self.folder, self.config, _MASKED_LM), _tensors(self.folder), self.folder)

    def new_model(self, task: ModelTask, seed: int, *, pretrained: bool) -> nn.Module:
        """The task's model in transformers, which initializes the head, and the encoder if it is not pretrained."""
        head = task.head() or TransformersHead(_MASKED_LM, {})
        model = self._new({**self.config, **head.settings}, head.class_name, seed, pretrained=pretrained)
        return MODELS[head.class_name](model, _has_segments(model, self.tokenizer()))

    def layered_encoder(self, seed: int, *, pretrained: bool) -> LayeredEncoder:
        model = self._new(self.config, "Model", seed, pretrained=pretrained)
        encoder = TransformersModel(model, _has_segments(model, self.tokenizer()))
        return LayeredEncoder(encoder, encoder.hidden_states, model.config.num_hidden_layers, model.config.hidden_size)

    def _new(self, config: Mapping[str, Any], class_name: str, seed: int, *, pretrained: bool) -> Any:
        """One of transformers' models with this config.json."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _build(self.folder, config, class_name)
        if pretrained:
            _load_pretrained(model, _tensors(self.folder), self.folder)
        return model

    def frozen_parameters(self, model: nn.Module) -> Iterable[nn.Parameter]:
        assert isinstance(model, TransformersModel)
        return [parameter for name, parameter in model.encoder.named_parameters() if "pooler." not in name]

    def model_files(self, head: TransformersHead, weights: Mapping[str, Tensor]) -> dict[str, bytes]:
        from safetensors.torch import save

        config = {**self.config, **head.settings}
        model = _build(self.folder, config, head.class_name, on_meta=True)
        tensors = {name.removeprefix("model."): weight.cpu().contiguous() for name, weight in weights.items()}
        tokenizer, tokenizer_config = json.loads(self.tokenizer_files["tokenizer.json"]), self._tokenizer_config(model)
        if head.class_name == _TAGGING:  # its words follow a space
            tokenizer, tokenizer_config["add_prefix_space"] = _with_prefix_space(tokenizer), True
        return {
            "model.safetensors": save(tensors, {"format": "pt"}),
            "config.json": _json({**config, "architectures": [type(model).__name__], "dtype": "float32"}),
            "tokenizer.json": _json(tokenizer),
            "tokenizer_config.json": _json(tokenizer_config),
        }

    def _tokenizer_config(self, model: Any) -> dict[str, Any]:
        """The tokenizer_config.json with which AutoTokenizer takes tokenizer.json as it is."""
        tokenizer = self.tokenizer()
        special = SpecialTokens.of(tokenizer)
        ids = {"cls_token": special.before[0], "sep_token": special.after[-1], "pad_token": model.config.pad_token_id}
        ids |= {role: tokenizer.token_to_id(name) for role, name in _ROLES if tokenizer.token_to_id(name) is not None}
        segments = ["token_type_ids"] if _has_segments(model, tokenizer) else []
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", *segments, "attention_mask"],
            "padding_side": "right",
            **({} if self.max_tokens is None else {"model_max_length": self.max_tokens}),
            **{role: tokenizer.id_to_token(index) for role, index in ids.items() if index is not None},
        }


def from_folder(folder: Location) -> TransformersEncoder:
    """The encoder of a folder with config.json, tokenizer.json and model.safetensors.

    Raises UserError when transformers is not installed or has no such encoder, or the folder is incomplete.
    """
    config = {key: value for key, value in read_json(folder / "config.json").items() if key not in _REPLACED_KEYS}
    model = _build(folder, config, "Model")
    tokens, num_layers = _max_tokens(model), model.config.num_hidden_layers
    encoder = TransformersEncoder(folder, config, read_tokenizer(folder), tokens, num_layers)
    tensors, tokenizer, notes = _tensors(folder), encoder.tokenizer(), list[str]()
    missing = _load_pretrained(model, tensors, folder)
    try:
        SpecialTokens.of(tokenizer)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    if (size := tokenizer.get_vocab_size()) > model.config.vocab_size:
        raise UserError(
            f"{folder}: tokenizer.json has {size} tokens, config.json {model.config.vocab_size}; give the tokenizer "
            "that belongs to the weights"
        )
    if heads := sorted({name.partition(".")[0] for name in tensors if name.startswith(_TASK_HEADS)}):
        notes.append(f"{folder.name} has heads of other tasks, which are not used: {', '.join(heads)}")
    if missing and _has_pooler(_build(folder, config, "ForSequenceClassification", on_meta=True)):
        notes.append(f"{folder.name} has no pooler: where the task uses one, it began with random weights")
    return replace(encoder, notes=tuple(notes))


def load_fine_tuned(folder: Location, task: ModelTask) -> nn.Module:
    """The task's model in a folder with `TransformersEncoder.model_files`."""
    head = task.head()
    assert head is not None
    model = _build(folder, read_json(folder / "config.json"), head.class_name)
    model.load_state_dict(_tensors(folder))
    return MODELS[head.class_name](model, _has_segments(model, load_tokenizer(folder / "tokenizer.json")))


def _load_pretrained(model: Any, tensors: Mapping[str, Tensor], folder: Location) -> set[str]:
    """Copy a folder's weights to a model of transformers. Returns the names of those that the folder lacks.

    Heads of other tasks are left out. Raises UserError when other weights are missing, except those of a pooler.
    """
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(_TASK_HEADS)}
    try:
        loaded, found = type(model).from_pretrained(
            None, config=model.config, state_dict=kept, dtype=torch.float32, output_loading_info=True
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{folder}: the weights have other shapes than config.json says; download the folder again"
        ) from error
    missing = set(found["missing_keys"])
    encoder = "" if model.base_model is model else f"{model.base_model_prefix}."
    for name in sorted(missing):
        if name.startswith(encoder) and "pooler." not in name:
            raise UserError(f"{folder}: has no weights {printable(name)}; download the whole folder again")
    if missing and type(model).__name__.endswith(_MASKED_LM):
        raise MissingHead(
            f"{folder}: has no masked-LM head, with which this task scores; give a model as it was pretrained"
        )
    present = {name: weight for name, weight in loaded.state_dict().items() if name not in missing}
    model.load_state_dict(model.state_dict() | present)
    return missing


def _tensors(folder: Location) -> dict[str, Tensor]:
    """The weights in a folder's safetensors files by name. Raises UserError for other files."""
    files = find_weight_files(folder)
    if not files or not files[0].name.startswith(SAFETENSORS):
        raise UserError(f"{folder}: has no {SAFETENSORS}; save the model's weights in it (save_pretrained does)")
    return {one.name: one.tensor for one in read_tensors(files)}


def read_tokenizer(folder: Location) -> dict[str, bytes]:
    """The file tokenizer.json, without settings for padding and truncation. Raises UserError when it is missing."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(
            f"{folder}: has no tokenizer.json, only files of a slow tokenizer; write it with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    load_tokenizer(file)
    return {file.name: _json({**read_json(file), "padding": None, "truncation": None})}


def _with_prefix_space(part: Any) -> Any:
    """A part of tokenizer.json -> the same with a space before the first word of a text, as before all others."""
    if isinstance(part, list):
        return [_with_prefix_space(one) for one in part]
    if not isinstance(part, dict):
        return part
    changed = {key: _with_prefix_space(value) for key, value in part.items()}
    return changed | ({"add_prefix_space": True} if changed.get("type") in _BYTE_LEVEL else {})


def _build(folder: Location, config: Mapping[str, Any], class_name: str, *, on_meta: bool = False) -> Any:
    """One of transformers' models with random weights, or without values `on_meta`.

    Raises UserError when transformers is not installed or has no such model of an encoder.
    """
    transformers, model_type = _transformers(folder), config["model_type"]
    if model_type not in transformers.CONFIG_MAPPING:
        raise UserError(
            f"{folder}: transformers {transformers.__version__} has no model of the model_type {model_type}; "
            "give another model, or install a version that has it"
        )
    try:
        settings = transformers.CONFIG_MAPPING[model_type].from_dict(dict(config))
    except Exception as error:  # its checks raise exceptions of their own
        reason = printable(str(error).strip().splitlines()[-1].strip())
        raise UserError(f"{folder / 'config.json'}: {reason}; give the config.json of the weights") from error
    masked_lm = getattr(transformers, _MAPPINGS[_MASKED_LM])
    if settings.is_encoder_decoder or type(settings) not in masked_lm:
        raise UserError(f"{folder}: {model_type} is not an encoder with masked-LM; give one, such as BERT or ALBERT")
    models = getattr(transformers, _MAPPINGS[class_name])
    if type(settings) not in models:
        raise UserError(f"{folder}: transformers has no {class_name} for {model_type}; give another model")
    with torch.device("meta") if on_meta else nullcontext():
        return models[type(settings)](settings)


def _transformers(folder: Location) -> ModuleType:
    """The library, which reports errors only. Raises UserError when it is not installed."""
    try:
        import transformers
    except ImportError:
        raise UserError(
            f"{folder}: is not a BERT, and transformers, which runs other models, is not installed; install "
            "cloze[transformers]"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _has_pooler(model: nn.Module) -> bool:
    return any("pooler." in name for name in model.state_dict())


def _has_segments(model: nn.Module, tokenizer: Tokenizer) -> bool:
    """Whether the model has an embedding for the second text of a pair, and its tokenizer marks that text."""
    config: Any = model.config
    return (
        "token_type_ids" in inspect.signature(model.forward).parameters
        and getattr(config, "type_vocab_size", 0) > 1
        and 1 in tokenizer.encode("a", "a").type_ids
    )


def _max_tokens(model: nn.Module) -> int | None:
    """The length of the longest input. RoBERTa's positions begin after that of padding."""
    config: Any = model.config
    positions = getattr(config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1
    return positions


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
