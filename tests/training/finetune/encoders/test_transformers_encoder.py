"""Encoders that transformers runs: equal tokens, logits and losses there, exports, resuming, and what is refused."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from cloze.pipeline.core import json_lines
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import as_one_file, source_file
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.warm_start import weights_files
from cloze.training.finetune.encoders.pretrained_encoder import PretrainedEncoder, from_weights_file
from cloze.training.finetune.prediction.fine_tuned_model import FineTunedModel
from cloze.training.finetune.stage import check
from cloze.training.finetune.tasks.question_answering.squad_files import read_questions
from cloze.training.finetune.tasks.question_answering.windows import build_windows
from cloze.training.finetune.tasks.registry import FinetuneConfig, task_of
from cloze.training.finetune.tasks.task_config import TaskConfig
from cloze.training.finetune.trials import FinetuneSetup
from cloze.training.model.hardware import cpu_threads
from tests.training.finetune.encoders.transformers_folders import MODEL_TYPES, SQUAD, texts, write_folder
from tests.training.finetune.tasks.trained import train_in_process

SETTINGS = {"max_seq_length": 96, "learning_rate": 0.001, "batch_size": 4, "epochs": 1, "precision": "fp32"}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda model_type: write_folder(tmp_path_factory.mktemp("models") / model_type, model_type))


def init_file(folder: Path, root: Path) -> Any:
    """The input `init` of a stage, as a run has it."""
    files = [Location(file) for file in weights_files(str(folder), Location(str(root)))]
    return as_one_file([source_file(file, Location(str(root / "sources"))) for file in files], Location(str(root)))


def read_encoder(folder: Path, root: Path) -> PretrainedEncoder:
    return from_weights_file(init_file(folder, root))


def sentences(length: int) -> list[str]:
    """Beginnings of texts, cut after a word."""
    return list(dict.fromkeys(text[:length].rpartition(" ")[0] for text in texts()))


def write_task(kind: str, root: Path, **settings: Any) -> tuple[TaskConfig, dict[str, Location]]:
    """A task of the kind, and its files."""
    found, content, suffix = sentences(70), b"", "jsonl"
    rows = list[dict[str, Any]]()
    if kind == "question_answering":
        answers = [{"text": one.split()[2], "answer_start": len(" ".join(one.split()[:2])) + 1} for one in found]
        questions = [
            {"id": one, "question": one[:30], "answers": [answer]} for one, answer in zip(found, answers, strict=True)
        ]
        paragraphs = [{"context": one["id"], "qas": [one]} for one in questions]
        content = json.dumps({"version": "1.1", "data": [{"title": "", "paragraphs": paragraphs}]}).encode()
        suffix = "json"
        settings = {"max_query_length": 40} | settings
    elif kind == "choice":
        rows = [{"context": one, "choices": [one[::2], one[::3]], "label": i % 2} for i, one in enumerate(found)]
    elif kind == "tagging":
        words = map(str.split, found)
        rows = [{"tokens": one, "tags": ["B-A" if len(word) > 6 else "O" for word in one]} for one in words]
    elif kind == "minimal_pairs":
        rows = [{"sentence_good": one, "sentence_bad": one[::-1]} for one in found[:6]]
    else:
        pairs = itertools.pairwise(found)
        rows = [{"text": a, "text_b": b, "label": "ab"[i % 2]} for i, (a, b) in enumerate(pairs)]
        settings = {"columns": {"text_b": "text_b"}} | settings
    file = root / f"{kind}.{suffix}"
    file.write_bytes(content or json_lines.encode(rows))
    trained = {} if kind == "minimal_pairs" else SETTINGS
    chosen = {"name": "task", "kind": kind, "file": str(file), "max_seq_length": 96, **trained, **settings}
    config = TypeAdapter(FinetuneConfig).validate_python(chosen)
    return config, {"data": Location(str(file))}


def setup(kind: str, folder: Path, root: Path, **settings: Any) -> FinetuneSetup:
    root.mkdir(exist_ok=True)
    config, files = write_task(kind, root, **settings)
    task, encoder = task_of(config).read(config, files), read_encoder(folder, root)
    out = Output(Location(str(root / "out")), "finetune-task", 1, "0")
    return FinetuneSetup(config, task, task.encode(encoder.tokenizer()).splits, encoder, out)


def inputs_of_transformers(kind: str, tokenizer: Any, examples: list[Any], names: dict[str, int]) -> dict[str, Any]:
    """What transformers' tokenizer makes of the examples, with their labels."""
    options = {"padding": True, "return_tensors": "pt"}
    if kind == "classification":
        inputs = tokenizer([one.text for one in examples], [one.text_b for one in examples], **options)
        return {**inputs, "labels": torch.tensor([names[one.label] for one in examples])}
    if kind == "choice":
        pairs = [(one.context, choice) for one in examples for choice in one.choices]
        inputs = tokenizer([pair[0] for pair in pairs], [pair[1] for pair in pairs], **options)
        return {
            **{name: value.unflatten(0, (len(examples), -1)) for name, value in inputs.items()},
            "labels": torch.tensor([one.label for one in examples]),
        }
    if kind == "tagging":
        inputs = tokenizer([" ".join(one.words) for one in examples], **options)
        words = tokenizer([list(one.words) for one in examples], is_split_into_words=True, **options)
        assert words["input_ids"].tolist() == inputs["input_ids"].tolist()
        labels = torch.full_like(inputs["input_ids"], -100)
        for row, one in enumerate(examples):
            for number, tag in enumerate(one.label):
                labels[row, words.word_ids(row).index(number)] = names[tag]
        return {**inputs, "labels": labels}
    questions = [one.question for one in examples]
    inputs = tokenizer([one.text for one in questions], [one.context for one in questions], **options)
    spans = [(one.answers[0].start, one.answers[0].end - 1) for one in questions]
    start, end = (
        torch.tensor([inputs.char_to_token(row, span[side], sequence_index=1) for row, span in enumerate(spans)])
        for side in (0, 1)
    )
    return {**inputs, "start_positions": start, "end_positions": end}


@pytest.mark.parametrize("kind", ["classification", "tagging", "question_answering", "choice"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_tokens_logits_and_loss_are_those_of_transformers_on_the_exported_folder(model_type, kind, folder_of, tmp_path):
    given = setup(kind, folder_of(model_type), tmp_path)
    task: Any = given.task
    model = given.encoder.new_model(task, 3, pretrained=True).eval()
    write_folder_files(given.encoder.model_files(task.head(), model.state_dict()), tmp_path / "exported")
    class_name = task.head().class_name
    reference = getattr(transformers, f"AutoModel{class_name}").from_pretrained(tmp_path / "exported").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")

    data, rows = given.splits["train"], np.arange(6)
    names = {label: number for number, label in reference.config.id2label.items()}
    expected_inputs = inputs_of_transformers(kind, tokenizer, given.examples("train")[: len(rows)], names)
    inputs = task.inputs(data, rows, torch.device("cpu"))
    ids, attended = expected_inputs["input_ids"].flatten(0, -2), expected_inputs["attention_mask"].flatten(0, -2)
    assert (inputs[2].long() == attended).all() and (inputs[0] * attended == ids * attended).all()
    with torch.inference_mode():
        outputs, expected = model(*inputs), reference(**expected_inputs)
        loss = expected.loss
        if kind == "question_answering":  # transformers' softmax is over padding, too
            lengths = attended.sum(1).tolist()
            rows_alone = (
                {name: one[[row], :length] if one.ndim > 1 else one[[row]] for name, one in expected_inputs.items()}
                for row, length in enumerate(lengths)
            )
            loss = torch.stack([reference(**one).loss for one in rows_alone]).mean()
    torch.testing.assert_close(task.loss(outputs, data, rows) / task.loss_terms(data, rows), loss)
    if kind == "question_answering":
        logits, real = torch.stack([expected.start_logits, expected.end_logits], -1), attended.bool()
    else:
        logits, real = expected.logits, attended.bool() if kind == "tagging" else slice(None)
    assert logits.std() > 0.05
    torch.testing.assert_close(outputs[real], logits[real], rtol=0, atol=1e-5)


def write_folder_files(files: dict[str, bytes], folder: Path) -> None:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_with_16_bits_the_heads_compute_in_32(model_type, folder_of, tmp_path):
    given = setup("classification", folder_of(model_type), tmp_path)
    model = given.encoder.new_model(given.task, 3, pretrained=True).eval()
    rows = np.arange(20)
    inputs = given.task.inputs(given.splits["train"], rows, torch.device("cpu"))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        numbers = model(*inputs)[:, 0]
    assert numbers.dtype == torch.float32 and (numbers != numbers.bfloat16()).any()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_pieces_of_minimal_pairs_have_the_log_probabilities_of_transformers(model_type, folder_of, tmp_path):
    given = setup("minimal_pairs", folder_of(model_type), tmp_path)
    data, rows, task = given.splits["test"], np.arange(12), given.task
    inputs = task.inputs(data, rows, torch.device("cpu"))
    input_ids, attention_mask, positions = inputs
    reference = AutoModelForMaskedLM.from_pretrained(folder_of(model_type)).eval()
    with torch.inference_mode():
        found = given.encoder.new_model(task, 3, pretrained=True).eval()(*inputs)
        logits = reference(input_ids=input_ids, attention_mask=attention_mask.long()).logits
    expected = logits[torch.arange(len(rows)), positions].log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    mask = given.encoder.tokenizer().token_to_id("<mask>" if model_type == "roberta" else "[MASK]")
    assert (input_ids[torch.arange(len(rows)), positions] == mask).all()


def test_later_tokens_of_a_word_are_masked_with_its_byte_level_tokens(folder_of, tmp_path):
    given = setup("minimal_pairs", folder_of("roberta"), tmp_path)
    encoding = given.encoder.tokenizer().encode(given.examples("test")[0].good)
    data: Any = given.splits["test"]
    row = next(
        i for i in range(len(encoding.ids)) if encoding.tokens[i + 1][0] != "Ġ" and encoding.tokens[i + 2][0] == "Ġ"
    )
    ids = data.ids.take(np.array([row - 1])).values
    assert (ids == given.encoder.tokenizer().token_to_id("<mask>")).nonzero()[0].tolist() == [row, row + 1]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_answers_are_restored_from_the_characters_of_byte_level_and_unigram_tokens(model_type, folder_of, tmp_path):
    tokenizer = read_encoder(folder_of(model_type), tmp_path).tokenizer()
    questions = read_questions(Location(str(SQUAD)), train=False).questions
    windows = build_windows(questions, tokenizer, max_seq_length=100, doc_stride=30, max_query_length=40)
    rows = np.flatnonzero(windows.start_positions)
    assert len(set(windows.questions[rows].tolist())) > 0.9 * len(questions)
    starts, ends = windows.character_spans(rows, windows.start_positions[rows], windows.end_positions[rows])
    for row, start, end in zip(rows, starts, ends, strict=True):
        question = questions[windows.questions[row]]
        answer, found = question.answers[0].text, question.context[start:end]
        assert answer in found and found == found.strip() and len(found) <= len(answer) + 12


class Killed(Exception):
    pass


def train(given: FinetuneSetup, stop_after: float = np.inf) -> dict[str, bytes]:
    """Trains in this process, at most `stop_after` steps; returns the files of all parts."""
    steps = itertools.count(1)

    def report_progress(done: float, note: str) -> bool:
        if next(steps) >= stop_after:
            raise Killed
        return False

    with cpu_threads(1):
        train_in_process(given, report_progress)
    folder = given.out.location.local_path
    assert folder is not None
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_a_killed_training_resumes_with_the_same_bytes(folder_of, single_process_group, tmp_path):
    settings = {"learning_rate": [0.001, 0.01], "compare_random": True, "freeze_encoder": False}
    whole = train(setup("classification", folder_of("distilbert"), tmp_path / "whole", **settings))
    killed = setup("classification", folder_of("distilbert"), tmp_path / "killed", **settings)
    with pytest.raises(Killed):
        train(killed, stop_after=killed.steps(killed.config.trials[0]) + 2)
    assert train(killed) == whole


def test_the_exported_folder_answers_in_pipelines_and_in_cloze_alike(folder_of, single_process_group, tmp_path):
    given = setup("classification", folder_of("albert"), tmp_path, learning_rate=0.01, freeze_encoder=True)
    train(given)
    folder = tmp_path / "out/model"
    test = given.examples("test")[:5]
    classify = pipeline("text-classification", str(folder), top_k=None)
    expected = classify([{"text": one.text, "text_pair": one.text_b} for one in test])
    model = FineTunedModel.from_folder(Location(str(folder)), given.config)
    for answer, scores in zip(
        model.predict({"text": one.text, "text_b": one.text_b} for one in test), expected, strict=True
    ):
        assert answer["probabilities"] == pytest.approx({one["label"]: one["score"] for one in scores}, abs=1e-5)
    reference = AutoModelForMaskedLM.from_pretrained(folder_of("albert")).state_dict()
    name = "albert.embeddings.word_embeddings.weight"
    assert torch.equal(model.model.state_dict()[f"model.{name}"], reference[name])  # frozen


def test_the_tags_of_a_pipeline_are_those_of_cloze(folder_of, tmp_path):
    given = setup("tagging", folder_of("roberta"), tmp_path)
    weights = given.encoder.new_model(given.task, 3, pretrained=True).state_dict()
    folder = tmp_path / "exported"
    write_folder_files(given.encoder.model_files(given.task.head(), weights), folder)
    tagger = pipeline("token-classification", str(folder), aggregation_strategy="first")
    model = FineTunedModel.from_folder(Location(str(folder)), given.config)
    # The pipeline guesses words from the characters of tokens, and fails at punctuation and where a space is a token.
    sentences = [
        one.words
        for one in given.examples("train")
        if all(word.isalnum() and model.tokenizer.encode(f" {word}").tokens[1] != "Ġ" for word in one.words)
    ]
    tagged = 0
    for words, found in zip(sentences, model.predict({"words": list(one)} for one in sentences), strict=True):
        spans = [range(span["start"], span["end"]) for span in tagger(" ".join(words))]
        starts = np.cumsum([0, *(len(word) + 1 for word in words[:-1])]).tolist()
        begins = {start for start, tag in zip(starts, found["predicted"], strict=True) if tag != "O"}
        assert begins == {start for start in starts if any(start in span for span in spans)}
        tagged += len(begins)
    assert tagged > 10


def test_the_fingerprint_covers_every_file_that_decides_the_model(tmp_path):
    folder = write_folder(tmp_path / "model", "distilbert")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"a.safetensors": names[:10], "b.safetensors": names[10:]}
    for shard, members in shards.items():
        save_file({name: weights[name] for name in members}, folder / shard)
    index = {name: shard for shard, members in shards.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert read_encoder(folder, tmp_path).max_tokens == 128

    identities = [init_file(folder, tmp_path).identity]
    for file in ("a.safetensors", "b.safetensors", "config.json", "tokenizer.json"):
        (folder / file).write_bytes((folder / file).read_bytes() + b" ")
        identities.append(init_file(folder, tmp_path).identity)
    assert len(set(identities)) == 5


def test_a_folder_without_a_pooler_or_with_another_head_is_noted(folder_of, tmp_path):
    assert "albert has no pooler" in read_encoder(folder_of("albert"), tmp_path).notes[0]
    assert read_encoder(folder_of("roberta"), tmp_path).notes == ()
    tagger = write_folder(tmp_path / "tagger", "distilbert", "ForTokenClassification")
    assert read_encoder(tagger, tmp_path).notes == ("tagger has heads of other tasks, which are not used: classifier",)


def edit_config(folder: Path, **changed: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no fast tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "has no tokenizer.json, only files of a slow",
    ),
    "pickles": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "has no model.safetensors; save",
    ),
    "unknown": (lambda folder: edit_config(folder, model_type="nobert"), "has no model of the model_type nobert"),
    "a decoder": (lambda folder: edit_config(folder, model_type="gpt2"), "gpt2 is not an encoder"),
    "other shapes": (lambda folder: edit_config(folder, dim=64), "the weights have other shapes than config.json says"),
    "more layers": (lambda folder: edit_config(folder, n_layers=3), "has no weights transformer.layer.2"),
    "an invalid value": (lambda folder: edit_config(folder, dropout="high"), r"config\.json: .*dropout"),
}


@pytest.mark.parametrize(("damage", "message"), REFUSED.values(), ids=REFUSED)
def test_a_folder_that_cannot_be_used_is_an_error_of_one_line(damage, message, tmp_path):
    folder = write_folder(tmp_path / "model", "distilbert")
    damage(folder)
    with pytest.raises(UserError, match=rf"^{folder}.*{message}") as error:
        read_encoder(folder, tmp_path)
    assert "\n" not in str(error.value)


def test_without_transformers_the_error_names_the_extra(folder_of, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"not installed; install cloze\[transformers\]$"):
        read_encoder(folder_of("albert"), tmp_path)


def test_bert_needs_no_transformers():
    code = "import sys, cloze.training.finetune.stage as _; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_a_head_that_transformers_lacks_is_found_before_training(tmp_path):
    folder = write_folder(tmp_path / "model", "distilbert")
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.EsmConfig(vocab_size=500, max_position_embeddings=130, pad_token_id=0, **shape)
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    for kind, refused in (("classification", False), ("choice", True)):
        settings, files = write_task(kind, tmp_path)
        data = source_file(files["data"], Location(str(tmp_path / "cache")))
        with pytest.raises(UserError, match="has no ForMultipleChoice for esm") if refused else nullcontext():
            check(settings, {"data": data, "init": init_file(folder, tmp_path)})


def test_too_long_inputs_and_missing_masked_lm_heads_are_found_before_training(tmp_path, folder_of):
    config, files = write_task("classification", tmp_path, max_seq_length=129)
    data = source_file(files["data"], Location(str(tmp_path / "cache")))
    with pytest.raises(UserError, match="max_seq_length 129 is more than the model's 128 positions"):
        check(config, {"data": data, "init": init_file(folder_of("roberta"), tmp_path)})
    config, files = write_task("minimal_pairs", tmp_path)
    data = source_file(files["data"], Location(str(tmp_path / "cache")))
    tagger = init_file(write_folder(tmp_path / "tagger", "distilbert", "ForTokenClassification"), tmp_path)
    with pytest.raises(UserError, match="tagger: has no masked-LM head"):
        check(config, {"data": data, "init": tagger})
