"""Measurements and reports, each from its own command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from mmcompress.artifact import Artifact
from mmcompress.compress.int8.comparison import CalibrationComparison
from mmcompress.config import Precision
from mmcompress.errors import UsageError, of_choices
from mmcompress.int8 import RANGES
from mmcompress.manifest import Kind
from mmcompress.measure.comparison import ComparisonDocument
from mmcompress.measure.early import check_bisected
from mmcompress.pipeline.converted import (
    all_as_graphs,
    check_named,
    check_rows,
    graphs_to_use,
    is_artifact,
)
from mmcompress.pipeline.plan import local_inputs
from mmcompress.pipeline.routing import routed
from mmcompress.pipeline.single import check_places, checked, look_at_data, run_single
from mmcompress.pipeline.sources import (
    NOTHING,
    Given,
    artifacts_in,
    in_recipe_order,
    measured_beside,
)
from mmcompress.places import MANIFEST
from mmcompress.stages import STAGES

MEASURED: Given = {"backend": None, "precision": None, "batch": 1, "threads": None, "seconds": 30}
"""How `compare` measures where nobody says it."""


def bench(sources: Sequence[str | Path], out: Path, given: Given, image_size: int | None = None) -> Artifact:
    """What is no ONNX artifact or engine yet is exported first, into OUT-sources."""
    if not sources:
        raise UsageError("bench measures artifacts, and none is named", "name some, or time parts of towers: --blocks")
    if image_size is not None:
        raise UsageError("--image-size is of --blocks: artifacts have sizes of their own", "leave it out")
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
    check_rows(sources)
    fresh = any(not is_artifact(source) for source in sources)
    to = routed(given, own, *(["convert"] if fresh else []), idle={} if fresh else {"convert": "nothing is converted"})
    built = checked(own, {}, to[own])
    check_places(out, own, built, {})
    look_at_data(own, built, out)
    return to, local_inputs(built)


def bisect(reference: Path, candidate: Path, out: Path, given: Given) -> Artifact:
    """The reference is the FP32 export of the checkpoint that the candidate was exported from."""
    sources = {"reference": Artifact.open(reference, Kind.ONNX), "candidate": Artifact.open(candidate, Kind.ONNX)}
    check_bisected(sources)
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
            f"there is no precision {asked['precision']!r}", of_choices(asked["precision"], get_args(Precision))
        )
    try:
        cores = None if pin is None else tuple(int(core) for core in pin.split(","))
    except ValueError as error:
        raise UsageError(f"--pin {pin!r} is no list of cores", "for example: --pin 0,1") from error
    return compare_paths(a, b, pin=cores, **asked)
