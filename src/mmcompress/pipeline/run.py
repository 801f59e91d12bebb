"""A pipeline is a list of stages; a stage is a function from a config and source artifacts to an artifact.

Resume and caching are one rule. The key of a stage's output is the hash of (stage, config, digests of its parents and
of the data it reads, version); a valid artifact with that key is reused, if what it was found to have read otherwise is
still the same (`outside.py`), and anything else is made again. A stage that is killed leaves no artifact, at most a
hidden `.NAME.work` folder that it resumes from.
"""

from __future__ import annotations

import importlib
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from mmcompress import __version__
from mmcompress.artifact import Artifact
from mmcompress.config import DataConfig, StageConfig, TeacherConfig
from mmcompress.data.layout import read_labels, read_templates
from mmcompress.data.spec import expand, is_photos, is_stream, part_of
from mmcompress.errors import CorruptInputError, UsageError, suggestion
from mmcompress.lock import locked
from mmcompress.manifest import Kind, hash_json
from mmcompress.pipeline.outside import READ, outside, revisions, still_as_read
from mmcompress.pipeline.recipe import DATA_FIELDS, Recipe, StageTable, stage_config
from mmcompress.places import MANIFEST, check_place
from mmcompress.progress import say
from mmcompress.publish import tidy
from mmcompress.stages import STAGES, Job, Stage

STRICT = "strict"
"""A key that says what follows from an artifact and not what is in it: it is no part of the artifact's own key."""
_LISTS: Mapping[str, Callable[[str], list[str]]] = {"labels": read_labels, "templates": read_templates}
"""Small files that a data table names, read before anything runs to see that they can be."""


def run_recipe(recipe: Recipe, out: Path, where: str = "recipe") -> dict[str, Artifact]:
    """Run every stage whose output is not there yet, each into its folder of `out`; return the artifacts by name."""
    if (out / MANIFEST).exists():
        raise UsageError(f"{out} has a {MANIFEST}, so it is no folder of runs", "give another --out")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, and a run is a folder of artifacts", "give another --out")
    return run_stages(recipe, {table.name: out / table.name for table in recipe.stages}, where)


def run_stages(recipe: Recipe, places: Mapping[str, Path], where: str) -> dict[str, Artifact]:
    """Run every stage whose output is not at its place yet; return the artifacts by name."""
    artifacts: dict[str, Artifact] = {}
    made: set[Kind] = set()
    for table in recipe.stages:
        stage = STAGES[table.run]
        check_place(places[table.name], stage=table.run)
        roles = [role for role, kind in stage.consumes.items() if kind in made]
        built = stage_config(recipe, table, where)
        check_use(built, stage, roles, f"{where}: stage {table.name!r}")
        stage.refuse_impossible(built, {})
        made.add(stage.produces)
    for place in places.values():
        place.absolute().parent.mkdir(parents=True, exist_ok=True)
    with locked(*places.values()):
        for table in recipe.stages:
            stage = STAGES[table.run]
            sources = _sources(stage, table, artifacts, where)
            gathered = tuple(a for a in artifacts.values() if a.manifest.kind in stage.gathers)
            built = stage_config(recipe, table, where)
            artifacts[table.name] = run_stage(stage, built, sources, gathered, places[table.name])
    return artifacts


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
        _LISTS.get(name, expand)(spec)
        if name in stage.captions and is_photos(spec):
            raise UsageError(
                f"{spec} is a folder of photos without captions, and {stage.name} learns from what is said of them",
                "give pairs, or use quantize, prune, verdict or drift, which need the images alone",
            )


def _sources(stage: Stage, table: StageTable, artifacts: Mapping[str, Artifact], where: str) -> dict[str, Artifact]:
    """Each source is the one that the table names, or the latest earlier artifact of its kind."""
    sources: dict[str, Artifact] = {}
    for role, kind in stage.consumes.items():
        fitting = {name: artifact for name, artifact in artifacts.items() if artifact.manifest.kind is kind}
        named = table.sources.get(role)
        if named is None and role in stage.named:
            continue
        if named is not None and named not in fitting:
            raise UsageError(
                f"{where}: stage {table.name!r}: {role} = {named!r} is no earlier stage that makes a {kind.value}",
                suggestion(named, fitting),
            )
        if fitting:
            sources[role] = fitting[named] if named is not None else list(fitting.values())[-1]
        elif role not in stage.optional:
            makers = ", ".join(s.name for s in STAGES.values() if s.produces is kind)
            raise UsageError(
                f"{where}: stage {table.name!r} needs a {kind.value} artifact and no stage before it makes one",
                f"put a stage that makes one before it: {makers}",
            )
    return sources


def run_stage(
    stage: Stage,
    built: StageConfig,
    sources: Mapping[str, Artifact],
    gathered: tuple[Artifact, ...],
    out: Path,
) -> Artifact:
    """Reuse the artifact at `out` if it has the right key and is undamaged, else make it; then enforce what it says."""
    stage.refuse_impossible(built, sources)
    artifact = _made_or_reused(stage, built, sources, gathered, out)
    if stage.enforce:
        module, _, name = stage.enforce.partition(":")
        getattr(importlib.import_module(module), name)(artifact, getattr(built, STRICT))
    return artifact


def _made_or_reused(
    stage: Stage,
    built: StageConfig,
    sources: Mapping[str, Artifact],
    gathered: tuple[Artifact, ...],
    out: Path,
) -> Artifact:
    read = [*(artifact.path for artifact in (*sources.values(), *gathered)), *_local_inputs(built)]
    check_place(out, read, stage.name)
    parents = {role: artifact.digest for role, artifact in sources.items()}
    parents |= {f"{i:02d}-{artifact.path.name}": artifact.digest for i, artifact in enumerate(gathered)}
    parents |= outside(built)
    values = built.model_dump(mode="json", exclude={STRICT})
    key = hash_json([stage.name, values, parents, __version__])
    tidy(out)
    if (reused := _reusable(out, key, built)) is not None:
        say(stage.name, out.name, "reused")
        return reused
    work = out.with_name(f".{out.name}.work")
    _keep_work_of(work, key)
    say(stage.name, out.name, "running")
    start = time.monotonic()
    with Artifact.create(out, kind=stage.produces, stage=stage.name, key=key, config=values, parents=parents) as draft:
        stage.function()(Job(built, sources, gathered, draft, out.name, work))
        if found := {**draft.facts.get(READ, {}), **revisions(built)}:
            draft.facts[READ] = found
    shutil.rmtree(work, ignore_errors=True)
    say(stage.name, out.name, f"done in {time.monotonic() - start:.1f} s")
    return Artifact.open(out)


def _local_inputs(built: StageConfig) -> list[Path]:
    """The files and folders that a config names as data or teacher.

    What lies beside shards or beside a table is not read, but a folder in a folder of classes is a class.
    """
    data, teacher = getattr(built, "data", None), getattr(built, "teacher", None)
    inputs: list[Path] = []
    for name in DATA_FIELDS if isinstance(data, DataConfig) else ():
        spec = getattr(data, name)
        if spec is not None and not is_stream(spec):
            whole = Path(part_of(spec)[1]).expanduser()
            if whole.is_dir() and is_photos(spec):
                inputs.append(whole)
                continue
            places = [Path(place) for place in expand(spec)]
            inputs += [*places, *({place.parent for place in places if place.is_dir()})]
    if isinstance(teacher, TeacherConfig) and (folder := Path(teacher.source).expanduser()).exists():
        inputs.append(folder)
    return inputs


def _reusable(out: Path, key: str, built: StageConfig) -> Artifact | None:
    if not out.is_dir():
        return None
    try:
        artifact = Artifact.open(out)
    except CorruptInputError as error:
        say("", out.name, f"damaged, made again: {error.what}")
        return None
    except UsageError:
        return None
    right = artifact.manifest.key == key and still_as_read(artifact.manifest.facts.get(READ, {}), built)
    return artifact if right else None


def _keep_work_of(work: Path, key: str) -> None:
    """Keep the resume state of the same key; drop any other. A folder of that name without a key is not ours."""
    mark = work / "key"
    if mark.is_file() and mark.read_text() == key:
        return
    if work.exists() and not mark.is_file():
        raise UsageError(f"{work} exists and mmcompress did not write it", "move it away, or give another --out")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    mark.write_text(key)
