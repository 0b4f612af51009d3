"""The user's files that a run reads -> Dagster's observable source assets, upstream of the stages that read them."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

import dagster

from cloze.infra.planner import Run
from cloze.infra.stage_inputs import UserFiles
from cloze.infra.stages import Stage
from cloze.infra.workflow.names import identifier, source_key
from cloze.infra.workflow.partitions import ConfiguredRun, partition_of
from cloze.infra.workflow.run_process import process_tag
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.threads import map_in_threads

Sources = Mapping[dagster.AssetKey, UserFiles]


def sources_of(run_name: str, stages: Sequence[Stage]) -> dict[dagster.AssetKey, UserFiles]:
    """The files that the stages of a run read. What several stages read is one asset, named by the first of them."""
    found, seen = dict[dagster.AssetKey, UserFiles](), set[tuple[str, ...]]()
    for stage in stages:
        for name, files in stage.sources.items():
            if files.path.patterns not in seen and not all(map(files.path.mark.is_name, files.path.patterns)):
                seen.add(files.path.patterns)
                found[source_key(run_name, stage.name, name)] = files
    return found


def read_by(sources: Sources, stage: Stage) -> list[dagster.AssetKey]:
    """The assets of the files that a stage reads."""
    read = {files.path.patterns for files in stage.sources.values()}
    return [key for key, files in sources.items() if files.path.patterns in read]


def observable_sources(configured: ConfiguredRun) -> list[dagster.AssetsDefinition]:
    """The source assets of a run, which its pages can observe; none for a run that reads no files."""
    sources = sources_of(configured.name, Run(configured.config).unresolved_stages)
    if not sources:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dagster.BetaWarning)
        decorate = dagster.multi_observable_source_asset(
            name=f"{identifier(configured.name)}_files",
            specs=[_spec(configured.name, key, files) for key, files in sources.items()],
            can_subset=True,
            partitions_def=configured.partitions,
        )

        @decorate
        def observe_files(context: dagster.AssetExecutionContext) -> Iterator[dagster.ObserveResult]:
            context.instance.add_run_tags(context.run.run_id, process_tag(context.run.run_id))
            run = Run(configured.of(partition_of(context)))
            now = sources_of(configured.name, list(run.stages.values()))
            for key in (key for key in now if key in context.selected_asset_keys):
                version, metadata = observe(run, now[key])
                yield dagster.ObserveResult(asset_key=key, data_version=dagster.DataVersion(version), metadata=metadata)

    return [observe_files]


def _spec(run_name: str, key: dagster.AssetKey, files: UserFiles) -> dagster.AssetSpec:
    patterns = "\n".join(f"- `{pattern}`" for pattern in files.path.patterns)
    return dagster.AssetSpec(key, group_name=identifier(run_name), description=patterns, kinds={"file"})


def observe(run: Run, files: UserFiles) -> tuple[str, dict[str, dagster.MetadataValue]]:
    """The data version of the user's files, and what their page shows. Raises MissingFile."""
    found = run.source_files(files)
    changed = [change for change in map_in_threads(_changed, found) if change]
    metadata: dict[str, dagster.MetadataValue] = {
        "files": dagster.MetadataValue.int(len(found)),
        "bytes": dagster.MetadataValue.int(sum(file.bytes for file in found)),
        "names": dagster.MetadataValue.text(", ".join(files.path.patterns)),
    }
    if changed:
        metadata["newest"] = dagster.MetadataValue.timestamp(max(changed))
    return hashlib.sha256(files.identity(found).encode()).hexdigest()[:16], metadata


def _changed(file: SourceFile) -> datetime | None:
    changed = file.location.info().mtime
    return changed and changed.replace(tzinfo=changed.tzinfo or UTC)
