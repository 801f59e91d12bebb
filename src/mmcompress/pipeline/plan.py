"""What a recipe will run: each stage with its config, its place and its sources by name, before anything runs.

All that can be known of a recipe is refused here: keys that say nothing, data that is not there, a stage without a
source. What a stage's own check says is asked for later (`run.py`), since only of a stage that will be made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mmcompress.config import DataConfig, PairConfig, StageConfig, TeacherConfig
from mmcompress.data.batches import check_readable
from mmcompress.data.layout import read_labels, read_templates
from mmcompress.data.loose import caption_beside
from mmcompress.data.spec import STDIN, bare, expand, is_photos, is_stream, part_of
from mmcompress.errors import UsageError, suggestion
from mmcompress.home import expanded
from mmcompress.manifest import Kind
from mmcompress.pipeline.recipe import DATA_FIELDS, Recipe, StageTable, stage_config
from mmcompress.places import check_place
from mmcompress.progress import say
from mmcompress.stages import STAGES, Stage

_LISTS: Mapping[str, Callable[[str], list[str]]] = {"labels": read_labels, "templates": read_templates}
"""Small files that a data table names, read before anything runs to see that they can be."""
_READ_AS_PAIRS = tuple(name for name in DATA_FIELDS if name not in _LISTS)
_READ_ONCE = ("distill", "drift", "verdict")
"""Stages that can take a stream from stdin: `distill` with embeddings that are there, for one epoch."""
_IN_ORDER = ("embed", "drift")
"""Stages that read their data from its begin to its end; the others shuffle it."""


@dataclass(frozen=True)
class Step:
    """One stage of a recipe."""

    name: str
    stage: Stage
    config: StageConfig
    place: Path
    sources: Mapping[str, str]
    """The names of earlier steps, by role."""
    gathered: tuple[str, ...]
    """Those of every earlier step that makes what the stage gathers."""


def plan(recipe: Recipe, places: Mapping[str, Path], where: str) -> list[Step]:
    """The steps in order; UsageError, which begins with `where` the recipe stands, for what cannot be one."""
    kinds: dict[str, Kind] = {}
    steps = []
    for table in recipe.stages:
        stage = STAGES[table.run]
        config, sources = stage_config(recipe, table, where), sources_of(stage, table, kinds, where)
        check_use(config, stage, sources, f"{where}: stage {table.name!r}")
        check_place(places[table.name], local_inputs(config), table.run)
        gathered = tuple(name for name, kind in kinds.items() if kind in stage.gathers)
        steps.append(Step(table.name, stage, config, places[table.name], sources, gathered))
        kinds[table.name] = stage.produces
    return steps


def sources_of(stage: Stage, table: StageTable, kinds: Mapping[str, Kind], where: str) -> dict[str, str]:
    """Each source is the one that the table names, or the latest earlier one of its kind; `kinds` are those by name."""
    sources: dict[str, str] = {}
    for role, kind in stage.consumes.items():
        fitting = [name for name, made in kinds.items() if made is kind]
        named = table.sources.get(role)
        if named is None and role in stage.named:
            continue
        if named is not None and named not in fitting:
            raise UsageError(
                f"{where}: stage {table.name!r}: {role} = {named!r} is no earlier stage that makes a {kind.value}",
                suggestion(named, fitting),
            )
        if fitting:
            sources[role] = named if named is not None else fitting[-1]
        elif role not in stage.optional:
            makers = ", ".join(s.name for s in STAGES.values() if s.produces is kind)
            raise UsageError(
                f"{where}: stage {table.name!r} needs a {kind.value} artifact and no stage before it makes one",
                f"put a stage that makes one before it: {makers}",
            )
    return sources


def check_use(built: StageConfig, stage: Stage, roles: Collection[str], where: str) -> None:
    """Refuse, before anything runs, keys that say nothing with these sources, data that is not there, lists that cannot
    be read, and photos of which nothing is said where a stage learns or judges by what is said.
    """
    try:
        built.check_sources(roles)
    except ValueError as error:
        raise UsageError(f"{where}: {error}", "leave it out") from error
    data = getattr(built, "data", None)
    for name in DATA_FIELDS if isinstance(data, DataConfig) else ():
        spec = getattr(data, name)
        if spec is None:
            continue
        if bare(spec) == STDIN and stage.name not in _READ_ONCE:
            raise UsageError(
                f"{where}: {stage.name} reads its data more than once, and stdin can be read once",
                "save it to a file, or give a command that can run again: 'pipe:cat FILE'",
            )
        _LISTS.get(name, expand)(spec)
        if name in stage.captions and is_photos(spec):
            if (said := caption_beside(spec)) is not None:
                raise UsageError(
                    f"{spec} is read as photos alone, also where captions lie beside them, as {said.name} does",
                    f"make shards of both: {_packing(spec)}",
                )
            raise UsageError(
                f"{spec} is a folder of photos without captions, and {stage.name} learns from what is said of them",
                "give pairs, or use quantize, prune, verdict or drift, which need the images alone",
            )


def check_data(built: StageConfig, stage: Stage) -> None:
    """Raise for data of which so much is damaged that the stage would stop, as far as its first items tell."""
    data = getattr(built, "data", None)
    if not isinstance(data, DataConfig):
        return
    for name in _READ_AS_PAIRS:
        if (spec := getattr(data, name)) is not None:
            check_readable(spec, data.max_bad_fraction, None if stage.name in _IN_ORDER else built.seed)
            _say_captions(spec)


@lru_cache
def _say_captions(spec: str) -> None:
    """Say once of photos whose captions are not read."""
    if is_photos(spec) and (said := caption_beside(spec)) is not None:
        what = f"{spec} is read as photos alone: captions beside them, as {said.name}, are not read"
        say("", "data", f"warning: {what}; {_packing(spec)} makes shards of both")


def _packing(spec: str) -> str:
    return f"mmcompress data pack {part_of(spec)[1]} --out shards"


def local_inputs(built: StageConfig) -> list[Path]:
    """The files and folders that a config names as data, teacher or towers.

    What lies beside shards or beside a table is not read, but a folder in a folder of classes is a class.
    """
    data, teacher = getattr(built, "data", None), getattr(built, "teacher", None)
    inputs: list[Path] = []
    for name in DATA_FIELDS if isinstance(data, DataConfig) else ():
        spec = getattr(data, name)
        if spec is not None and is_stream(spec):
            expand(spec)  # refuses what this machine cannot read
        elif spec is not None:
            whole = expanded(bare(spec))
            if whole.is_dir() and is_photos(spec):
                inputs.append(whole)
                continue
            places = [Path(place) for place in expand(spec)]
            inputs += [*places, *({place.parent for place in places if place.is_dir()})]
    towers = getattr(built, "towers", None)
    for source in (towers.image, towers.text) if isinstance(towers, PairConfig) else ():
        if (folder := expanded(source)).exists():
            inputs.append(folder)
    if isinstance(teacher, TeacherConfig) and (folder := expanded(teacher.source)).exists():
        inputs.append(folder)
    return inputs
