"""The arguments of the commands that use a model (cli_models.py), and their help."""

import argparse

_HUGGING_FACE = """RUN may also be a folder in Hugging Face's format: a BERT, or any encoder with masked LM that
AutoModel loads.
"""
#: What a command prints or writes, for its help.
OUTPUTS = {
    "embed": f"""{_HUGGING_FACE}Without --to the output is a JSON object for each line, {{"vector": [...]}}, null for a
blank line. With --to these are Parquet files with all columns of the input and the column `vector`, a list of fp32
numbers.
""",
    "inspect": _HUGGING_FACE,
    "compare": """--json prints one object:
  run, task, metric, scored_split, train_rows (labelled rows of the task), labels, seeds,
  curves (name -> a list of labels, scores by seed, mean, standard_deviation: null with one seed),
  majority (the score of the most frequent class), page (its location),
  saved (a list of labels, the score of this checkpoint, needed: name -> relation (about, at most, more than), labels)
""",
    "predict": """--json prints one list, for each [MASK] a list of {piece, probability}, the most likely first.
With --task the output is always JSON: an object for each line, with `predicted` and probabilities. With --input these
are columns of Parquet files.
""",
}


def add_model_arguments(command: argparse.ArgumentParser, name: str) -> None:
    """Add the positional arguments between RUN and the overrides, if the command has some."""
    if name == "compare":
        command.add_argument("task", metavar="TASK", help="a task of the kind classification")
    if name == "predict":
        command.add_argument("text", metavar="TEXT", nargs="?", help='such as "She opened the [MASK]."')
    if name == "inspect":
        command.add_argument("text", metavar="TEXT", help='such as "She opened the [MASK]."')
        command.add_argument("second", metavar="TEXT", nargs="?", help="a second text, which the model reads as a pair")


def add_model_options(command: argparse.ArgumentParser, name: str) -> None:
    """Add the options, if the command is one that uses a model."""
    if name in ("export", "predict", "embed", "inspect"):
        command.add_argument("--task", metavar="NAME", help="the fine-tuned model of this task")
    options = {
        "export": _add_export,
        "predict": _add_predict,
        "embed": _add_embed,
        "inspect": _add_inspect,
        "compare": _add_compare,
    }
    if name in options:
        options[name](command)


def _add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument("--to", metavar="DIR", required=True, help="a new or empty folder, or s3://bucket/prefix")
    command.add_argument("--onnx", action="store_true", help="also write model.onnx, for onnxruntime")
    command.add_argument(
        "--format",
        choices=["transformers", "sentence-transformers"],
        default="transformers",
        help="sentence-transformers: also what SentenceTransformer loads, for the vectors of `cloze embed`",
    )
    _add_pooling(command)


def _add_predict(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--input",
        metavar="PATH",
        action="append",
        help="with --task: predict all rows of a file (.parquet, .jsonl, .csv, .tsv), glob or folder (may be repeated)",
    )
    command.add_argument(
        "--to",
        metavar="DIR",
        help="with --input: a new folder, or s3://bucket/prefix, for Parquet files with the rows and their "
        "predictions; repeated, an interrupted prediction continues",
    )


def _add_embed(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--input",
        metavar="PATH",
        action="append",
        help="embed all rows of a file (.parquet, .jsonl, .csv, .tsv), glob or folder (may be repeated)",
    )
    command.add_argument(
        "--to",
        metavar="DIR",
        help="a new folder, or s3://bucket/prefix, for Parquet files; repeated, an interrupted command continues",
    )
    command.add_argument(
        "--layers",
        metavar="LAYERS",
        default="last",
        help="a number (0: the embeddings), last (the default), second-to-last, sum-all, sum-last-4 or concat-last-4",
    )
    _add_pooling(command)
    command.add_argument("--without-special-tokens", action="store_true", help="leave [CLS] and [SEP] out of the mean")
    command.add_argument(
        "--max-length",
        metavar="N",
        type=int,
        help="cut texts to N tokens; by default the longest input of the model, or of a contrastive task",
    )
    command.add_argument("--text", metavar="COLUMN", type=_column, default="text", help="column of the text: text")
    command.add_argument("--text-b", metavar="COLUMN", type=_column, help="column of a second text, for pairs")


def _add_inspect(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--to",
        metavar="FILE.html",
        default="inspect.html",
        help="the page, local or s3://bucket/key (default: inspect.html)",
    )
    command.add_argument(
        "--sentences",
        metavar="FILE",
        help="a text file whose lines are compared with the text; by default held-out sentences of the run",
    )
    command.add_argument(
        "--word",
        metavar="WORD",
        help="the word whose vectors are compared; by default the most frequent one that both texts have",
    )


def _add_compare(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--labels", metavar="N,N,...", required=True, help="numbers of labelled rows to learn from, such as 50,200,1000"
    )
    command.add_argument("--seeds", metavar="N", type=int, default=3, help="how often each is drawn and trained (3)")
    command.add_argument("--encoder", metavar="DIR", help="also start from this published model, a Hugging Face folder")


def _add_pooling(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--pooling",
        choices=["mean", "cls"],
        help="of vectors: mean of the tokens (default), or [CLS]; of a contrastive task as it was trained",
    )


def _column(text: str) -> str | int:
    """A column by its name, or by its number, from 1, in a .csv or .tsv without a header."""
    return int(text) if text.isdecimal() else text
