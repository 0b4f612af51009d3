import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from cloze.pipeline.core import yaml_text
from cloze.pipeline.core.config import (
    Compute,
    Config,
    InputPath,
    identity,
    input_paths,
    load,
    parse,
    with_paths,
)
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.unknown_keys import key_paths


class Phase(Config):
    steps: int = Field(gt=0)
    rate: float = 1e-4


class Source(Config):
    name: str
    files: tuple[str, ...] = ()


class Tuning(Config):
    kind: Literal["grid", "fixed"] = "fixed"
    phases: tuple[Phase, ...] = ()


class Toy(Config):
    name: str
    sources: tuple[Source, ...] = ()
    tuning: Tuning = Tuning()
    workers: Annotated[int, Compute] = 2
    note: str | None = None

    @model_validator(mode="after")
    def _never_both(self) -> "Toy":
        if self.note == "bad" and self.workers == 1:
            raise ValueError("one worker cannot be bad; give it two")
        return self


YAML = """\
name: toy
sources:
  - name: wiki
    files: [a.xml]
  - name: books
    files: [b.txt]
tuning:
  phases:
    - {steps: 10, rate: 1e-4}
    - steps: 5
      rate: 0.5
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """toy.yaml in the current folder, so that errors name it as a user would."""
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(YAML)
    return Path("toy.yaml")


def error(text: str | None = None, *overrides: str) -> str:
    """The one line that loading toy.yaml with that text gives."""
    if text is not None:
        Path("toy.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load(Toy, "toy.yaml", overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_file_is_read(file: Path) -> None:
    toy = load(Toy, file)
    assert [source.name for source in toy.sources] == ["wiki", "books"]
    assert toy.tuning.phases == (Phase(steps=10, rate=1e-4), Phase(steps=5, rate=0.5))
    assert toy.workers == 2


def test_a_misspelt_key_is_named_with_its_line_and_the_right_one(file: Path) -> None:
    assert (
        error(YAML.replace("rate: 0.5", "rat: 0.5"))
        == "toy.yaml:11: tuning.phases.1.rat: unknown key; did you mean rate?"
    )
    assert error("name: toy\nwrokers: 3\n") == "toy.yaml:2: wrokers: unknown key; did you mean workers?"


def test_a_key_that_is_like_no_other_is_to_be_removed(file: Path) -> None:
    assert error("name: toy\nqqq: 3\n") == "toy.yaml:2: qqq: unknown key; remove it or correct its name"


def test_a_key_in_the_wrong_section_is_named_with_the_right_ones(file: Path) -> None:
    assert (
        error("name: toy\nsteps: 3\n") == "toy.yaml:2: steps: is not a key of this section; it belongs to tuning.phases"
    )
    assert error("name: toy\ntuning: {name: a}\n").endswith(
        "tuning.name: is not a key of this section; it belongs to the top level or sources"
    )


def test_a_key_of_another_program_gets_the_hint_of_the_configuration(file: Path) -> None:
    class Hinting(Toy):
        KEY_HINTS: ClassVar[Mapping[str, object]] = {"num_workers": "use workers"}

    with pytest.raises(UserError, match=r"^num_workers=3: num_workers: unknown key; use workers$"):
        load(Hinting, file, ["num_workers=3"])


def test_the_paths_of_keys_leave_out_indices_and_go_through_unions() -> None:
    class Tree(Config):
        one: Source | None = None
        named: dict[str, Phase] = Field(default={})

    assert key_paths(Tree) == ["one", "one.name", "one.files", "named", "named.steps", "named.rate"]


def test_a_misspelt_key_is_reported_before_the_missing_key(file: Path) -> None:
    assert error("nmae: toy\n").startswith("toy.yaml:1: nmae: unknown key; did you mean name?")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: toy\nworkers: '3'\n", 'toy.yaml:2: workers is "3": '),
        ("name: toy\nworkers: 2.5\n", "toy.yaml:2: workers is 2.5: "),
        ("name: toy\nworkers: true\n", "toy.yaml:2: workers is true: "),
        ("name: 7\n", "toy.yaml:1: name is 7: "),
        ("name: toy\ntuning: {phases: [{steps: 0}]}\n", "toy.yaml:2: tuning.phases.0.steps is 0: "),
        ("name: toy\ntuning: {kind: gird}\n", 'toy.yaml:2: tuning.kind is "gird": '),
        ("name: toy\nsources: wiki\n", 'toy.yaml:2: sources is "wiki": '),
        ("name: toy\ntuning: {phases: [{steps: 1, rate: .nan}]}\n", "toy.yaml:2: tuning.phases.0.rate is NaN: "),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_line(file: Path, text: str, line: str) -> None:
    assert error(text).startswith(line)


def test_a_missing_key_is_named(file: Path) -> None:
    assert error("workers: 3\n") == "toy.yaml:1: name: is missing; add it"
    assert error("name: toy\nsources:\n  - files: [a]\n") == "toy.yaml:3: sources.0.name: is missing; add it"


def test_a_missing_kind_of_several_is_named(file: Path) -> None:
    class Circle(Config):
        kind: Literal["circle"]
        radius: float

    class Square(Config):
        kind: Literal["square"]
        side: float

    class Shapes(Config):
        shapes: tuple[Annotated[Circle | Square, Field(discriminator="kind")], ...]

    for shape, line in (
        ("{radius: 1}", "toy.yaml:2: shapes.0.kind: is missing; add it"),
        ("{kind: circel, radius: 1}", "toy.yaml:2: shapes.0: Input tag 'circel' found using 'kind' does not match"),
        ("{kind: circle, side: 1}", "toy.yaml:2: shapes.0.side: is a key of another kind of entry; "),
        ("{kind: circle, radius: a}", 'toy.yaml:2: shapes.0.radius is "a": '),
    ):
        Path("toy.yaml").write_text(f"shapes:\n  - {shape}\n")
        with pytest.raises(UserError) as caught:
            load(Shapes, "toy.yaml")
        assert str(caught.value).startswith(line)


def test_a_rule_over_several_keys_has_its_own_message(file: Path) -> None:
    assert (
        error("name: toy\nnote: bad\nworkers: 1\n")
        == "toy.yaml:1: the configuration: one worker cannot be bad; give it two"
    )


def test_several_errors_are_counted_and_the_first_is_reported(file: Path) -> None:
    assert error("name: 7\nworkers: a\n").endswith("(and 1 more)")


def test_a_duplicate_key_is_refused(file: Path) -> None:
    assert error("name: toy\nworkers: 1\nworkers: 2\n") == "toy.yaml:3: the key workers occurs twice; remove one"


def test_scalars_are_those_of_yaml_1_2(file: Path) -> None:
    Path("toy.yaml").write_text(
        "name: no\nnote: 2024-01-02\ntuning: {phases: [{steps: 1_000, rate: 1e-4}, {steps: 7, rate: 5}]}\n"
    )
    toy = load(Toy, file)
    assert (toy.name, toy.note) == ("no", "2024-01-02")
    assert toy.tuning.phases == (Phase(steps=1000, rate=0.0001), Phase(steps=7, rate=5.0))
    Path("toy.yaml").write_text("name: on\nnote: ~\n")
    assert load(Toy, file) == Toy(name="on", note=None)
    Path("toy.yaml").write_text("name: 'true'\nnote: null\n")
    assert load(Toy, file) == Toy(name="true", note=None)


def test_a_leading_zero_makes_no_octal_number(file: Path) -> None:
    Path("toy.yaml").write_text("name: toy\nworkers: 010\n")
    assert load(Toy, file).workers == 10
    Path("toy.yaml").write_text("name: toy\nworkers: 08\n")
    assert load(Toy, file).workers == 8


@pytest.mark.parametrize("text", ["!!int many", "!!timestamp 2024-01-02", "!!binary aGVsbG8="])
def test_a_tagged_value_that_json_has_not_is_refused(file: Path, text: str) -> None:
    assert error(f"name: toy\nworkers: {text}\n").startswith(f"toy.yaml:2: {text.split()[1]} is not text, a number, ")


def test_an_endless_alias_is_refused(file: Path) -> None:
    assert error("name: toy\nnote: &a [*a]\n").startswith("toy.yaml: an anchor contains itself; ")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "toy\n"])
def test_a_file_without_keys_is_refused(file: Path, text: str) -> None:
    assert error(text).startswith("toy.yaml: has no keys; ")


@pytest.mark.parametrize("text", ["name: [toy\n", "name: toy\n\tworkers: 2\n", "name: a: b\n", "a: &x 1\nb: *y\n"])
def test_invalid_yaml_is_refused_with_its_line(file: Path, text: str) -> None:
    assert error(text).startswith(("toy.yaml:1: is not valid YAML: ", "toy.yaml:2: is not valid YAML: "))


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    with pytest.raises(UserError, match=r"^gone\.yaml: cannot be read \(No such file or directory\); "):
        load(Toy, "gone.yaml")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\); "):
        load(Toy, file.parent)
    Path("toy.yaml").write_bytes(b"name: \xff\xfe")
    assert error().startswith("toy.yaml: is not UTF-8 text; ")


def test_overrides_reach_inside_by_key_name_and_index(file: Path) -> None:
    toy = load(
        Toy,
        file,
        ["workers=8", "tuning.kind=grid", "sources.books.files=[c.txt, d.txt]", "tuning.phases.1.steps=99"],
    )
    assert (toy.workers, toy.tuning.kind) == (8, "grid")
    assert toy.sources == (Source(name="wiki", files=("a.xml",)), Source(name="books", files=("c.txt", "d.txt")))
    assert [phase.steps for phase in toy.tuning.phases] == [10, 99]


def test_an_override_makes_the_keys_on_its_way(file: Path) -> None:
    Path("toy.yaml").write_text("name: toy\n")
    assert load(Toy, file, ["tuning.kind=grid"]).tuning.kind == "grid"
    assert load(Toy, file, ["note="]).note is None
    assert load(Toy, file, ["note=a=b"]).note == "a=b"


def test_the_keys_of_a_file_take_the_place_of_those_before(file: Path) -> None:
    Path("more.yaml").write_text("workers: 9\ntuning:\n  kind: grid\nsources: []\n")
    toy = load(Toy, file, ["workers=3", "more.yaml", "tuning.phases.1.steps=99"])
    assert (toy.workers, toy.tuning.kind, toy.sources) == (9, "grid", ())
    assert [phase.steps for phase in toy.tuning.phases] == [10, 99]


def test_a_wrong_key_of_such_a_file_is_named_with_its_file_and_line(file: Path) -> None:
    Path("more.yml").write_text("tuning:\n  kind: gird\n")
    assert error(None, "more.yml").startswith('more.yml:2: tuning.kind is "gird": ')
    assert error(None, "none.yaml").startswith("none.yaml: cannot be read (No such file")
    Path("more.yml").write_text("tuning:\n  kind: grid\n")
    assert ":1: wrokers: unknown key" in error("wrokers: 1", "more.yml")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("workers", "workers: is not an override; write key=value"),
        ("=7", "=7: is not an override; write key=value"),
        ("wrokers=3", "wrokers=3: wrokers: unknown key; did you mean workers?"),
        ("workers=many", 'workers=many: workers is "many": '),
        ("tuning.kind=gird", 'tuning.kind=gird: tuning.kind is "gird": '),
        ("sources.bokes.files=[]", "sources.bokes.files=[]: bokes is not in that list; it has wiki, books, 0 to 1"),
        ("tuning.phases.2.steps=1", "tuning.phases.2.steps=1: 2 is not in that list; it has 0 to 1"),
        ("name.first=a", "name.first=a: there is no key first inside a single value; "),
        ("note=[a", "note=[a:1: is not valid YAML: "),
        (
            "tuning={kind: grid, kind: fixed}",
            "tuning={kind: grid, kind: fixed}:1: the key kind occurs twice; remove one",
        ),
    ],
)
def test_a_wrong_override_is_named_in_one_line(file: Path, override: str, line: str) -> None:
    assert error(None, override).startswith(line)


@pytest.mark.parametrize(
    "text", ["no", "1e-4", "010", "~", "", "a: b #c", " x\n", "é\u2028\x85\x00", "😀" * 99, "!!int 7"]
)
def test_dumped_data_is_read_back_unchanged(text: str) -> None:
    toy = Toy(name=text, sources=(Source(name="a", files=(text, "*.txt")),), note=text)
    toy = toy.model_copy(update={"tuning": Tuning(phases=(Phase(steps=1, rate=1e-300), Phase(steps=2, rate=0.1)))})
    assert parse(Toy, yaml_text.dump(toy.model_dump(mode="json")).encode(), "toy.yaml") == toy


@given(st.text())
def test_any_text_is_read_back_as_it_was_dumped(text: str) -> None:
    data = {"a": text, "b": [{"c": text}]}
    assert yaml_text.read(yaml_text.dump(data), "toy.yaml")[0] == data


def test_identity_leaves_out_how_and_where_to_run() -> None:
    assert identity(Toy(name="a", workers=1)) == identity(Toy(name="a", workers=64))
    assert "workers" not in identity(Toy(name="a"))
    assert identity(Toy(name="a")) != identity(Toy(name="b"))


def test_identity_is_plain_json_at_any_depth() -> None:
    class Inner(Config):
        threads: Annotated[int, Compute] = 4
        seed: int = 1

    class Outer(Config):
        inner: Inner = Inner()
        many: tuple[Inner, ...] = (Inner(seed=2),)
        by_name: dict[str, Inner]

    plain = identity(Outer(by_name={"a": Inner(seed=3)}))
    assert plain == {"inner": {"seed": 1}, "many": [{"seed": 2}], "by_name": {"a": {"seed": 3}}}
    assert json.loads(json.dumps(plain)) == plain


def test_unset_fields_are_not_part_of_the_identity() -> None:
    class Guard(Config):
        factor: float | None = 20.0
        note: str | None = None

    class Before(Config):
        size: int = 1

    class After(Config):
        size: int = 1
        added: int | None = None
        part: Guard = Guard(factor=None)
        marks: Annotated[Guard, Compute] = Guard()

    assert identity(After()) == identity(Before()) == {"size": 1}
    assert identity(After(added=0)) == {"size": 1, "added": 0}
    assert identity(After(part=Guard())) == {"size": 1, "part": {"factor": 20.0}}


class Corpus(Config):
    name: str
    files: Annotated[list[str], InputPath("")]
    stopwords: Annotated[str | None, InputPath()] = None


class Reading(Config):
    size: int = 1
    file: Annotated[str, InputPath("data")] = "a.txt"
    other: Annotated[str | None, InputPath()] = None
    init: Annotated[str | None, InputPath(files_in=lambda folder, root: [f"{folder}/x"], is_name=str.isdigit)] = None
    corpora: tuple[Corpus, ...] = ()
    lists: Annotated[dict[str, str] | None, InputPath()] = None


WIKI = Corpus(name="wiki", files=["b*.txt", "c.txt"], stopwords="d.txt")
READING = Reading(init="model", corpora=(WIKI, Corpus(name="x", files=[])), lists={"stop": "e.txt"})


def test_marked_paths_are_found_at_any_depth_under_their_inputs_names() -> None:
    assert [(path.keys, path.input, path.patterns) for path in input_paths(READING)] == [
        (("file",), "data", ("a.txt",)),
        (("init",), "init", ("model",)),
        (("corpora", 0, "files"), "wiki", ("b*.txt", "c.txt")),
        (("corpora", 0, "stopwords"), "wiki.stopwords", ("d.txt",)),
        (("corpora", 1, "files"), "x", ()),
        (("lists", "stop"), "stop", ("e.txt",)),
    ]


def test_a_marked_path_is_not_part_of_the_identity() -> None:
    assert identity(READING) == {"size": 1, "corpora": [{"name": "wiki"}, {"name": "x"}]}


def test_marked_paths_can_be_replaced_and_nothing_else_changes() -> None:
    replaced = with_paths(READING, lambda _, pattern: [f"/{pattern}"])
    assert Reading.model_validate_json(json.dumps(replaced)) == Reading(
        file="/a.txt",
        init="/model",
        corpora=(Corpus(name="wiki", files=["/b*.txt", "/c.txt"], stopwords="/d.txt"), Corpus(name="x", files=[])),
        lists={"stop": "/e.txt"},
    )


def test_a_field_for_one_file_that_names_several_is_refused() -> None:
    with pytest.raises(UserError, match=r"^a\.txt: matches 2 files \(b\.txt, \.\.\.\); name one$"):
        with_paths(READING, lambda *_: ["b.txt", "c.txt"])


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Toy(name="a").name = "b"  # pyright: ignore[reportAttributeAccessIssue]
