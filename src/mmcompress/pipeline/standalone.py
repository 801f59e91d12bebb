"""A stage on its own, from its own command: the second of three hops from the command line to a stage.

A function here is a command. It opens the artifacts that the user named, finds those that the user did not name
(`sources.py`), and hands both to `run_single`, which runs the stage exactly as a recipe does. `given` is what the user
said, by the keys of the stage's config, options and `--set` alike. It wins over what is found, and a None in it is a
None: what was not said is not in it. What cannot be found is an error that names the option to give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from mmcompress.artifact import Artifact
from mmcompress.compress.int8.comparison import CalibrationComparison
from mmcompress.config import Backend, Precision, StageConfig, validated
from mmcompress.errors import UsageError, suggestion
from mmcompress.lock import locked
from mmcompress.manifest import Kind
from mmcompress.measure.comparison import ComparisonDocument
from mmcompress.pipeline.recipe import SHARED_TABLES, assign, load_recipe, parse_assignments, reduced
from mmcompress.pipeline.run import run_recipe, run_stage, run_stages
from mmcompress.pipeline.sources import (
    Given,
    artifacts_in,
    data_unless_given,
    embeddings_beside,
    in_recipe_order,
    recorded_budget,
    recorded_teacher,
)
from mmcompress.places import MANIFEST, check_place
from mmcompress.stages import STAGES

RECIPES = Path(__file__).parents[1] / "recipes"
NOTHING: Given = {}
NO_SOURCES: Mapping[str, Artifact] = {}


def recipe_path(recipe: str) -> Path:
    """A packaged recipe by its name (`demo`), else the path of a file."""
    path = Path(recipe)
    if path.is_file() or path.suffix == ".toml":
        return path
    packaged = {file.stem: file for file in RECIPES.glob("*.toml")}
    if recipe not in packaged:
        raise UsageError(
            f"there is no recipe {recipe!r}", f"give a .toml file, or a packaged one ({suggestion(recipe, packaged)})"
        )
    return packaged[recipe]


def run(recipe: str, out: Path, overrides: Sequence[str] = ()) -> dict[str, Artifact]:
    """Every stage of a recipe; the artifacts by name, in the recipe's order."""
    path = recipe_path(recipe)
    return run_recipe(load_recipe(path, parse_assignments(overrides)), out, str(path))


def train(recipe: str, out: Path, given: Given = NOTHING) -> Artifact:
    """A recipe whose last stage is `train`, with `out` as its artifact and what comes before it beside: `OUT-embed`.

    A key of `train` itself needs no `train.` before it.
    """
    path = recipe_path(recipe)
    own = STAGES["train"].config.model_fields.keys() - {*SHARED_TABLES}
    assignments = {f"train.{key}" if key.split(".")[0] in own else key: value for key, value in given.items()}
    loaded = load_recipe(path, assignments)
    last = loaded.stages[-1]
    if last.run != "train":
        raise UsageError(
            f"{path} ends with a stage that runs {last.run!r}", "`mmcompress train` wants `train` at the end"
        )
    places = {table.name: out.with_name(f"{out.name}-{table.name}") for table in loaded.stages} | {last.name: out}
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    return run_stages(loaded, places, str(path))[last.name]


def run_single(
    name: str,
    tables: Mapping[str, Any],
    given: Given,
    sources: Mapping[str, Artifact],
    out: Path,
    gathered: Sequence[Artifact] = (),
) -> Artifact:
    """Check the config, `given` over `tables`, and run one stage; `out` becomes its artifact, or is reused."""
    stage, built = STAGES[name], _checked(name, tables, given, sources)
    read = [*sources.values(), *gathered]
    check_place(out, [artifact.path for artifact in read], name)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with locked(out, reading=[artifact.path for artifact in read]):
        for artifact in read:
            artifact.check_unchanged()
        return run_stage(stage, built, sources, tuple(gathered), out)


def _checked(
    name: str, tables: Mapping[str, Any], given: Given, sources: Mapping[str, Artifact] = NO_SOURCES
) -> StageConfig:
    """The stage's config, and the refusal of what cannot work. A command asks for it before its first long step."""
    stage = STAGES[name]
    values = {key: dict(value) if isinstance(value, Mapping) else value for key, value in tables.items()}
    for key, value in given.items():
        assign(values, key.split("."), value)
    built = reduced(validated(stage.config, values, f"mmcompress {name}"), stage)
    stage.refuse_impossible(built, sources)
    return built


def embed(out: Path, given: Given) -> Artifact:
    return run_single("embed", {}, given, {}, out)


def distill(
    out: Path, given: Given = NOTHING, *, embeddings: Path | None = None, checkpoint: Path | None = None
) -> Artifact:
    """A new student, or with `checkpoint` that one recovered; the teacher is embedded first where it has not been."""
    check_place(out)
    start = None if checkpoint is None else Artifact.open(checkpoint, Kind.CHECKPOINT)
    if start is None and not {"student", "student.source"} & given.keys():
        raise UsageError(
            "distill needs a student", "--student vit-s16 or inherit:0.25, or --from CHECKPOINT to recover one"
        )
    if embeddings is None and {"teacher", "teacher.source"} & given.keys():
        _checked("distill", {"data": data_unless_given(given, start)}, given)
    cached = _teacher_embeddings(out, given, embeddings, start)
    teacher = {} if {"teacher", "teacher.source"} & given.keys() else recorded_teacher(cached)
    tables = {"teacher": teacher, "data": data_unless_given(given, cached)}
    return run_single("distill", tables, given, {"embeddings": cached} | ({"checkpoint": start} if start else {}), out)


def prune(
    checkpoint: Path,
    out: Path,
    given: Given = NOTHING,
    *,
    teacher: str | None = None,
    embeddings: Path | None = None,
) -> Artifact:
    source = Artifact.open(checkpoint, Kind.CHECKPOINT)
    named = {} if teacher is None else {"teacher.source": teacher}
    cached = _teacher_embeddings(out, {**given, **named}, embeddings, source)
    sources = {"checkpoint": source, "embeddings": cached}
    return run_single("prune", {"data": data_unless_given(given, cached)}, given, sources, out)


def _teacher_embeddings(out: Path, given: Given, embeddings: Path | None, near: Artifact | None) -> Artifact:
    """Cached embeddings to learn from: those named, those of a teacher that is given, or those that `near` is from."""
    if embeddings is not None:
        cached = Artifact.open(embeddings, Kind.EMBEDDINGS)
        if (teacher := given.get("teacher.source")) is not None:
            from mmcompress.compress.early import check_same_teacher

            check_same_teacher(teacher, cached)
        return cached
    if not {"teacher", "teacher.source"} & given.keys():
        return embeddings_beside(near)
    shared = {key: value for key, value in given.items() if key.split(".")[0] in ("teacher", "data")}
    place = out.with_name(f"{out.name}-embeddings")
    return run_single("embed", {"data": data_unless_given(given, near)}, shared, {}, place)


def quantize(checkpoint: Path, out: Path, given: Given = NOTHING, *, ranges: Path | None = None) -> Artifact:
    """Fit integers, on the `ranges` of another quantized checkpoint if they are given."""
    source = Artifact.open(checkpoint, Kind.CHECKPOINT)
    sources = {"checkpoint": source} | ({"ranges": Artifact.open(ranges, Kind.CHECKPOINT)} if ranges else {})
    return run_single("quantize", {"data": data_unless_given(given, source)}, given, sources, out)


def qat(checkpoint: Path, out: Path, given: Given = NOTHING) -> Artifact:
    source = Artifact.open(checkpoint, Kind.CHECKPOINT)
    return run_single("qat", {"data": data_unless_given(given, source)}, given, {"checkpoint": source}, out)


def verdict(checkpoint: Path, out: Path, given: Given = NOTHING) -> Artifact:
    """On training pairs that the checkpoint was not calibrated on unless others are given; within its own budget."""
    source = Artifact.open(checkpoint, Kind.CHECKPOINT)
    tables = {"data": data_unless_given(given, source, "validation"), **recorded_budget(source)}
    return run_single("verdict", tables, given, {"checkpoint": source}, out)


def check_backend(backend: str | None) -> None:
    """Refuse a misspelt runtime before the hours of work that it is wanted for."""
    if backend is not None and backend not in get_args(Backend):
        raise UsageError(f"there is no backend {backend!r}", suggestion(backend, get_args(Backend)))


def verdict_beside(checkpoint: Artifact, backend: str | None) -> Artifact:
    """The verdict on a checkpoint that was just quantized, into its OUT-verdict."""
    out = checkpoint.path.with_name(f"{checkpoint.path.name}-verdict")
    return verdict(checkpoint.path, out, {"backend": backend})


def export(source: str, out: Path, given: Given = NOTHING) -> Artifact:
    """A checkpoint as ONNX; anything that is no artifact is a teacher, which goes through optimum as it is."""
    if not (Path(source) / MANIFEST).is_file():
        return run_single("baseline", {"teacher": {"source": source}}, given, {}, out)
    checkpoint = Artifact.open(source, Kind.CHECKPOINT)
    natural = {"precisions": ("int8",)} if checkpoint.manifest.stage in ("quantize", "qat") else {}
    return run_single("export", natural, given, {"checkpoint": checkpoint}, out)


def build(graphs: Path, out: Path, given: Given = NOTHING) -> Artifact:
    return run_single("build", {}, given, {"graphs": Artifact.open(graphs, Kind.ONNX)}, out)


def bench(artifacts: Sequence[Path], out: Path, given: Given = NOTHING) -> Artifact:
    return run_single("bench", {}, given, {}, out, [Artifact.open(path, Kind.ONNX, Kind.ENGINE) for path in artifacts])


def drift(artifacts: Sequence[Path], out: Path, given: Given) -> Artifact:
    """The first artifact is the reference."""
    return run_single("drift", {}, given, {}, out, [Artifact.open(path, Kind.ONNX) for path in artifacts])


def bisect(reference: Path, candidate: Path, out: Path, given: Given) -> Artifact:
    """The reference is the FP32 export of the checkpoint that the candidate was exported from."""
    sources = {"reference": Artifact.open(reference, Kind.ONNX), "candidate": Artifact.open(candidate, Kind.ONNX)}
    return run_single("bisect", {}, given, sources, out)


def report(folders: Sequence[Path], out: Path | None = None, given: Given = NOTHING) -> Artifact:
    """Join the artifacts in some folders into one report, of several devices too.

    Each folder is a run, an artifact, or the finished report of another machine, whose latencies are taken over.
    """
    named = {folder.absolute() for folder in folders}
    joined = [
        artifact
        for folder in folders
        for artifact in artifacts_in(folder)
        if artifact.manifest.kind in STAGES["report"].gathers
        and (artifact.manifest.stage != "report" or artifact.path.absolute() in named)
    ]
    if not any(a.manifest.kind is not Kind.CHECKPOINT and a.manifest.stage != "report" for a in joined):
        names = ", ".join(map(str, folders))
        raise UsageError(
            f"nothing to report on in {names}", "give a folder of `mmcompress run`, or artifacts of bench and drift"
        )
    run_folder = folders[0].absolute().parent if (folders[0] / MANIFEST).is_file() else folders[0]
    out = out or run_folder / "report"
    if out.absolute() in named:
        raise UsageError(f"the new report would replace {out}, which it is made from", "give another place with --out")
    return run_single("report", {}, given, {}, out, in_recipe_order(joined))


def compare(
    a: Path, b: Path, asked: Mapping[str, Any], pin: str | None = None
) -> ComparisonDocument | CalibrationComparison:
    """Two artifacts measured here, or two reports or calibrations read; makes no artifact."""
    from mmcompress.compress.int8.recalibration import compare_calibrations
    from mmcompress.int8 import RANGES
    from mmcompress.measure.compare import compare as compare_paths

    if all((path / RANGES).is_file() for path in (a, b)):
        return compare_calibrations(a, b)
    if asked["precision"] not in (None, *get_args(Precision)):
        raise UsageError(
            f"there is no precision {asked['precision']!r}", suggestion(asked["precision"], get_args(Precision))
        )
    try:
        cores = None if pin is None else tuple(int(core) for core in pin.split(","))
    except ValueError as error:
        raise UsageError(f"--pin {pin!r} is no list of cores", "for example: --pin 0,1") from error
    return compare_paths(a, b, pin=cores, **asked)
