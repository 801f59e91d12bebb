"""A stage on its own, from its own command: the second of three hops from the command line to a stage.

A function here is a command. It opens the artifacts that the user named, makes one of what is none yet
(`converted.py`), finds those that the user did not name (`sources.py`), and hands them to `run_single`, which runs the
stage exactly as a recipe does; `routing.py` says which stage gets which key. `given` is what the user
said, by the keys of the stage's config, options and `--set` alike. It wins over what is found, and a None in it is a
None: what was not said is not in it. What cannot be found is an error that names the option to give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from mmcompress.artifact import Artifact
from mmcompress.compress.int8.comparison import CalibrationComparison
from mmcompress.config import EIGHT_BITS, ExportConfig, Precision, QuantizeConfig, StageConfig
from mmcompress.data.layout import say_classes
from mmcompress.data.spec import same_set
from mmcompress.errors import UsageError, suggestion
from mmcompress.int8 import GRAPH_RANGES, RANGES
from mmcompress.manifest import Kind
from mmcompress.measure.comparison import ComparisonDocument
from mmcompress.measure.early import runnable
from mmcompress.pipeline.apart import check_leaves_some_unseen, with_some_apart, with_validation
from mmcompress.pipeline.converted import (
    all_as_graphs,
    artifact_at,
    as_checkpoint,
    as_graphs,
    as_model,
    check_becomes_checkpoint,
    check_named,
    coming_start,
    graphs_to_use,
    is_artifact,
    is_graph,
    made_first,
    natural_precisions,
    teacher_graphs,
    teacher_named,
    tracing_stage,
)
from mmcompress.pipeline.plan import local_inputs
from mmcompress.pipeline.recipe import SHARED_TABLES, load_recipe, parse_assignments
from mmcompress.pipeline.routing import routed, routed_with_source
from mmcompress.pipeline.run import run_recipe, run_stages
from mmcompress.pipeline.single import check_places, checked, look_at_data, run_single
from mmcompress.pipeline.sources import (
    Given,
    artifacts_in,
    data_unless_given,
    embeddings_beside,
    in_recipe_order,
    measured_beside,
    names_teacher,
    parent_beside,
    recorded_budget,
    recorded_teacher,
)
from mmcompress.places import MANIFEST, check_place
from mmcompress.stages import STAGES

RECIPES = Path(__file__).parents[1] / "recipes"
NOTHING: Given = {}
MEASURED: Given = {"backend": None, "precision": None, "batch": 1, "threads": None, "seconds": 30}
"""How `compare` measures where nobody says it."""


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
    return run_stages(loaded, places, str(path))[last.name]


def train_pair(image: str, text: str, out: Path, given: Given = NOTHING) -> Artifact:
    """Two pretrained towers, with new projections into one space."""
    if "data.train" not in given:
        raise UsageError("two towers learn from image-text pairs", "give --data")
    return run_single("train", {"towers": {"image": image, "text": text}}, given, {}, out)


def embed(out: Path, given: Given) -> Artifact:
    return run_single("embed", {}, given, {}, out)


def import_embeddings(out: Path, given: Given) -> Artifact:
    """What lies beside published images as cached embeddings."""
    return run_single("import-embeddings", {}, given, {}, out)


def ensemble(teachers: Sequence[Path], out: Path, given: Given = NOTHING) -> Artifact:
    """Cached embeddings of several teachers as those of one."""
    gathered = [Artifact.open(teacher, Kind.EMBEDDINGS) for teacher in teachers]
    return run_single("ensemble", {}, given, {}, out, gathered)


def convert(source: str, out: Path, given: Given = NOTHING) -> Artifact:
    """A teacher as a checkpoint of ours, with its own weights."""
    check_becomes_checkpoint(source, "a checkpoint", given)
    return run_single("convert", {}, {**given, "teacher.source": source}, {}, out)


def distill(
    out: Path, given: Given = NOTHING, *, embeddings: Path | None = None, checkpoint: Path | None = None
) -> Artifact:
    """A new student, or with `checkpoint` that one recovered; the teacher is embedded first where it has not been."""
    check_place(out)
    start = None if checkpoint is None else Artifact.open(checkpoint, Kind.CHECKPOINT)
    student = any(key.split(".")[0] == "student" for key in given)
    if start is None and not student:
        raise UsageError(
            "distill needs a student", "--student vit-s16 or inherit:0.25, or --from CHECKPOINT to recover one"
        )
    if start is not None and student:
        raise UsageError(f"--student and --from {checkpoint} both say where to start", "leave one of them out")
    if "data.validation" in given and not any("watch" in key for key in given):
        raise UsageError(
            "--validation is what --watch-steps measures on, and it is not given", "add it, or leave --validation out"
        )
    cached, to = _embeddings(out, "distill", given, embeddings, start, start=lambda _: start)
    teacher = {} if names_teacher(given) else recorded_teacher(cached)
    tables = {"teacher": teacher, "data": data_unless_given(given, cached)}
    sources = {"embeddings": cached} | ({"checkpoint": start} if start else {})
    return run_single("distill", tables, to["distill"], sources, out)


def finetune(source: str | Path, out: Path, given: Given = NOTHING) -> Artifact:
    """A checkpoint trained further; a teacher becomes one in OUT-checkpoint. A tenth of the data is kept to choose by
    where no validation data is given.
    """
    check_place(out)
    near = artifact_at(source, Kind.CHECKPOINT)
    to = routed_with_source(given, "finetune", near)
    coming = to.get("convert", NOTHING)
    if near is None:
        check_becomes_checkpoint(source, "fine-tuned", coming)
    own = with_validation(to["finetune"])
    check_places(out, "finetune", built := checked("finetune", {}, own), made_first(source, near, coming), source)
    say_classes(own.get("data.train"))
    look_at_data("finetune", built, out)
    checkpoint = near or as_checkpoint(source, out, coming)
    return run_single("finetune", {}, own, {"checkpoint": checkpoint}, out)


def prune(source: str | Path, out: Path, given: Given = NOTHING, *, embeddings: Path | None = None) -> Artifact:
    """A checkpoint, or a teacher, which becomes one in OUT-checkpoint and is embedded as its own teacher."""
    check_place(out)
    near = artifact_at(source, Kind.CHECKPOINT, Kind.ONNX)
    if near is None and embeddings is None and not names_teacher(given):
        given = {**given, "teacher.source": str(source)}
    if near is None:
        check_becomes_checkpoint(source, "pruned", given)
        if embeddings is not None:
            from mmcompress.compress.early import check_same_teacher

            check_same_teacher(str(source), Artifact.open(embeddings, Kind.EMBEDDINGS))
    elif near.manifest.kind is Kind.ONNX:
        raise UsageError(f"{source} cannot be pruned: a graph has no blocks", "prune the checkpoint that it is from")

    def checkpoint(to: Mapping[str, Given]) -> Artifact:
        return near or as_checkpoint(source, out, to.get("convert", NOTHING))

    say_classes(given.get("data.train"))
    cached, to = _embeddings(out, "prune", given, embeddings, near, *([] if near else ["convert"]), start=checkpoint)
    tables = {"data": data_unless_given(given, cached)}
    check_places(
        out, "prune", checked("prune", tables, to["prune"]), made_first(source, near, to.get("convert", NOTHING))
    )
    sources = {"checkpoint": checkpoint(to), "embeddings": cached}
    return run_single("prune", tables, to["prune"], sources, out)


def _embeddings(
    out: Path,
    own: str,
    given: Given,
    embeddings: Path | None,
    near: Artifact | None,
    *also: str,
    start: Callable[[Mapping[str, Given]], Artifact | None],
) -> tuple[Artifact, dict[str, dict[str, Any]]]:
    """Cached embeddings to learn from, and what each stage is given: those named, those of a teacher that is given,
    made now in OUT-embeddings, or those that `near` is from. `also` are other stages that run, `start` is the
    checkpoint that the stage begins with, by which it is checked before anything is embedded.
    """
    found, why = None, f"--embeddings {embeddings} are given"
    if embeddings is not None:
        found = Artifact.open(embeddings, Kind.EMBEDDINGS)
    elif not names_teacher(given):
        if near is not None and near.manifest.stage == "convert" and parent_beside(near, "embeddings") is None:
            given = {**given, "teacher.source": str(near.path)}  # it is a model in Hugging Face format itself
        else:
            found = embeddings_beside(near)
            why = f"the teacher's embeddings are in {found.path}"
    idle = {} if "convert" in also else {"convert": "nothing is converted"}
    if found is not None:
        return found, routed(given, own, *also, idle={"embed": why, **idle})
    to = routed(given, own, "embed", *also, idle=idle)
    data = {"data": data_unless_given(given, near)}
    beside = {"embeddings": "embed"} | ({"checkpoint": "convert"} if "convert" in also else {})
    check_places(out, own, built := checked(own, data, to[own]), beside)
    look_at_data(own, built, out)
    if (begun := start(to)) is not None:
        checked(own, data, to[own], {"checkpoint": begun})
    return run_single("embed", data, to["embed"], {}, out.with_name(f"{out.name}-embeddings")), to


def quantize(
    source: str | Path, out: Path, given: Given = NOTHING, *, ranges: Path | None = None, judged: bool = False
) -> Artifact:
    """Fit integers, on the `ranges` of another quantized checkpoint if they are given; a teacher is converted first.

    Where it is `judged` on the same data afterwards, that has to have samples that are not calibrated on.
    What is no checkpoint of ours is quantized as the graphs that it is, or that it is exported to, in OUT-teacher.
    """
    check_place(out)
    near = artifact_at(source, Kind.CHECKPOINT, Kind.ONNX)
    to = routed_with_source(given, "quantize", near)
    if ranges is not None and (unused := sorted({"method", "percentile", "smooth"} & to["quantize"].keys())):
        raise UsageError(f"{unused[0]} says how ranges are found, and --ranges gives them", "leave one of them out")
    tables = {"data": data_unless_given(given, near)}
    built = cast(QuantizeConfig, checked("quantize", tables, to["quantize"]))
    say_classes(built.data.train)
    validation = built.data.validation
    if judged and (train := built.data.train) is not None and (validation is None or same_set(train, validation)):
        check_leaves_some_unseen(train, built)
    reused = {"ranges": Artifact.open(ranges, Kind.CHECKPOINT)} if ranges else {}
    coming = to.get("convert", NOTHING)
    graph = is_graph(source, near, coming)
    check_places(out, "quantize-graphs" if graph else "quantize", built, made_first(source, near, coming), source)
    look_at_data("quantize", built, out)
    if graph:
        own = _given_of_graphs(source, tables, to["quantize"])
        if ranges is not None:
            raise UsageError(f"--ranges are of checkpoints, and {source} is quantized as a graph", "leave it out")
        graphs = near or as_model(source, out, coming)
        return run_single("quantize-graphs", tables, own, {"graphs": graphs}, out)
    checked("quantize", tables, to["quantize"], reused, coming_start(source, near, coming))
    if near is None and reused:
        from mmcompress.compress.early import check_coming_weights

        check_coming_weights(reused["ranges"], teacher_named(str(source), given=coming))
    checkpoint = near or as_checkpoint(source, out, coming)
    return run_single("quantize", tables, to["quantize"], {"checkpoint": checkpoint, **reused}, out)


def _given_of_graphs(source: str | Path, tables: Mapping[str, Any], given: Given) -> dict[str, Any]:
    """What is given to `quantize`, checked as what its twin for graphs is given."""
    stage = "quantize-graphs"
    own = routed(given, stage, idle={"quantize": f"{source} is quantized as a graph"})[stage]
    checked(stage, tables, own)
    return own


def qat(checkpoint: str | Path, out: Path, given: Given = NOTHING) -> Artifact:
    if (source := artifact_at(checkpoint, Kind.CHECKPOINT)) is None:
        teacher_named(str(checkpoint), Kind.CHECKPOINT.value)
        raise UsageError(
            f"qat trains the integers of a quantized checkpoint, and {checkpoint} is a teacher",
            f"quantize it first: mmcompress quantize {checkpoint} --data DATA --out DIR",
        )
    return run_single("qat", {"data": data_unless_given(given, source)}, given, {"checkpoint": source}, out)


def verdict(source: str | Path, out: Path, given: Given = NOTHING) -> Artifact:
    """On training pairs that the checkpoint was not calibrated on unless others are given; within its own budget.

    What is not quantized yet is quantized first, in OUT-quantized; the data that is given then serves both.
    """
    check_place(out)
    checkpoint = artifact_at(source, Kind.CHECKPOINT, Kind.ONNX)
    if checkpoint is not None and {RANGES, GRAPH_RANGES} & checkpoint.manifest.files.keys():
        to = routed_with_source(given, "verdict", checkpoint, idle={"quantize": f"{source} is quantized"})
    else:
        if "data.train" not in given and "data.validation" in given:
            given = {("data.train" if key == "data.validation" else key): value for key, value in given.items()}
        to = routed_with_source(given, "verdict", checkpoint, "quantize")
        tables = {"data": data_unless_given(given, checkpoint)}
        built = checked("verdict", tables, to["verdict"])
        check_named(source, Kind.CHECKPOINT.value)
        coming = to.get("convert", NOTHING)
        fitting = "quantize-graphs" if is_graph(source, checkpoint, coming) else "quantize"
        check_places(out, "verdict", built, {**made_first(source, checkpoint, coming), "quantized": fitting}, source)
        if fitting == "quantize-graphs":
            _given_of_graphs(source, tables, to["quantize"])
        look_at_data("verdict", built, out)
        checked("quantize", tables, to["quantize"], start=coming_start(source, checkpoint, coming))
        given = with_some_apart(given, tables["data"])
        to = routed_with_source(given, "verdict", checkpoint, "quantize")
        place = out.with_name(f"{out.name}-quantized")
        checkpoint = checkpoint or as_model(source, out, to["convert"])
        checkpoint = quantize(checkpoint.path, place, to["quantize"])
    field = "train" if "data.train" in given else "validation"
    tables = {"data": data_unless_given(given, checkpoint, field), **recorded_budget(checkpoint)}
    role = "graphs" if checkpoint.manifest.kind is Kind.ONNX else "checkpoint"
    return run_single("verdict", tables, to["verdict"], {role: checkpoint}, out)


def asks_verdict(said: bool, backend: str | None) -> bool:
    """Whether a verdict is asked for, by itself or by naming its backend; raises where that cannot run here."""
    if asked := said or backend is not None:
        runnable(backend)
    return asked


def verdict_beside(checkpoint: Artifact, backend: str | None) -> Artifact:
    """The verdict on a checkpoint that was just quantized, into its OUT-verdict."""
    out = checkpoint.path.with_name(f"{checkpoint.path.name}-verdict")
    return verdict(checkpoint.path, out, {"backend": backend})


def export(source: str, out: Path, given: Given = NOTHING, static: bool = False) -> Artifact:
    """A checkpoint as ONNX. A teacher goes through optimum as it is, or with a precision through our own exporter.

    `static` also makes the bundle for compilers of other vendors, in OUT-static.
    """
    checkpoint = artifact_at(source, Kind.CHECKPOINT)
    bundle, idle = (("static",), {}) if static else ((), {"static": "no bundle is asked for: --static"})
    beside = {"static": "static"} if static else {}
    own = {key.split(".")[0] for key in given} & ExportConfig.model_fields.keys() - StageConfig.model_fields.keys()
    if checkpoint is None and not own:
        stage = tracing_stage(source)
        to = routed(given, stage, *bundle, idle={"convert": "the teacher is exported as it is", **idle})
        checked(stage, {"teacher": {"source": source}}, to[stage])
        teacher_named(source, Kind.CHECKPOINT.value, to[stage])
        _check_bundle(out, {}, to)
        return _with_bundle(teacher_graphs(source, out, to[stage]), out, {}, to)
    idle["baseline"] = "mmcompress itself exports"
    to = routed_with_source(given, "export", checkpoint, *bundle, idle=idle)
    precisions = ("fp32",) if checkpoint is None else natural_precisions(checkpoint)
    natural = {"precisions": tuple(dict.fromkeys((*precisions, *(["fp32"] if static else []))))}
    built = cast(ExportConfig, checked("export", natural, to["export"]))
    if checkpoint is not None:
        from mmcompress.export.towers import check_eight_bits

        check_eight_bits(checkpoint.model, built.precisions)
    calibrated = [precision for precision in built.precisions if precision in EIGHT_BITS]
    if calibrated and (checkpoint is None or RANGES not in checkpoint.manifest.files):
        raise UsageError(
            f"{source} is not quantized, so it cannot be exported in {calibrated[0]}",
            f"mmcompress quantize {source} --data DATA --out DIR, and export that",
        )
    if static and "fp32" not in built.precisions:
        raise UsageError("a bundle is of FP32 graphs, which the compiler quantizes", "add --precision fp32")
    if static and built.image_input == "any":
        raise UsageError(
            "a bundle is of static shape, and --image-input any takes images of any size",
            "say their height and width: --image-input 480x640",
        )
    tables = {"data": data_unless_given(given, checkpoint)} if static else {}
    _check_bundle(out, tables, to)
    if checkpoint is None:
        check_becomes_checkpoint(source, "exported in a precision of choice", to["convert"])
        check_places(out, "export", built, made_first(source, None, to["convert"]) | beside, source)
        checkpoint = as_checkpoint(source, out, to["convert"])
    return _with_bundle(run_single("export", natural, to["export"], {"checkpoint": checkpoint}, out), out, tables, to)


def _check_bundle(out: Path, tables: Mapping[str, Any], to: Mapping[str, Given]) -> None:
    if "static" in to:
        check_place(out.with_name(f"{out.name}-static"), stage="static")
        checked("static", tables, to["static"])


def _with_bundle(graphs: Artifact, out: Path, tables: Mapping[str, Any], to: Mapping[str, Given]) -> Artifact:
    """The graphs, and OUT-static made of them where the stage is one that runs."""
    if "static" in to:
        run_single("static", tables, to["static"], {"graphs": graphs}, out.with_name(f"{out.name}-static"))
    return graphs


def build(source: str | Path, out: Path, given: Given = NOTHING) -> Artifact:
    """Engines of ONNX graphs; a checkpoint or a teacher is exported first, into OUT-graphs."""
    check_place(out)
    to = routed_with_source(given, "build", artifact_at(source, Kind.ONNX, Kind.CHECKPOINT))
    checked("build", {}, to["build"])
    graphs = as_graphs(source, out.with_name(f"{out.name}-graphs"), to.get("convert", NOTHING))
    return run_single("build", {}, to["build"], {"graphs": graphs}, out)


def bench(sources: Sequence[str | Path], out: Path, given: Given) -> Artifact:
    """What is no ONNX artifact or engine yet is exported first, into OUT-sources."""
    to, read = _measured(sources, "bench", given, out)
    graphs = all_as_graphs(sources, out, to.get("convert", NOTHING), Kind.ONNX, Kind.ENGINE, read=read)
    return run_single("bench", {}, to["bench"], {}, out, graphs)


def drift(sources: Sequence[str | Path], out: Path, given: Given) -> Artifact:
    """The first one is the reference; what is no ONNX artifact or engine yet is exported first, into OUT-sources."""
    to, read = _measured(sources, "drift", given, out)
    graphs = all_as_graphs(sources, out, to.get("convert", NOTHING), Kind.ONNX, Kind.ENGINE, read=read)
    return run_single("drift", {}, to["drift"], {}, out, graphs)


def _measured(
    sources: Sequence[str | Path], own: str, given: Given, out: Path
) -> tuple[dict[str, dict[str, Any]], list[Path]]:
    """What each stage is given, and the files and folders that the command's own reads."""
    fresh = any(not is_artifact(source) for source in sources)
    to = routed(given, own, *(["convert"] if fresh else []), idle={} if fresh else {"convert": "nothing is converted"})
    built = checked(own, {}, to[own])
    check_places(out, own, built, {})
    for source in sources:
        check_named(source)
    look_at_data(own, built, out)
    return to, local_inputs(built)


def bisect(reference: Path, candidate: Path, out: Path, given: Given) -> Artifact:
    """The reference is the FP32 export of the checkpoint that the candidate was exported from."""
    sources = {"reference": Artifact.open(reference, Kind.ONNX), "candidate": Artifact.open(candidate, Kind.ONNX)}
    return run_single("bisect", {}, given, sources, out)


def page(source: str | Path, beside: str | Path | None, out: Path, given: Given) -> Artifact:
    """A site of one model, or of two; what is no ONNX artifact yet becomes one in the user's cache."""
    named = {"graphs": source, **({} if beside is None else {"beside": beside})}
    checked("page", {}, given)
    for one in named.values():
        check_named(one)
    graphs = {role: graphs_to_use(one) for role, one in named.items()}
    return run_single("page", {}, given, graphs, out)


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
    joined += measured_beside(joined)
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
    from mmcompress.measure.compare import compare as compare_paths
    from mmcompress.measure.stored import stored_latencies

    calibrations = all((path / RANGES).is_file() for path in (a, b))
    if calibrations or all(stored_latencies(path) is not None for path in (a, b)):
        said = [name for name in asked if asked[name] != MEASURED[name]] + ([] if pin is None else ["pin"])
        if said:
            raise UsageError(f"--{said[0]} says how to measure, and {a} and {b} are only read", "leave it out")
    if calibrations:
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
