"""One stage with sources that are there already, run and locked exactly as a recipe runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcompress.architecture import DualEncoderConfig
from mmcompress.artifact import Artifact
from mmcompress.config import StageConfig, validated
from mmcompress.home import expanded
from mmcompress.lock import locked
from mmcompress.pipeline.plan import check_data, check_use, local_inputs
from mmcompress.pipeline.recipe import assign, reduced
from mmcompress.pipeline.run import digest_of_standing, parents_of, run_stage, whole_and_right
from mmcompress.pipeline.sources import Given
from mmcompress.places import MANIFEST, check_place, inside_folders
from mmcompress.stages import STAGES

NO_SOURCES: Mapping[str, Artifact] = {}


def checked(
    name: str,
    tables: Mapping[str, Any],
    given: Given,
    sources: Mapping[str, Artifact] = NO_SOURCES,
    start: DualEncoderConfig | None = None,
) -> StageConfig:
    """As `config_of`, with what the stage itself says is impossible refused: for before a command's first long step.

    `start` are the sizes of a checkpoint that is still to be made.
    """
    built = config_of(name, tables, given, sources)
    STAGES[name].refuse_impossible(built, sources, start)
    return built


def config_of(
    name: str,
    tables: Mapping[str, Any],
    given: Given,
    sources: Mapping[str, Artifact] = NO_SOURCES,
    command: str | None = None,
) -> StageConfig:
    """The config of a stage, `given` over `tables`; `command` is what was typed, where it has another name."""
    stage = STAGES[name]
    values = {key: dict(value) if isinstance(value, Mapping) else value for key, value in tables.items()}
    for key, value in given.items():
        assign(values, key.split("."), value)
    where = f"mmcompress {command or name}"
    built = reduced(validated(stage.config, values, where), stage)
    check_use(built, stage, sources, where)
    return built


def check_places(out: Path, name: str, built: StageConfig, beside: Mapping[str, str], source: str | Path = "") -> None:
    """Raise UsageError, before a command's first long step, unless all that it makes may be written.

    That is OUT, by the stage `name`, and OUT-END of every end in `beside`, by the stage that makes it there. They lie
    apart from what the config reads, and from `source` where that is a folder.
    """
    read = local_inputs(built)
    if source and (folder := expanded(source)).exists():
        read.append(folder)
    check_place(out, read, name)
    for end, stage in beside.items():
        check_place(out.with_name(f"{out.name}-{end}"), read, stage)


def look_at_data(name: str, built: StageConfig, out: Path) -> None:
    """As `check_data`, before a command's first long step; where an artifact lies at `out` that may be none."""
    if not (out / MANIFEST).is_file():
        check_data(built, STAGES[name])


def run_single(
    name: str,
    tables: Mapping[str, Any],
    given: Given,
    sources: Mapping[str, Artifact],
    out: Path,
    gathered: Sequence[Artifact] = (),
) -> Artifact:
    """Check the config, `given` over `tables`, and run one stage; `out` becomes its artifact, or is reused."""
    stage, built = STAGES[name], config_of(name, tables, given, sources)
    read = [*sources.values(), *gathered]
    standing = digest_of_standing(stage, built, parents_of(sources, gathered), out)
    if standing is None:
        stage.refuse_impossible(built, sources)
        check_data(built, stage)
    check_place(out, [artifact.path for artifact in read], name)
    places = [artifact.path for artifact in read]
    if standing is not None:  # several commands may use one teacher's graphs at once
        with locked(reading=[out, *places]):
            for artifact in read:
                artifact.check_unchanged()
            if (reused := whole_and_right(stage, built, sources, tuple(gathered), out)) is not None:
                return reused
    with inside_folders(out), locked(out, reading=places):
        for artifact in read:
            artifact.check_unchanged()
        return run_stage(stage, built, sources, tuple(gathered), out)
