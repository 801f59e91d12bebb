"""A stage on its own, from its own command: where its sources come from when the user does not spell them out.

A manifest records the config and the parents' digests of its artifact, so most of what a later stage needs is already
known: `prune DIR` finds the teacher's embeddings that DIR was distilled from beside it, by their digest, and the data
in its config. What cannot be found is an error that names the option to give. Nothing here runs a stage in another way
than a recipe does: both end in `pipeline.run_stage`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from mmcompress.artifact import Artifact
from mmcompress.compress.int8.comparison import CalibrationComparison
from mmcompress.config import Precision, validated
from mmcompress.data.spec import is_stream
from mmcompress.errors import UsageError, suggestion
from mmcompress.lock import locked
from mmcompress.manifest import Kind
from mmcompress.measure.comparison import ComparisonDocument
from mmcompress.pipeline.recipe import DATA_FIELDS, assign, load_recipe, parse_assignments, reduced
from mmcompress.pipeline.run import run_recipe, run_stage, run_stages
from mmcompress.places import MANIFEST, check_place
from mmcompress.stages import STAGES
from mmcompress.strictjson import json_from_text

RECIPES = Path(__file__).parents[1] / "recipes"


def recipe_path(recipe: str) -> Path:
    """A packaged recipe by its name (`demo`), else the path of a file."""
    path = Path(recipe)
    if path.exists() or path.suffix == ".toml":
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


def train(recipe: str, out: Path, overrides: Sequence[str] = ()) -> Artifact:
    """A recipe whose last stage is `train`, with `out` as its artifact and what comes before it beside: `OUT-embed`."""
    path = recipe_path(recipe)
    loaded = load_recipe(path, parse_assignments(overrides))
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
    values: Mapping[str, Any],
    sources: Mapping[str, Artifact],
    out: Path,
    overrides: Sequence[str] = (),
    gathered: Sequence[Artifact] = (),
) -> Artifact:
    """Check the values, with `--set` on top, and run one stage; `out` becomes its artifact, or is reused."""
    stage = STAGES[name]
    tables = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    tables = {key: value for key, value in tables.items() if value is not None}
    for key, value in parse_assignments(overrides).items():
        parts = key.split(".")
        assign(tables, parts[1:] if parts[0] == name and len(parts) > 1 else parts, value)
    built = reduced(validated(stage.config, tables, f"mmcompress {name}"), stage)
    given = [*sources.values(), *gathered]
    check_place(out, [artifact.path for artifact in given])
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with locked(out, reading=[artifact.path for artifact in given]):
        for artifact in given:
            artifact.check_unchanged()
        return run_stage(stage, built, sources, tuple(gathered), out)


def embed(teacher: str, data: str, out: Path, overrides: Sequence[str] = ()) -> Artifact:
    return run_single("embed", {"teacher": {"source": teacher}, "data": {"train": data}}, {}, out, overrides)


def distill(
    out: Path,
    *,
    teacher: str | None = None,
    student: str | None = None,
    data: str | None = None,
    embeddings: Path | None = None,
    checkpoint: Path | None = None,
    overrides: Sequence[str] = (),
) -> Artifact:
    """A new student, or with `checkpoint` that one recovered; the teacher is embedded first where it has not been."""
    check_place(out)
    start = None if checkpoint is None else Artifact.open(checkpoint, Kind.CHECKPOINT)
    if start is None and student is None:
        raise UsageError(
            "distill needs a student", "--student vit-s16 or inherit:0.25, or --from CHECKPOINT to recover one"
        )
    cached = teacher_embeddings(out, embeddings, teacher, data, start)
    values = {
        "teacher": {"source": teacher} if teacher else recorded_teacher(cached),
        "data": recorded_data(cached, data),
        "student": {"source": student} if student else None,
    }
    sources = {"embeddings": cached} | ({"checkpoint": start} if start else {})
    return run_single("distill", values, sources, out, overrides)


def prune(
    checkpoint: Path,
    out: Path,
    *,
    teacher: str | None = None,
    data: str | None = None,
    embeddings: Path | None = None,
    targets: Mapping[str, str | None] | None = None,
    backend: str | None = None,
    overrides: Sequence[str] = (),
) -> Artifact:
    source = Artifact.open(checkpoint, Kind.CHECKPOINT)
    cached = teacher_embeddings(out, embeddings, teacher, data, source)
    values = {"data": recorded_data(cached, data), "backend": backend, **(targets or {})}
    return run_single("prune", values, {"checkpoint": source, "embeddings": cached}, out, overrides)


def quantize(
    checkpoint: Path,
    out: Path,
    *,
    data: str | None = None,
    max_drop: float | None = None,
    ranges: Path | None = None,
    overrides: Sequence[str] = (),
) -> Artifact:
    """Fit integers, on the `ranges` of another quantized checkpoint if they are given."""
    return _within_budget("quantize", checkpoint, out, data, max_drop, overrides, ranges)


def qat(
    checkpoint: Path,
    out: Path,
    *,
    data: str | None = None,
    max_drop: float | None = None,
    overrides: Sequence[str] = (),
) -> Artifact:
    return _within_budget("qat", checkpoint, out, data, max_drop, overrides)


def _within_budget(
    stage: str,
    checkpoint: Path,
    out: Path,
    data: str | None,
    max_drop: float | None,
    overrides: Sequence[str],
    ranges: Path | None = None,
) -> Artifact:
    """A stage that makes a checkpoint's integers, on the data that it was made from unless others are given."""
    source = Artifact.open(checkpoint, Kind.CHECKPOINT)
    values = {"data": recorded_data(source, data), "max_drop": max_drop}
    sources = {"checkpoint": source} | ({"ranges": Artifact.open(ranges, Kind.CHECKPOINT)} if ranges else {})
    return run_single(stage, values, sources, out, overrides)


def verdict(
    checkpoint: Path,
    out: Path,
    *,
    backend: str | None = None,
    data: str | None = None,
    batch: int | None = None,
    max_drop: float | None = None,
    overrides: Sequence[str] = (),
) -> Artifact:
    """Without `data`, on training pairs that the checkpoint was not calibrated on; within its budgets if it had any."""
    source = Artifact.open(checkpoint, Kind.CHECKPOINT)
    table = {"validation": data} if data is not None else recorded_data(source, None)
    budgets = {name: source.manifest.config.get(name) for name in ("max_drop", "max_flips")}
    values = {"data": table, "backend": backend, "batch": batch, **budgets}
    if max_drop is not None:
        values["max_drop"] = max_drop
    return run_single("verdict", values, {"checkpoint": source}, out, overrides)


def verdict_beside(checkpoint: Artifact, backend: str | None) -> Artifact:
    """The verdict on a checkpoint that was just quantized, into its OUT-verdict."""
    out = checkpoint.path.with_name(f"{checkpoint.path.name}-verdict")
    return verdict(checkpoint.path, out, backend=backend)


def export(source: str, out: Path, precisions: Sequence[str] = (), overrides: Sequence[str] = ()) -> Artifact:
    """A checkpoint as ONNX; anything that is no artifact is a teacher, which goes through optimum as it is."""
    if not (Path(source) / MANIFEST).is_file():
        return run_single("baseline", {"teacher": {"source": source}}, {}, out, overrides)
    checkpoint = Artifact.open(source, Kind.CHECKPOINT)
    natural = ("int8",) if checkpoint.manifest.stage in ("quantize", "qat") else ("fp32",)
    values = {"precisions": tuple(precisions) or natural}
    return run_single("export", values, {"checkpoint": checkpoint}, out, overrides)


def build(
    graphs: Path, out: Path, targets: Sequence[str] = (), backend: str | None = None, overrides: Sequence[str] = ()
) -> Artifact:
    values = {"targets": tuple(targets) or None, "backend": backend}
    return run_single("build", values, {"graphs": Artifact.open(graphs, Kind.ONNX)}, out, overrides)


def bench(artifacts: Sequence[Path], out: Path, overrides: Sequence[str] = ()) -> Artifact:
    gathered = [Artifact.open(path, Kind.ONNX, Kind.ENGINE) for path in artifacts]
    return run_single("bench", {}, {}, out, overrides, gathered)


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


def drift(
    artifacts: Sequence[Path],
    out: Path,
    data: str,
    labels: str | None = None,
    templates: str | None = None,
    overrides: Sequence[str] = (),
) -> Artifact:
    """The first artifact is the reference."""
    gathered = [Artifact.open(path, Kind.ONNX) for path in artifacts]
    table = {"test": data, "labels": labels, "templates": templates}
    return run_single("drift", {"data": table}, {}, out, overrides, gathered)


def bisect(reference: Path, candidate: Path, out: Path, data: str, overrides: Sequence[str] = ()) -> Artifact:
    """The reference is the FP32 export of the checkpoint that the candidate was exported from."""
    sources = {"reference": Artifact.open(reference, Kind.ONNX), "candidate": Artifact.open(candidate, Kind.ONNX)}
    return run_single("bisect", {"data": {"test": data}}, sources, out, overrides)


def report(folders: Sequence[Path], out: Path | None = None, overrides: Sequence[str] = ()) -> Artifact:
    """Join the artifacts in some folders into one report, of several devices too.

    Each folder is a run, an artifact, or the finished report of another machine, whose latencies are taken over.
    """
    found = [artifact for folder in folders for artifact in _artifacts_in(folder)]
    given = {folder.absolute() for folder in folders}
    kinds = STAGES["report"].gathers
    joined = [
        a for a in found if a.manifest.kind in kinds and (a.manifest.stage != "report" or a.path.absolute() in given)
    ]
    if not any(a.manifest.kind is not Kind.CHECKPOINT and a.manifest.stage != "report" for a in joined):
        names = ", ".join(map(str, folders))
        raise UsageError(
            f"nothing to report on in {names}", "give a folder of `mmcompress run`, or artifacts of bench and drift"
        )
    run_folder = folders[0].absolute().parent if (folders[0] / MANIFEST).is_file() else folders[0]
    out = out or run_folder / "report"
    if out.absolute() in given:
        raise UsageError(f"the new report would replace {out}, which it is made from", "give another place with --out")
    return run_single("report", {}, {}, out, overrides, in_recipe_order(joined))


def _artifacts_in(folder: Path) -> list[Artifact]:
    if (folder / MANIFEST).is_file() or not folder.is_dir():
        return [Artifact.open(folder)]
    return [Artifact.open(path.parent) for path in sorted(folder.glob(f"*/{MANIFEST}")) if path.parent.name[0] != "."]


def in_recipe_order(artifacts: Sequence[Artifact]) -> list[Artifact]:
    """Measured artifacts in the order in which bench and drift gathered them, the rest behind them by name."""
    order: dict[str, int] = {}
    for measurement in artifacts:
        if measurement.manifest.kind is Kind.REPORT:
            for digest in measurement.manifest.parents.values():
                order.setdefault(digest, len(order))
    return sorted(artifacts, key=lambda a: (order.get(a.digest, len(order)), a.path.name))


def teacher_embeddings(
    out: Path, given: Path | None, teacher: str | None, data: str | None, near: Artifact | None
) -> Artifact:
    """Cached embeddings to learn from: those given, those of --teacher and --data, or those that `near` came from."""
    if given is not None:
        return Artifact.open(given, Kind.EMBEDDINGS)
    if teacher is not None:
        table = recorded_data(near, data)
        made = out.with_name(f"{out.name}-embeddings")
        return run_single("embed", {"teacher": {"source": teacher}, "data": table}, {}, made)
    found = None if near is None else parent_beside(near, "embeddings")
    if found is None:
        raise UsageError(
            "the teacher's embeddings are not known" + (f": they are not beside {near.path}" if near else ""),
            "give --embeddings ARTIFACT, or --teacher and --data to make them",
        )
    return Artifact.open(found, Kind.EMBEDDINGS)


def recorded_data(near: Artifact | None, data: str | None) -> dict[str, Any]:
    """The data table: what the user gave, else what the artifact was made from.

    An artifact may come from anybody, so of what it records only paths count: a command, a URL or stdin is refused.
    """
    recorded = None if near is None else near.manifest.config.get("data")
    if data is not None:
        return {"train": data}
    if near is None or not isinstance(recorded, dict):
        raise UsageError(
            "no training data is given" + (f" or recorded in {near.path}" if near else ""), "give --data SHARDS"
        )
    for name in DATA_FIELDS:
        if isinstance(spec := recorded.get(name), str) and is_stream(spec):
            raise UsageError(
                f"{near.path} was made from the stream data.{name} = {spec!r}, and nothing that an artifact records "
                "is run or fetched",
                f"if you trust it, name it yourself: --data {shlex.quote(spec)}",
            )
    return dict(recorded)


def recorded_teacher(near: Artifact) -> dict[str, Any]:
    """The teacher that an artifact was made from, without the leave to run code: only this user can give that."""
    recorded = near.manifest.config.get("teacher")
    if not isinstance(recorded, dict) or not isinstance(recorded.get("source"), str):
        raise UsageError(f"{near.path} does not say which teacher it was made from", "give --teacher")
    return {"source": recorded["source"]}


def parent_beside(artifact: Artifact, role: str) -> Path | None:
    """The folder beside an artifact that holds its parent, told by the digest."""
    digest = artifact.manifest.parents.get(role)
    for manifest in sorted(artifact.path.absolute().parent.glob(f"*/{MANIFEST}")):
        try:
            if digest is not None and json_from_text(manifest.read_bytes()).get("digest") == digest:
                return manifest.parent
        except (ValueError, AttributeError):
            continue
    return None
