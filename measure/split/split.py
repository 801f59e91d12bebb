"""`mmcompress split`: measure the halves, choose the cut, write both graphs, and say whether splitting is best at all.

INT8 is sent where there are samples to judge it by and no more than the budget's share of their images gets another
best caption; else FP16, which rounds less than the graphs themselves. A prediction is of one image at a time.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mmcompress.artifact import Artifact, Draft
from mmcompress.config import Backend, Precision
from mmcompress.data.batches import batches
from mmcompress.data.preprocess import normalize
from mmcompress.errors import CorruptInputError, UsageError, require
from mmcompress.manifest import Graph
from mmcompress.measure.agreement import best as best_captions
from mmcompress.measure.agreement import flipped
from mmcompress.measure.split import plan
from mmcompress.measure.split.document import DeviceTimes, SplitDocument, SplitOption, Wire
from mmcompress.measure.split.halves import Cuts, halves, sent_bytes
from mmcompress.measure.split.loopback import measured_ms, request_ms
from mmcompress.measure.split.times import measured_times, tried_cuts, written
from mmcompress.runtime.backends import graph_for
from mmcompress.runtime.encoder import Encoder, unit
from mmcompress.runtime.machine import usable_cores

HERE = "here"
"""In place of a table: this machine, measured now."""
TIMES, SPLIT = "times.json", "split.json"


@dataclass(frozen=True)
class Judge:
    """What INT8 is judged by."""

    data: str
    """Pairs."""
    samples: int
    """Of these pairs."""
    max_flips: float
    """Share of their images that may get another best caption."""


@dataclass(frozen=True)
class Wish:
    """What was asked."""

    devices: dict[str, str]
    """Name -> `here` or a table; one is measured only, two are split between."""
    line: plan.Line | None
    backend: Backend
    precision: Precision | None
    threads: int | None
    judge: Judge | None
    """Without one FP16 is sent."""
    loopback: bool


def devices_in(said: str) -> dict[str, str]:
    """`a=here,b=box/times.json` -> by name. Raises UsageError for anything else."""
    pairs = [part.partition("=") for part in said.split(",") if part.strip()]
    found = {name.strip(): place.strip() for name, _, place in pairs}
    if not 1 <= len(found) <= 2 or len(found) != len(pairs) or not all(name and place for name, place in found.items()):
        raise UsageError(
            f"--device {said!r} does not name two devices",
            "say --device phone=here,box=box/times.json; one alone is measured: --device box=here",
        )
    return found


def check_wish(wish: Wish) -> None:
    """Raise UsageError for what cannot be answered, before anything is measured."""
    places = list(wish.devices.values())
    if len(places) == 2 and wish.line is None:
        raise UsageError("two devices have a line between them", "say how fast it is: --bandwidth 20Mbps")
    if len(places) == 1 and (wish.line or wish.loopback or wish.judge or places != [HERE]):
        raise UsageError(
            f"{', '.join(wish.devices)} alone is measured and nothing is split",
            "name two devices, or --device NAME=here without --bandwidth, --data and --loopback",
        )
    if wish.loopback and set(places) != {HERE}:
        raise UsageError(
            "--loopback runs both halves on this machine, and a table is of another one",
            "leave it out, or say --device a=here,b=here",
        )
    for place in places:
        if place != HERE:
            if not Path(place).is_file():
                said = "give `here` or a times.json that `mmcompress split` wrote"
                raise UsageError(f"there is no table {place}", said)
            DeviceTimes.read(Path(place))


def split(artifact: Artifact, wish: Wish, draft: Draft) -> SplitDocument | DeviceTimes:
    """Fill a draft with both halves and what was found, or with the table of one device alone."""
    graph = graph_for(artifact, "image", wish.backend, wish.precision)
    check_graph(artifact, graph)
    model = require("onnx", "compress").load(str(artifact.file(graph.file)))
    sha256 = artifact.manifest.files[graph.file].sha256
    others = {place: DeviceTimes.read(Path(place)) for place in wish.devices.values() if place != HERE}
    for table in others.values():
        if table.graph != sha256:
            raise CorruptInputError(
                f"a table of {table.device} is of the graph {table.graph[:12]}…, and {graph.file} is {sha256[:12]}…",
                "measure there again: mmcompress split ARTIFACT --device NAME=here --out DIR",
            )
    threads = wish.threads or usable_cores()
    with tempfile.TemporaryDirectory() as work:
        here = None
        if HERE in wish.devices.values():
            here = measured_times(
                model, tried_cuts(model, graph.file), sha256, graph, wish.backend, threads, Path(work)
            )
            here.write(draft.path / TIMES)
        tables = [here if place == HERE else others[place] for place in wish.devices.values()]
        found = [table for table in tables if table is not None]
        if len(found) == 1 or wish.line is None:
            return found[0]
        line = replace(wish.line, request_ms=request_ms())
        document, wire = _chosen(artifact, graph, model, (found[0], found[1]), replace(wish, line=line))
        tensor = tried_cuts(model, graph.file)[document.cut.behind][0]
        parts = [
            written(half, draft.path / f"image-{name}.onnx", graph, wish.backend, threads)
            for name, half in zip(("first", "second"), halves(model, tensor, wire), strict=True)
        ]
    draft.inherit(artifact)
    draft.graphs = [half.graph for half in parts]
    if wish.loopback:
        document = document.model_copy(update={"measured_ms": measured_ms(parts[0], parts[1], wish.line)})
    document.write(draft.path / SPLIT)
    return document


def check_graph(artifact: Artifact, graph: Graph) -> None:
    """Raise UsageError for a graph that is not split."""
    if graph.prepares or artifact.manifest.bank is not None:
        raise UsageError(
            f"{graph.file} of {artifact.path} has preprocessing or labels inside, and is not split",
            "export without --image-input and --bank-labels",
        )
    if f"{graph.file}.data" in artifact.manifest.files:
        raise UsageError(f"{graph.file} of {artifact.path} is larger than 2 GB, and is not split", "quantize it first")


def _chosen(
    artifact: Artifact, graph: Graph, model: Any, tables: tuple[DeviceTimes, DeviceTimes], wish: Wish
) -> tuple[SplitDocument, Wire]:
    """The document, and what is sent: INT8 if the budget holds at its best cut."""
    assert wish.line is not None
    cuts = tried_cuts(model, graph.file)
    flips, ways, wire = None, _ways(graph, cuts, tables, wish.line, "fp16"), "fp16"
    if wish.judge is not None:
        coarse = _ways(graph, cuts, tables, wish.line, "int8")
        flips = _flips(artifact, graph, halves(model, cuts[plan.best_cut(coarse).behind][0], "int8"), wish)
        if flips <= wish.judge.max_flips:
            ways, wire = coarse, "int8"
    best, cut = plan.best(ways), plan.best_cut(ways)
    document = SplitDocument(
        schema_version=1,
        devices={name: table.device for name, table in zip(wish.devices, tables, strict=True)},
        bandwidth_mbps=wish.line.bits_per_s / 1e6,
        rtt_ms=wish.line.rtt_ms,
        request_ms=wish.line.request_ms,
        best=best,
        cut=cut,
        splits=best.wire is not None,
        options=tuple(ways),
        int8_flips=flips,
        measured_ms=None,
    )
    return document, "int8" if wire == "int8" else "fp16"


def _ways(
    graph: Graph,
    cuts: Cuts,
    tables: tuple[DeviceTimes, DeviceTimes],
    line: plan.Line,
    wire: Wire,
) -> list[SplitOption]:
    side, answer = graph.inputs[0].shape[-1], graph.outputs[0].shape[-1]
    assert side is not None and answer is not None
    payload = plan.Payload(
        pixels=3 * side * side,
        activations={behind: sent_bytes(tokens, width, wire) for behind, (_, tokens, width) in cuts.items()},
        answer=answer * np.dtype(graph.outputs[0].dtype).itemsize,
    )
    return plan.options(*tables, payload, line, wire)


def _flips(artifact: Artifact, graph: Graph, parts: tuple[Any, Any], wish: Wish) -> float:
    """Share of the samples' images that get another best caption when the halves send INT8."""
    assert wish.judge is not None
    rule = artifact.image_processing
    step, threads = 16, wish.threads or usable_cores()
    stream = islice(batches(wish.judge.data, rule, batch=step), -(-wish.judge.samples // step))
    whole, split, captions = [], [], []
    with tempfile.TemporaryDirectory() as work, Encoder.open(artifact, wish.backend, wish.precision) as encoder:
        named = zip(("first", "second"), parts, strict=True)
        files = [written(part, Path(work) / f"{name}.onnx", graph, wish.backend, threads) for name, part in named]
        with files[0].open() as first, files[1].open() as second:
            for batch in stream:
                pixels = normalize(batch.pixels, rule)
                whole.append(encoder.images(pixels))
                sent = first.run({first.inputs[0].name: pixels.astype(first.inputs[0].dtype)})
                split.append(unit(second.run(sent)[second.outputs[0].name]))
                captions += [texts[0] for texts in batch.captions]
        texts = encoder.texts(captions)
    images = np.concatenate(whole)
    before, after = best_captions(images, texts), best_captions(np.concatenate(split), texts)
    return float(flipped(images, texts, before, after).mean())
