"""A run with `schedule.partitions` -> Dagster's partitions: a language and the date of a dump.

The dates are dynamic: a sensor, a tick of the schedule or `cloze run` adds one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import dagster

from cloze.infra.fetch.finished import FinishedDump, finished_dumps
from cloze.infra.partitions import PartitionMissing
from cloze.infra.run_config import RunConfig
from cloze.infra.workflow.cluster import read_config
from cloze.infra.workflow.names import identifier
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location

_ANY_DATE = "19700101"


@dataclass(frozen=True)
class ConfiguredRun:
    """A run as Dagster's pages show it: `config`, or, of a `file` with partitions, the configuration of each.

    The stages of `config` are those of all partitions.
    """

    config: RunConfig
    file: str | None = None

    @property
    def name(self) -> str:
        """The name that its assets have, which all partitions share."""
        return self.config.base_name

    @cached_property
    def dates(self) -> dagster.DynamicPartitionsDefinition | None:
        """The dates of the dumps; None for a run without partitions."""
        has_dates = self.config.schedule.partitions is not None
        return dagster.DynamicPartitionsDefinition(name=f"{identifier(self.name)}_dates") if has_dates else None

    @cached_property
    def partitions(self) -> dagster.MultiPartitionsDefinition | None:
        """Languages times dates; None for a run without partitions."""
        partitions = self.config.schedule.partitions
        if partitions is None or self.dates is None:
            return None
        languages = dagster.StaticPartitionsDefinition(partitions.languages)
        return dagster.MultiPartitionsDefinition({"date": self.dates, "language": languages})

    @property
    def partition_key(self) -> str | None:
        """The partition of `config`; None for a run without partitions."""
        return self.config.partition and key_of(self.config.partition.language, self.config.partition.date)

    def of(self, key: str | None) -> RunConfig:
        """The configuration of a partition, or of a run without partitions. Raises UserError for a wrong one."""
        if key is None or self.partitions is None or key == self.partition_key:
            return self.config
        if self.file is None:
            raise UserError(f"{key}: is not the partition of {self.config.name}; start it from its YAML file")
        date, language = key.split("|")
        return read_config(self.file, [f"partition.language={language}", f"partition.date={date}"])

    @property
    def of_languages(self) -> list[RunConfig]:
        """A configuration for each language, whose name and stages are those of all its dates; else `config` alone."""
        partitions = self.config.schedule.partitions
        if partitions is None or self.file is None:
            return [self.config]
        return [self.of(key_of(language, _ANY_DATE)) for language in partitions.languages]

    def add_dates(self, instance: dagster.DagsterInstance, dates: Sequence[str]) -> None:
        """Add dates of dumps to the partitions; those that they have stay."""
        assert self.dates and self.dates.name
        instance.add_dynamic_partitions(self.dates.name, sorted(set(dates)))

    def dumps(self) -> list[FinishedDump]:
        """The finished dumps of its languages, by language and date."""
        partitions = self.config.schedule.partitions
        assert partitions
        return sorted(finished_dumps(Location(partitions.dumps).absolute(), partitions.languages))


def newest(dumps: Sequence[FinishedDump]) -> list[FinishedDump]:
    """The last of each language."""
    return list({dump.language: dump for dump in dumps}.values())


def key_of(language: str, date: str) -> dagster.MultiPartitionKey:
    """20261101|la"""
    return dagster.MultiPartitionKey({"date": date, "language": language})


def partition_of(context: dagster.AssetExecutionContext) -> str | None:
    """The partition of a run, such as 20261101|la; None for a run without partitions."""
    return context.partition_key if context.has_partition_key else None


def read_run(run: str) -> ConfiguredRun:
    """A run by its YAML file or its name: see `named_runs.read`."""
    try:
        return ConfiguredRun(read_config(run))
    except UserError as error:
        if not isinstance(missing := error.__cause__, PartitionMissing):
            raise
        any_partition = [f"partition.language={missing.language}", f"partition.date={_ANY_DATE}"]
        return ConfiguredRun(read_config(run, any_partition), run)
