"""Stages that fit and train integers and judge them, each from its own command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from mmcompress.artifact import Artifact
from mmcompress.config import QuantizeConfig
from mmcompress.data.fingerprint import same_set
from mmcompress.data.layout import say_classes
from mmcompress.errors import UsageError
from mmcompress.int8 import GRAPH_RANGES, RANGES
from mmcompress.manifest import Kind
from mmcompress.measure.early import runnable
from mmcompress.pipeline.apart import check_leaves_some_unseen, with_some_apart
from mmcompress.pipeline.converted import (
    artifact_at,
    as_checkpoint,
    as_model,
    check_named,
    coming_start,
    is_graph,
    made_first,
    teacher_named,
)
from mmcompress.pipeline.routing import routed, routed_with_source
from mmcompress.pipeline.single import check_places, checked, look_at_data, run_single
from mmcompress.pipeline.sources import (
    NOTHING,
    Given,
    data_unless_given,
    recorded_budget,
)
from mmcompress.places import check_place


def quantize(
    source: str | Path, out: Path, given: Given = NOTHING, *, ranges: Path | None = None, judged: bool = False
) -> Artifact:
    """Fit integers, on the `ranges` of another quantized checkpoint if they are given; a teacher is converted first.

    Where it is `judged` on the same data afterwards, that has to have samples that are not calibrated on.
    What is no checkpoint of ours is quantized as the graphs that it is, or that it is exported to, in OUT-teacher.
    """
    check_place(out)
    near = _quantizable_at(source)
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


def _quantizable_at(source: str | Path) -> Artifact | None:
    """The artifact at a source. Raises UsageError for graphs that are not in FP32, before any data is asked for."""
    near = artifact_at(source, Kind.CHECKPOINT, Kind.ONNX)
    if near is not None and near.manifest.kind is Kind.ONNX:
        from mmcompress.compress.int8.quantize_graphs import TOWERS, fp32_graph

        for tower in TOWERS:
            fp32_graph(near, tower)
    return near


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
    from mmcompress.compress.int8.qat import check_trainable

    check_trainable(source)
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
        _quantizable_at(source)
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
