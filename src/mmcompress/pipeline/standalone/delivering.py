"""Exports and builds, from their own commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from mmcompress.artifact import Artifact
from mmcompress.config import EIGHT_BITS, ExportConfig, StageConfig
from mmcompress.errors import UsageError
from mmcompress.int8 import RANGES
from mmcompress.manifest import Kind
from mmcompress.pipeline.converted import (
    artifact_at,
    as_checkpoint,
    as_graphs,
    check_becomes_checkpoint,
    made_first,
    natural_precisions,
    teacher_graphs,
    teacher_named,
    tracing_stage,
)
from mmcompress.pipeline.routing import routed, routed_with_source
from mmcompress.pipeline.single import check_places, checked, run_single
from mmcompress.pipeline.sources import (
    NOTHING,
    Given,
    data_unless_given,
)
from mmcompress.places import check_place


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
