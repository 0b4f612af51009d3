"""A language and the date of a dump, filled in for {language}, {wiki} and {date} in the text of a configuration."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from cloze.infra.fetch.wikipedia import wiki_of
from cloze.pipeline.core.config import Config


class Partition(Config):
    """What a run with `schedule.partitions` is of: `partition.language=la partition.date=20261101` on the command line.
    The schedule and the sensors set it."""

    language: str
    """One of `schedule.partitions.languages`."""
    date: str = Field(pattern=r"^\d{8}$")
    """The date of the dump, such as 20261101."""

    @field_validator("date", mode="before")
    @classmethod
    def _number_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value  # YAML reads 20261101 as a number

    @property
    def wiki(self) -> str:
        """The name of the language's Wikipedia, such as lawiki."""
        return wiki_of(self.language)


class PartitionMissing(ValueError):
    """A configuration with partitions lacks `partition`. `language` is the first of its languages."""

    def __init__(self, language: str):
        example = f"partition.language={language} partition.date=20261101"
        super().__init__(f"has schedule.partitions: add a language and the date of a dump, such as {example}")
        self.language = language


def fill_in(data: dict[str, Any]) -> dict[str, Any]:
    """The plain data of a run's configuration with its partition in all texts. Unchanged if it has no partitions.

    Raises PartitionMissing, and ValueError when it is unknown or the languages would share the run's name.
    """
    schedule = data.get("schedule")
    partitions = schedule.get("partitions") if isinstance(schedule, Mapping) else None
    if not isinstance(partitions, Mapping):
        return data
    partition, languages = data.get("partition"), partitions.get("languages")
    if not isinstance(languages, list) or not languages:
        return data  # which is an error of its own
    if not isinstance(partition, Mapping) or not {"language", "date"} <= partition.keys():
        raise PartitionMissing(languages[0])
    if partition["language"] not in languages:
        raise ValueError(f"partition.language is {partition['language']}; give one of {', '.join(languages)}")
    if "{date}" in str(data.get("name")):
        raise ValueError("name contains {date}; leave it out: checks and promotion compare the dumps of one name")
    filled = {key: _replaced(value, _texts(partition)) for key, value in data.items()}
    name = str(filled.get("name"))
    if len(languages) > 1 and base_name(name, partition["language"]) == name:
        template = str(data.get("name"))
        fix = "write it with -{language} at its end" if "{" in template else f"write {template}-{{language}}"
        raise ValueError(f"name is {template} for all languages; {fix}")
    return filled


def base_name(name: str, language: str) -> str:
    """The name of a run without its language at the end: wiki-la or wiki-lawiki -> wiki."""
    return re.sub(rf"[-_]({re.escape(language)}|{re.escape(wiki_of(language))})$", "", name)


def _texts(partition: Mapping[str, Any]) -> dict[str, str]:
    texts = {f"{{{key}}}": str(value) for key, value in partition.items()}
    return {**texts, "{wiki}": wiki_of(str(partition.get("language", "")))}


def _replaced(value: Any, texts: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _replaced(item, texts) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, texts) for item in value]
    if isinstance(value, str):
        for name, text in texts.items():
            value = value.replace(name, text)
    return value
