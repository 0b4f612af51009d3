"""The commands that use a model: export, predict, embed, inspect and compare. Their options: cli_model_options.py."""

import argparse
import json
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from typing import TYPE_CHECKING

from cloze.infra.cli_shared import is_override, load_run, print_json, quiet_engines
from cloze.pipeline.core.errors import UserError

if TYPE_CHECKING:
    from cloze.infra.open_encoder import OpenedEncoder


def export(options: argparse.Namespace) -> int:
    of_sentences = options.format == "sentence-transformers"
    if not of_sentences and options.pooling:
        raise UserError("--pooling is of vectors: add --format sentence-transformers")
    if of_sentences and options.onnx:
        raise UserError("--onnx: is not written with --format sentence-transformers; leave one of them out")
    run = load_run(options)
    from cloze.infra.export import export_run, export_sentence_encoder, export_task
    from cloze.pipeline.core.storage import Location

    to = Location(options.to).absolute()
    if of_sentences:
        export_sentence_encoder(run, options.task, to, options.pooling)
    elif options.task:
        export_task(run, options.task, to, options.onnx)
    else:
        export_run(run, to, options.onnx)
    print(to)
    return 0


def predict(options: argparse.Namespace) -> int:
    if options.task:
        return _predict_task(options)
    if options.input or options.to:
        raise UserError("--input and --to require a fine-tuned model: name its task with --task")
    if not options.text:
        raise UserError("give a TEXT with [MASK], or --task NAME and its inputs as lines of standard input")
    run = load_run(options)
    from cloze.infra.export import print_predictions
    from cloze.infra.load_model import model_of

    predictions = model_of(run).fill_mask(options.text)
    if options.json:
        return print_json([[prediction._asdict() for prediction in of_mask] for of_mask in predictions])
    print_predictions(predictions)
    return 0


def _predict_task(options: argparse.Namespace) -> int:
    """Print a JSON object for each line of standard input; with --input write files instead."""
    if options.text:
        options.overrides.insert(0, options.text)  # argparse takes the first override for the text
    if bool(options.input) != bool(options.to):
        raise UserError("--input and --to belong together: the files to read, and the folder for their predictions")
    if wrong := [word for word in options.overrides if not is_override(word)]:
        raise UserError(f"{wrong[0]!r}: with --task the inputs are lines of standard input, or files with --input")
    run = load_run(options)
    if options.input:
        from cloze.infra.predict_files import predict_files
        from cloze.pipeline.core.storage import Location

        to = Location(options.to).absolute()
        predict_files(run, options.task, options.input, to)
        print(to)
        return 0
    from cloze.infra.export import predict_lines

    for prediction in predict_lines(run, options.task, _standard_input()):
        print(json.dumps(prediction, ensure_ascii=False), flush=True)
    return 0


def embed(options: argparse.Namespace) -> int:
    """Print a JSON object for each line of standard input; with --to write files."""
    if options.input and not options.to:
        raise UserError("--input requires --to: the folder for the files with their vectors")
    if not options.input and (options.text != "text" or options.text_b is not None):
        raise UserError("--text and --text-b name columns of files: name these with --input")
    quiet_engines()
    from cloze.infra.embed import EmbedSettings, embed_files, embed_standard_input, layers_of, print_vectors
    from cloze.pipeline.core.storage import Location
    from cloze.training.vectors.representation import Representation

    layers = layers_of(options.layers)
    opened = _open_encoder(options)
    representation = Representation(
        layers=layers,
        pooling=options.pooling or opened.trained.pooling,
        special_tokens=opened.trained.special_tokens and not options.without_special_tokens,
    )
    length = opened.trained_length if options.max_length is None else options.max_length
    settings = EmbedSettings(representation, length, options.text, options.text_b)
    if not options.to:
        print_vectors(opened, settings, _standard_input())
        return 0
    to = Location(options.to).absolute()
    if options.input:
        embed_files(opened, settings, options.input, to)
    else:
        embed_standard_input(opened, settings, _standard_input(), to)
    print(to)
    return 0


def _open_encoder(options: argparse.Namespace) -> "OpenedEncoder":
    """The encoder of the options, after a line for each of its remarks."""
    from cloze.infra.open_encoder import open_encoder

    opened = open_encoder(options.run, options.overrides, options.root, options.task)
    for note in opened.remarks:
        print(f"cloze: {note}", file=sys.stderr)
    return opened


def _standard_input() -> Iterator[str]:
    """The lines of standard input. Raises UserError when they are not UTF-8."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")  # whatever the locale says
    try:
        yield from sys.stdin
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: is not UTF-8 ({error.reason}); convert it, for example with iconv") from error


def inspect(options: argparse.Namespace) -> int:
    texts = [options.text, *([options.second] if options.second is not None else [])]
    if len(texts) == 2 and is_override(texts[1]) and " " not in texts[1]:
        options.overrides.insert(0, texts.pop())  # argparse takes the first override for a text
    quiet_engines()
    from cloze.infra.inspection.command import write_page
    from cloze.pipeline.core.storage import Location

    opened = _open_encoder(options)
    print(write_page(opened, texts, Location(options.to), options.sentences, options.word))
    return 0


def compare(options: argparse.Namespace) -> int:
    from cloze.infra.learning_curves import command as learning_curves
    from cloze.infra.learning_curves.comparison import comparison

    labels = learning_curves.parse_labels(options.labels)
    if options.seeds < 1:
        raise UserError(f"--seeds {options.seeds}: give 1 or more")
    found = comparison(load_run(options), options.task, labels, options.seeds, options.encoder)
    curves, page = learning_curves.compare(found)
    if options.json:
        return print_json({**curves.plain(), "page": page.uri})
    learning_curves.print_curves(curves, page)
    return 0
