"""Commands that measure, compare and judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmcompress.cli.commands.app import (
    MEASURE,
    Backend,
    Given,
    Json,
    Method,
    NoSources,
    Out,
    Sources,
    Trust,
    app,
    finite,
)
from mmcompress.cli.options import keyed


@keyed(app, MEASURE, "bench", "convert", without=("teacher.source",))
def bench(
    out: Out,
    given: Given,
    artifacts: NoSources = None,
    blocks: Annotated[bool, typer.Option("--blocks", help="Time parts of towers instead: a table to size by.")] = False,
    image_size: Annotated[int | None, typer.Option(help="Of --blocks: side of the images, 224 if not given.")] = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Latency of ONNX artifacts, interleaved in one run. Checkpoints and teachers are exported into OUT-sources.

    With --blocks what parts of image towers cost here, which `distill --target-latency` sizes students by.
    """
    from mmcompress.cli import console, show_measure
    from mmcompress.pipeline import standalone

    if blocks:
        made = standalone.bench_blocks(artifacts or (), out, given, image_size)
        return console.show(*show_measure.costs_summary(made), json)
    console.show(*show_measure.bench_summary(standalone.bench(artifacts or (), out, given, image_size)), json)


@keyed(app, MEASURE, "block-costs")
def block_costs(out: Out, given: Given, json: Json = False) -> None:
    """Time image towers of many sizes here, and say what each kind of their work costs: a table to size students by."""
    from mmcompress.cli import console, show_measure
    from mmcompress.pipeline import standalone

    console.show(*show_measure.costs_summary(standalone.block_costs(out, given)), json)


@app.command(rich_help_panel=MEASURE)
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="ONNX, an engine, a bench, a report.json or an INT8 fit.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="What to compare with it, of the same kind.")],
    backend: Backend = None,
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or int8; the smallest if not given.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images a call.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Of a CPU runtime; all cores if not given.")] = None,
    seconds: Annotated[float, typer.Option(min=2, callback=finite, help="Longest measured time of each side.")] = 30,
    pin: Annotated[str | None, typer.Option(metavar="CORES", help="Cores to stay on: 0,1.")] = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Say whether B is faster than A, by how much, and whether that is more than noise.

    Of two quantized checkpoints: where their calibrations differ.
    """
    from mmcompress.cli import console, show_measure
    from mmcompress.pipeline import standalone

    asked = {"backend": backend, "precision": precision, "batch": batch, "threads": threads, "seconds": seconds}
    console.show(*show_measure.comparison_summary(standalone.compare(a, b, asked, pin)), json)


@keyed(app, MEASURE, "drift", "convert", without=("teacher.source",), required=("--data",))
def drift(artifacts: Sources, out: Out, given: Given, trust: Trust = False, json: Json = False) -> None:
    """Accuracy of ONNX artifacts and engines on a test set, and distances from the first one and the one before."""
    from mmcompress.cli import console, show_measure
    from mmcompress.pipeline import standalone

    console.show(*show_measure.drift_summary(standalone.drift(artifacts, out, given)), json)


@keyed(app, MEASURE, "bisect", required=("--data",))
def bisect(
    reference: Annotated[Path, typer.Argument(metavar="FP32", help="The FP32 export of a checkpoint.")],
    candidate: Annotated[Path, typer.Argument(metavar="CANDIDATE", help="Its INT8 or FP16 export.")],
    out: Out,
    given: Given,
    json: Json = False,
) -> None:
    """Find the modules in which a quantized model leaves its FP32 reference, and which to keep in higher precision."""
    from mmcompress.cli import console, show_measure
    from mmcompress.pipeline import standalone

    console.show(*show_measure.bisect_summary(standalone.bisect(reference, candidate, out, given)), json)


@keyed(app, MEASURE, "report")
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="A run folder, or artifacts to join.")],
    given: Given,
    out: Annotated[Path | None, typer.Option(help="Folder to write; DIR/report if not given.")] = None,
    json: Json = False,
) -> None:
    """Join measurements into report.html, report.md and report.json."""
    from mmcompress.cli import console, show_report
    from mmcompress.pipeline import standalone

    console.show(*show_report.report_summary(standalone.report(folders, out, given)), json)


@keyed(app, MEASURE, "report.gates")
def check(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="report.json, the folder with it, or engines.")],
    given: Given,
    baseline: Annotated[Path | None, typer.Option(help="Report that changes are against; else the first row.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write the verdicts as JUnit XML.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the verdicts as a Markdown table.")] = None,
    json: Json = False,
) -> None:
    """Hold a report against limits: exit 1 with a table if one is missed. Without limits, against its recipe's.

    Engines are held against --max engine_bytes=…, kernels=… and fallbacks=…, which is 0 where it is not said.
    """
    from mmcompress.cli import console, show_report
    from mmcompress.report import checking

    verdicts = checking.check(report, given, baseline, junit, markdown)
    console.show(*show_report.gates_summary(verdicts), json)
    checking.enforce(verdicts)


@app.command(rich_help_panel=MEASURE)
def pointing(
    artifacts: Sources,
    boxes: Annotated[Path, typer.Option(help="Table with tabs: image, text, left, top, right, bottom; a box a line.")],
    method: Method = None,
    backend: Backend = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Count how often a model looks at what a text names, on images with boxes (the pointing game)."""
    from mmcompress.cli import console, show_use
    from mmcompress.pipeline import explaining

    console.show(*show_use.pointing_summary(*explaining.pointing(artifacts, boxes, method, backend)), json)
