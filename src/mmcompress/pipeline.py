"""A pipeline is a list of stages; a stage is a function from a config and source artifacts to an artifact.

Resume and caching are one rule. The key of a stage's output is the hash of (stage, config, digests of its parents and
of the data it reads, version); a valid artifact with that key is reused, anything else is made again. A stage that is
killed leaves no artifact, at most a hidden `.NAME.work` folder that it resumes from.
"""

from __future__ import annotations

import importlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

from mmcompress import __version__, config
from mmcompress.architecture import Config
from mmcompress.artifact import Artifact, Draft, Kind, check_replaceable, hash_json
from mmcompress.config import DataConfig, Recipe, StageTable, TeacherConfig, assign, validated
from mmcompress.data import fingerprint
from mmcompress.errors import CorruptInputError, MissingRequirementError, UsageError, suggestion
from mmcompress.lock import locked
from mmcompress.progress import say

C = TypeVar("C", bound=Config)
SHARED_TABLES = ("data", "teacher", "student")
DATA_FIELDS = ("train", "validation", "test", "labels", "templates")
"""The specifications in a data table."""
STRICT = "strict"
"""A key that says what follows from an artifact and not what is in it: it is no part of the artifact's own key."""


@dataclass(frozen=True)
class Job(Generic[C]):
    """What a stage is asked to do."""

    config: C
    sources: Mapping[str, Artifact]
    """By role; an optional source that was not given is absent."""
    gathered: tuple[Artifact, ...]
    """Every earlier artifact of the kinds that the stage gathers, in the order of the recipe."""
    draft: Draft
    """What the stage fills in."""
    name: str
    """Of the artifact that is made."""
    work: Path
    """A folder for state to resume from; it survives a kill and is deleted when the artifact is complete."""


@dataclass(frozen=True)
class Stage:
    """Data about a function. `run` is `module:function`, imported when it is needed."""

    name: str
    config: type[config.StageConfig]
    produces: Kind
    run: str
    consumes: Mapping[str, Kind]
    optional: frozenset[str] = frozenset()
    named: frozenset[str] = frozenset()
    """Optional sources that a recipe has to name; no earlier stage is taken for one."""
    gathers: tuple[Kind, ...] = ()
    reads: tuple[str, ...] = ()
    """The fields of the data table that it depends on."""
    enforce: str = ""
    """`module:function` of a finished artifact and `strict` that raises where a strict run must not go on."""

    def function(self) -> _StageFunction:
        module, _, name = self.run.partition(":")
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("mmcompress"):
                raise
            raise MissingRequirementError(
                f"the stage {self.name!r} needs the Python package {error.name!r}, which is not installed",
                "pip install 'mmcompress[compress]'",
            ) from error
        return cast(_StageFunction, getattr(found, name))


class _StageFunction(Protocol):
    def __call__(self, job: Job[Any]) -> None: ...


STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "train",
            config.TrainConfig,
            Kind.CHECKPOINT,
            "mmcompress.compress.train:train",
            {"embeddings": Kind.EMBEDDINGS},
            optional=frozenset({"embeddings"}),
            reads=("train",),
        ),
        Stage("embed", config.EmbedConfig, Kind.EMBEDDINGS, "mmcompress.compress.embed:embed", {}, reads=("train",)),
        Stage(
            "distill",
            config.DistillConfig,
            Kind.CHECKPOINT,
            "mmcompress.compress.distill:distill",
            {"embeddings": Kind.EMBEDDINGS, "checkpoint": Kind.CHECKPOINT},
            optional=frozenset({"checkpoint"}),
            reads=("train",),
        ),
        Stage(
            "prune",
            config.PruneConfig,
            Kind.CHECKPOINT,
            "mmcompress.compress.prune:prune",
            {"checkpoint": Kind.CHECKPOINT, "embeddings": Kind.EMBEDDINGS},
            reads=("train",),
        ),
        Stage(
            "quantize",
            config.QuantizeConfig,
            Kind.CHECKPOINT,
            "mmcompress.compress.calibrate:quantize",
            {"checkpoint": Kind.CHECKPOINT, "ranges": Kind.CHECKPOINT},
            optional=frozenset({"ranges"}),
            named=frozenset({"ranges"}),
            reads=("train", "validation", "labels"),
        ),
        Stage(
            "qat",
            config.QatConfig,
            Kind.CHECKPOINT,
            "mmcompress.compress.qat:qat",
            {"checkpoint": Kind.CHECKPOINT},
            reads=("train", "validation"),
        ),
        Stage("baseline", config.BaselineConfig, Kind.ONNX, "mmcompress.export.baseline:baseline", {}),
        Stage(
            "export",
            config.ExportConfig,
            Kind.ONNX,
            "mmcompress.export.onnx:export",
            {"checkpoint": Kind.CHECKPOINT},
        ),
        Stage(
            "verdict",
            config.VerdictConfig,
            Kind.ONNX,
            "mmcompress.export.verdict:verdict",
            {"checkpoint": Kind.CHECKPOINT},
            reads=("train", "validation"),
            enforce="mmcompress.export.ruling:enforce",
        ),
        Stage(
            "build",
            config.BuildConfig,
            Kind.ENGINE,
            "mmcompress.export.tensorrt:build",
            {"graphs": Kind.ONNX},
        ),
        Stage(
            "bench",
            config.BenchConfig,
            Kind.REPORT,
            "mmcompress.runtime.latency:bench",
            {},
            gathers=(Kind.ONNX,),
        ),
        Stage(
            "drift",
            config.DriftConfig,
            Kind.REPORT,
            "mmcompress.runtime.drift:drift",
            {},
            gathers=(Kind.ONNX,),
            reads=("test", "labels", "templates"),
        ),
        Stage(
            "bisect",
            config.BisectConfig,
            Kind.REPORT,
            "mmcompress.runtime.bisect:bisect",
            {"reference": Kind.ONNX, "candidate": Kind.ONNX},
            reads=("test",),
        ),
        Stage(
            "report",
            config.ReportConfig,
            Kind.REPORT,
            "mmcompress.report:report",
            {},
            gathers=(Kind.CHECKPOINT, Kind.ONNX, Kind.ENGINE, Kind.REPORT),
        ),
    )
}


def load_recipe(path: Path, assignments: Mapping[str, Any] | None = None) -> Recipe:
    """Read, override and check a recipe; every stage's config is validated before the first one runs."""
    tables = config.read_recipe(path)
    known = {*SHARED_TABLES, "stage"}
    for key in tables:
        if key not in known:
            raise UsageError(f"{path}: unknown table [{key}]", suggestion(key, known))
    rows = tables.get("stage") or []
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{path} has no [[stage]] tables", 'add at least one: [[stage]] with run = "distill"')
    for key, value in (assignments or {}).items():
        _override(tables, rows, key, value)
    stages = tuple(_stage_table(row, path) for row in rows)
    names = [stage.name for stage in stages]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(f"{path}: two stages are named {repeated[0]!r}", 'give one of them another `name = "…"`')
    recipe = Recipe(
        data=tables.get("data", {}),
        teacher=tables.get("teacher", {}),
        student=tables.get("student", {}),
        stages=stages,
    )
    for stage in stages:
        stage_config(recipe, stage, str(path))
    return recipe


def _override(tables: dict[str, Any], rows: Sequence[dict[str, Any]], key: str, value: object) -> None:
    head, *rest = key.split(".")
    named = [row for row in rows if head in (row.get("name", row.get("run")), row.get("run"))]
    if head in SHARED_TABLES and rest:
        assign(tables.setdefault(head, {}), rest, value)
    elif named and rest:
        for row in named:
            assign(row, rest, value)
    else:
        heads = {*SHARED_TABLES, *(str(row.get("name", row.get("run"))) for row in rows)}
        raise UsageError(f"--set {key}: no table or stage {head!r} in the recipe", suggestion(head, heads))


def _stage_table(row: Mapping[str, Any], path: Path) -> StageTable:
    run = row.get("run")
    if not isinstance(run, str) or run not in STAGES:
        raise UsageError(f"{path}: [[stage]] run = {run!r} is no stage", suggestion(str(run), STAGES))
    roles = STAGES[run].consumes
    return StageTable(
        run=run,
        name=row.get("name", run),
        sources={role: row[role] for role in roles if role in row},
        config={k: v for k, v in row.items() if k not in {"run", "name", *roles}},
    )


def stage_config(recipe: Recipe, table: StageTable, where: str) -> config.StageConfig:
    """The stage's own config, completed by the shared tables and reduced to what it depends on."""
    stage = STAGES[table.run]
    values = dict(table.config)
    for shared in SHARED_TABLES:
        inherited = getattr(recipe, shared)
        if shared in stage.config.model_fields and inherited:
            values[shared] = {**inherited, **values.get(shared, {})}
    built = validated(stage.config, values, f"{where}: stage {table.name!r}")
    return reduced(built, stage)


def reduced(built: config.StageConfig, stage: Stage) -> config.StageConfig:
    """Blank the data fields that the stage does not read, so that changing them does not run it again."""
    data = getattr(built, "data", None)
    if not isinstance(data, DataConfig):
        return built
    unread = {*DATA_FIELDS} - set(stage.reads)
    return built.model_copy(update={"data": data.model_copy(update=dict.fromkeys(unread))})


def run_recipe(recipe: Recipe, out: Path, where: str = "recipe") -> dict[str, Artifact]:
    """Run every stage whose output is not there yet, each into its folder of `out`; return the artifacts by name."""
    out.mkdir(parents=True, exist_ok=True)
    return run_stages(recipe, {table.name: out / table.name for table in recipe.stages}, out / ".lock", where)


def run_stages(recipe: Recipe, places: Mapping[str, Path], lock: Path, where: str) -> dict[str, Artifact]:
    """Run every stage whose output is not at its place yet; return the artifacts by name."""
    made: dict[str, Artifact] = {}
    with locked(lock):
        for table in recipe.stages:
            stage = STAGES[table.run]
            sources = _sources(stage, table, made, where)
            gathered = tuple(a for a in made.values() if a.manifest.kind in stage.gathers)
            built = stage_config(recipe, table, where)
            made[table.name] = run_stage(stage, built, sources, gathered, places[table.name])
    return made


def _sources(stage: Stage, table: StageTable, made: Mapping[str, Artifact], where: str) -> dict[str, Artifact]:
    """Each source is the one that the table names, or the latest earlier artifact of its kind."""
    sources: dict[str, Artifact] = {}
    for role, kind in stage.consumes.items():
        fitting = {name: artifact for name, artifact in made.items() if artifact.manifest.kind is kind}
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
    built: config.StageConfig,
    sources: Mapping[str, Artifact],
    gathered: tuple[Artifact, ...],
    out: Path,
) -> Artifact:
    """Reuse the artifact at `out` if it has the right key and is undamaged, else make it; then enforce what it says."""
    artifact = _made_or_reused(stage, built, sources, gathered, out)
    if stage.enforce:
        module, _, name = stage.enforce.partition(":")
        getattr(importlib.import_module(module), name)(artifact, getattr(built, STRICT))
    return artifact


def _made_or_reused(
    stage: Stage,
    built: config.StageConfig,
    sources: Mapping[str, Artifact],
    gathered: tuple[Artifact, ...],
    out: Path,
) -> Artifact:
    parents = {role: artifact.digest for role, artifact in sources.items()}
    parents |= {f"{i:02d}-{artifact.path.name}": artifact.digest for i, artifact in enumerate(gathered)}
    parents |= _outside(built)
    values = built.model_dump(mode="json", exclude={STRICT})
    key = hash_json([stage.name, values, parents, __version__])
    check_replaceable(out)
    if (reused := _reusable(out, key)) is not None:
        say(stage.name, out.name, "reused")
        return reused
    work = out.with_name(f".{out.name}.work")
    _keep_work_of(work, key)
    say(stage.name, out.name, "running")
    start = time.monotonic()
    with Artifact.create(out, kind=stage.produces, stage=stage.name, key=key, config=values, parents=parents) as draft:
        stage.function()(Job(built, sources, gathered, draft, out.name, work))
    shutil.rmtree(work, ignore_errors=True)
    say(stage.name, out.name, f"done in {time.monotonic() - start:.1f} s")
    return Artifact.open(out)


def _outside(built: config.StageConfig) -> dict[str, str]:
    """Fingerprints of what a stage reads beside artifacts: shards, label files, the teacher's folder."""
    found: dict[str, str] = {}
    data = getattr(built, "data", None)
    if isinstance(data, DataConfig):
        for name in DATA_FIELDS:
            if (spec := getattr(data, name)) is not None:
                found[f"data.{name}"] = fingerprint(spec)
    teacher = getattr(built, "teacher", None)
    if isinstance(teacher, TeacherConfig):
        found["teacher"] = fingerprint(teacher.source)
    return found


def _reusable(out: Path, key: str) -> Artifact | None:
    if not out.is_dir():
        return None
    try:
        found = Artifact.open(out)
    except CorruptInputError as error:
        say("", out.name, f"damaged, made again: {error.what}")
        return None
    except UsageError:
        return None
    return found if found.manifest.key == key else None


def _keep_work_of(work: Path, key: str) -> None:
    """Keep the resume state of the same key; drop any other."""
    mark = work / "key"
    if not (mark.is_file() and mark.read_text() == key):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        mark.write_text(key)
