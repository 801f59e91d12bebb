"""The command line. Each command parses, calls one function and prints; heavy imports stay inside the commands.

Nothing here names a key of a config: `keyed` makes an option of every key of the stage that a command runs, and hands
over what was said as `given`. The file is a table with one entry a command, so it is long.

Only `main` turns an `MMCompressError` into `error: …` and `hint: …` with its exit code. A bug keeps its traceback.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer

from mmcompress import __version__
from mmcompress.cli.options import SETTINGS, Commands, Set, keyed
from mmcompress.cli.streams import flushed, never_failing
from mmcompress.errors import MMCompressError, UsageError
from mmcompress.places import disk_error
from mmcompress.ranks import announced, joined

app = typer.Typer(
    cls=Commands,
    name="mmcompress",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)

Out = Annotated[Path, typer.Option("--out", help="Folder to write; what is there already and valid is reused.")]
Json = Annotated[bool, typer.Option("--json", help="Print one compact JSON document on the last line of stdout.")]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A .toml file, or a packaged recipe: demo.")]
Source = Annotated[
    str,
    typer.Argument(
        metavar="ARTIFACT|TEACHER", help="Folder that an earlier command wrote, or a teacher, which is converted first."
    ),
]
Sources = Annotated[
    list[str],
    typer.Argument(metavar="ARTIFACT|TEACHER…", help="In the order of the report; a teacher is exported first."),
]
Folder = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder that an earlier command wrote.")]
Backend = Annotated[
    str | None, typer.Option(help="The runtime to run on: openvino, say; the first that works if not given.")
]
Method = Annotated[
    str | None,
    typer.Option(help="relevance, of float checkpoints, or occlusion, of anything; what works for all if not given."),
]
Embeddings = Annotated[Path | None, typer.Option(help="The teacher's cached embeddings, as `embed` wrote them.")]
Given = dict[str, Any]
"""The keys of the stage's config that were said, each of which `keyed` makes an option of."""
MODEL, MEASURE, USE = "Compress", "Measure", "Use and look"


def print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


def finite(value: float | None) -> float | None:
    """A range check lets NaN pass."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def trust_engines(wanted: bool) -> None:
    """For this process and those that it starts, such as the one that measures memory."""
    if wanted:
        from mmcompress.runtime.passport import TRUST

        os.environ[TRUST] = "1"


Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        callback=trust_engines,
        help="Open an engine whose passport does not fit this machine: it is code, so know who made it.",
    ),
]
Version = Annotated[bool, typer.Option("--version", is_eager=True, callback=print_version, help="Print the version.")]


@app.callback()
def options(version: Version = False) -> None:
    """From a large CLIP teacher to a small INT8 engine, with a report of what each step cost and bought."""


@app.command(rich_help_panel=MODEL)
def run(recipe: RecipeName, out: Out, set_: Set = None, json: Json = False) -> None:
    """Run a recipe: every stage whose output is not there yet. `run demo` needs no data and no GPU."""
    from mmcompress.cli import console, show_compress
    from mmcompress.pipeline import standalone

    artifacts = standalone.run(recipe, out, set_ or ())
    console.show(*show_compress.run_summary(artifacts), json)


@keyed(app, MODEL, "train", without=("student", "towers.image", "towers.text"))
def train(
    out: Out,
    given: Given,
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="A .toml file that ends with train.")] = None,
    image_tower: Annotated[str | None, typer.Option(help="Folder of a CLIP or SigLIP, in place of a recipe.")] = None,
    text_tower: Annotated[str | None, typer.Option(help="Folder of a CLIP, a SigLIP or a BERT, beside it.")] = None,
    json: Json = False,
) -> None:
    """Train a dual encoder from image-text pairs: a teacher of one's own, as a recipe says, or of two towers.

    --image-tower and --text-tower are pretrained; each gets a new projection, and --data says what they learn from.
    """
    from mmcompress.cli import console
    from mmcompress.pipeline import standalone

    if recipe is not None and image_tower is None and text_tower is None:
        made = standalone.train(recipe, out, given)
    elif recipe is None and image_tower is not None and text_tower is not None:
        made = standalone.train_pair(image_tower, text_tower, out, given)
    else:
        raise UsageError("train takes a recipe, or --image-tower and --text-tower", "give the one or both of the other")
    console.show(*console.artifact_summary(made), json)


@keyed(app, MODEL, "embed", required=("--teacher", "--data"))
def embed(out: Out, given: Given, json: Json = False) -> None:
    """Embed the training pairs with the teacher, once."""
    from mmcompress.cli import console
    from mmcompress.pipeline import standalone

    console.show(*console.artifact_summary(standalone.embed(out, given)), json)


@keyed(app, MODEL, "import-embeddings", required=("--data",))
def import_embeddings(out: Out, given: Given, json: Json = False) -> None:
    """Take embeddings, views and captions that lie beside published images (DataCompDR) in place of a teacher's."""
    from mmcompress.cli import console
    from mmcompress.pipeline import standalone

    console.show(*console.artifact_summary(standalone.import_embeddings(out, given)), json)


@keyed(app, MODEL, "ensemble")
def ensemble(
    teachers: Annotated[
        list[Path], typer.Argument(metavar="EMBEDDINGS…", help="Of each teacher, as `embed` wrote them.")
    ],
    out: Out,
    given: Given,
    json: Json = False,
) -> None:
    """Combine cached embeddings of several teachers; `distill --embeddings OUT --teacher ONE` learns from all."""
    from mmcompress.cli import console
    from mmcompress.pipeline import standalone

    console.show(*console.artifact_summary(standalone.ensemble(teachers, out, given)), json)


@keyed(app, MODEL, "convert", without=("teacher.source",))
def convert(
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="Alias, hub id, or a Hugging Face folder.")],
    out: Out,
    given: Given,
    json: Json = False,
) -> None:
    """Make a checkpoint of a teacher's own weights. What takes an artifact does this by itself for a teacher."""
    from mmcompress.cli import console
    from mmcompress.pipeline import standalone

    console.show(*console.artifact_summary(standalone.convert(teacher, out, given)), json)


@keyed(app, MODEL, "distill", "embed")
def distill(
    out: Out,
    given: Given,
    embeddings: Embeddings = None,
    checkpoint: Annotated[Path | None, typer.Option("--from", help="Checkpoint to recover, after pruning say.")] = None,
    pilot: Annotated[str | None, typer.Option(metavar="A,B", help="Try these teachers, and say which to take.")] = None,
    budget: Annotated[str | None, typer.Option(help="Of a pilot, for all teachers: 90s, 1h; 10m if not given.")] = None,
    json: Json = False,
) -> None:
    """Distill a student from a teacher, or recover a pruned one. Embeds the teacher into OUT-embeddings first."""
    from mmcompress.cli import console
    from mmcompress.pipeline import standalone

    if pilot is not None:
        return _try_teachers(pilot, budget or "10m", out, given, embeddings or checkpoint, json)
    if budget is not None:
        raise UsageError("--budget is a pilot's", "give --pilot A,B, or leave --budget out; optimizer.steps ends a run")
    student = standalone.distill(out, given, embeddings=embeddings, checkpoint=checkpoint)
    console.show(*console.artifact_summary(student), json)


def _try_teachers(pilot: str, budget: str, out: Path, given: Given, begun: Path | None, json: bool) -> None:
    from mmcompress.cli import console, show_compress
    from mmcompress.pipeline import pilot as trying

    if begun is not None:
        raise UsageError("a pilot embeds with each teacher, and starts anew", "leave --embeddings and --from out")
    found = trying.pilot([name.strip() for name in pilot.split(",")], trying.seconds_of(budget), out, given)
    console.show(*show_compress.pilot_summary(found), json)


@keyed(app, MODEL, "finetune", "convert", without=("teacher.source",), required=("--data",))
def finetune(artifact: Source, out: Out, given: Given, json: Json = False) -> None:
    """Train a model further on data of one's own, and take it back towards the start as far as validation says.

    --original is what it is to answer as before. A tenth of --data chooses where no --validation is given.
    """
    from mmcompress.cli import console, show_compress
    from mmcompress.pipeline import standalone

    console.show(*show_compress.finetune_summary(standalone.finetune(artifact, out, given)), json)


@keyed(app, MODEL, "prune", "embed", "convert")
def prune(
    artifact: Source,
    out: Out,
    given: Given,
    embeddings: Embeddings = None,
    json: Json = False,
) -> None:
    """Remove heads, MLP units and blocks. Teacher and data are those that the checkpoint was distilled with.

    A teacher is pruned as it is, with itself as its teacher, which embeds --data into OUT-embeddings first.
    """
    from mmcompress.cli import console, show_compress
    from mmcompress.pipeline import standalone

    pruned = standalone.prune(artifact, out, given, embeddings=embeddings)
    console.show(*show_compress.prune_summary(pruned), json)


@keyed(app, MODEL, "quantize", "quantize-graphs", "convert", without=("teacher.source",))
def quantize(
    artifact: Source,
    out: Out,
    given: Given,
    ranges: Annotated[Path | None, typer.Option(help="A quantized checkpoint whose ranges to reuse.")] = None,
    verdict: Annotated[bool, typer.Option("--verdict", help="Give the verdict too, into OUT-verdict.")] = False,
    backend: Annotated[str | None, typer.Option(help="The runtime that a verdict measures; asks for one.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 where INT8 is not clearly better; asks for a verdict.")
    ] = False,
    json: Json = False,
) -> None:
    """Fit INT8 to a checkpoint or to a teacher, from real samples; what would lose too much stays in float."""
    from mmcompress.cli import console, show_compress
    from mmcompress.measure.verdict import ruling
    from mmcompress.pipeline import standalone

    judging = standalone.asks_verdict(verdict or strict, backend)
    fitted = standalone.quantize(artifact, out, given, ranges=ranges, judged=judging)
    judged = standalone.verdict_beside(fitted, backend) if judging else None
    console.show(*show_compress.quantize_summary(fitted, judged), json)
    ruling.enforce(judged, strict)


@keyed(app, MODEL, "verdict", "quantize", "convert", without=("teacher.source",))
def verdict(
    checkpoint: Source,
    out: Out,
    given: Given,
    json: Json = False,
) -> None:
    """Measure FP32 (on GPUs FP16 too) and INT8 on a backend, choose the fastest INT8 graph, and say which file to ship.

    The budget is the one that the checkpoint was quantized within, where none is given. What is not quantized yet is
    quantized first, into OUT-quantized.
    """
    from mmcompress.cli import console, show_measure
    from mmcompress.measure.verdict import ruling
    from mmcompress.pipeline import standalone

    strict = given.pop("strict", False)  # what follows from a verdict, when it has been shown
    judged = standalone.verdict(checkpoint, out, given)
    console.show(*show_measure.verdict_summary(judged), json)
    ruling.enforce(judged, strict)


@app.command(rich_help_panel=MODEL)
def shrink(
    source: Source,
    data: Annotated[str, typer.Option(help="Pairs or photos to prune, calibrate and judge with, in parts kept apart.")],
    out: Out,
    target_latency: Annotated[
        str | None, typer.Option(help="Share of the image tower's latency to keep: 0.5x.")
    ] = None,
    backend: Backend = None,
    minutes: Annotated[float, typer.Option(min=0, callback=finite, help="Of training, to recover from pruning.")] = 0,
    validation: Annotated[
        str | None, typer.Option(help="Pairs that choices are made on; else a part of --data.")
    ] = None,
    test: Annotated[str | None, typer.Option(help="Pairs that only the page is about; else a part of --data.")] = None,
    labels: Annotated[str | None, typer.Option(help="Text file with one candidate text a line.")] = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """The whole way with one report: prune to a latency if one is given, recover, quantize, verdict, measure."""
    from mmcompress.cli import console, show_compress
    from mmcompress.pipeline.shrinking import Wish, shrink

    wish = Wish(data, validation, test, labels, target_latency, backend, float(minutes or 0), set_ or ())
    console.show(*show_compress.run_summary(shrink(source, out, wish)), json)


@keyed(app, MODEL, "qat")
def qat(artifact: Source, out: Out, given: Given, json: Json = False) -> None:
    """Train the integers of a quantized checkpoint towards its float weights, where INT8 loses more than it may."""
    from mmcompress.cli import console, show_compress
    from mmcompress.pipeline import standalone

    console.show(*show_compress.qat_summary(standalone.qat(artifact, out, given)), json)


@keyed(app, MODEL, "export", "static", "baseline", "trace", "convert", without=("teacher.source",))
def export(
    source: Source,
    out: Out,
    given: Given,
    static: Annotated[
        bool, typer.Option("--static", help="Also write OUT-static: FP32 of static shape and samples, for compilers.")
    ] = False,
    json: Json = False,
) -> None:
    """Write ONNX, one graph a tower. A quantized checkpoint becomes INT8 Q/DQ.

    A teacher goes through optimum as it is; with a --precision it is converted, and exported as a checkpoint is.
    """
    from mmcompress.cli import console
    from mmcompress.pipeline import standalone

    console.show(*console.artifact_summary(standalone.export(source, out, given, static)), json)


@keyed(app, MODEL, "build", "convert", without=("teacher.source",))
def build(artifact: Source, out: Out, given: Given, json: Json = False) -> None:
    """Build TensorRT engines from an ONNX artifact, with an audit of layers and precisions."""
    from mmcompress.cli import console
    from mmcompress.pipeline import standalone

    console.show(*console.artifact_summary(standalone.build(artifact, out, given)), json)


@keyed(app, MEASURE, "bench", "convert", without=("teacher.source",))
def bench(artifacts: Sources, out: Out, given: Given, trust: Trust = False, json: Json = False) -> None:
    """Latency of ONNX artifacts, interleaved in one run. Checkpoints and teachers are exported into OUT-sources."""
    from mmcompress.cli import console, show_measure
    from mmcompress.pipeline import standalone

    console.show(*show_measure.bench_summary(standalone.bench(artifacts, out, given)), json)


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


@app.command(rich_help_panel=USE)
def classify(
    artifact: Source,
    image: Annotated[Path, typer.Argument(metavar="IMAGE")],
    labels: Annotated[
        str | None,
        typer.Option(help="Separated by commas: cat,dog, or a file of them; else those inside the artifact."),
    ] = None,
    template: Annotated[str, typer.Option(help="Sentence around a label.")] = "{}",
    backend: Backend = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Say which of some labels fits an image, in percent. A teacher is exported into the user's cache first."""
    from mmcompress.cli import console, show_use
    from mmcompress.pipeline.converted import check_named_with_labels, graphs_to_use
    from mmcompress.runtime import answers

    names = answers.labels_in(labels)
    check_named_with_labels(artifact, names)
    answers.check_classify(image, names, template)
    with answers.opened(graphs_to_use(artifact, backend), cast(Any, backend), names) as encoder:
        console.show(*show_use.shares_summary(answers.classify(encoder, image, names, template)), json)


@app.command(rich_help_panel=USE)
def index(
    artifact: Source,
    images: Annotated[str, typer.Option(help="Folder of images, a table, or shards.")],
    out: Annotated[Path, typer.Option("--out", help="Index to write; to one that is there new images are added.")],
    backend: Backend = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Embed images once, for `search INDEX`: any number of them. What the index has already is not embedded again."""
    from mmcompress.cli import console, show_use
    from mmcompress.pipeline import searching

    console.show(*show_use.index_summary(searching.index(artifact, images, out, backend)), json)


@app.command(rich_help_panel=USE)
def search(
    source: Annotated[
        str, typer.Argument(metavar="INDEX|ARTIFACT|TEACHER", help="What `index` wrote; or a model, with --images.")
    ],
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="What to look for, in a language the model knows.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Look for images like this one, in place of a text.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of images, where there is no index of them.")] = None,
    top: Annotated[int, typer.Option(help="How many to show.")] = 5,
    model: Annotated[
        str | None, typer.Option(metavar="ARTIFACT|TEACHER", help="To ask an index with; else the one that made it.")
    ] = None,
    accept_loss: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, callback=finite, help="Let another model ask, if its recall@10 is so much lower at most."
        ),
    ] = None,
    backend: Backend = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Find the images that fit a text, or another image, best. A teacher is exported into the user's cache first."""
    from mmcompress.cli import console, show_use
    from mmcompress.pipeline import searching

    asked = searching.Asked(text, image, top)
    found = searching.search(source, asked, images, model, backend, accept_loss)
    console.show(*show_use.matches_summary(found), json)


@app.command(rich_help_panel=USE)
def explain(
    artifact: Source,
    image: Annotated[Path, typer.Argument(metavar="IMAGE")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The answer that is to be explained: 'a red car'.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write; one of an earlier explain is replaced.")],
    beside: Annotated[list[str] | None, typer.Option(help="Another artifact or teacher, in the same row.")] = None,
    method: Method = None,
    backend: Backend = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Show which parts of an image a model's answer rests on, for one model or several side by side."""
    from mmcompress.cli import console, show_use
    from mmcompress.pipeline import explaining

    found = explaining.explain([artifact, *(beside or ())], image, text, out, method, backend)
    console.show(*show_use.explained_summary(*found, out), json)


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


@app.command(rich_help_panel=USE)
def split(
    artifact: Source,
    out: Out,
    device: Annotated[
        str, typer.Option(metavar="A=…,B=…", help="Two devices: `here`, or the times.json of another; one is measured.")
    ],
    bandwidth: Annotated[str | None, typer.Option(help="Of the line between them: 20Mbps.")] = None,
    rtt_ms: Annotated[float | None, typer.Option(min=0, callback=finite, help="Of a round trip on it.")] = None,
    data: Annotated[str | None, typer.Option(help="Pairs to judge INT8 by; without any, FP16 is sent.")] = None,
    samples: Annotated[int | None, typer.Option(min=20, help="Of these pairs; 256 if not given.")] = None,
    max_flips: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, callback=finite, help="Share of images with another best caption; 0.02 if not given."
        ),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or int8; the smallest if not given.")] = None,
    backend: Backend = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the runtime; all cores if not given.")] = None,
    loopback: Annotated[
        bool, typer.Option("--loopback", help="Run it too: two processes here, and a line of that bandwidth.")
    ] = False,
    json: Json = False,
) -> None:
    """Cut the image tower in two for two devices, where it takes least, or say that it is best not cut."""
    from mmcompress.cli import console, show_use
    from mmcompress.pipeline import splitting

    judge = splitting.judge(data, samples, max_flips)
    line = splitting.line(bandwidth, rtt_ms)
    wish = splitting.wished(device, line, backend, precision, threads, judge, loopback)
    console.show(*show_use.split_summary(*splitting.split(artifact, out, wish)), json)


@app.command(rich_help_panel=USE)
def inspect(artifact: Source, json: Json = False) -> None:
    """Show what an artifact says of itself, after verifying every byte of it. A teacher is converted first."""
    from mmcompress.cli import console, show_use
    from mmcompress.pipeline.converted import anything_to_use

    opened = anything_to_use(artifact)
    console.show(opened.manifest.model_dump(mode="json", by_alias=True), show_use.manifest_view(opened), json)


@app.command(rich_help_panel=USE)
def pack(
    artifact: Folder,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: model.mmc; a pack is replaced.")],
    json: Json = False,
) -> None:
    """Make one file of an artifact, to be handed on: a plain tar, the same bytes every time."""
    from mmcompress import pack as packs
    from mmcompress.cli import console, show_use

    console.show(*show_use.pack_summary(packs.pack(artifact, out), out), json)


@app.command(rich_help_panel=USE)
def unpack(
    pack: Annotated[Path, typer.Argument(metavar="PACK", help="A file that `pack` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write: the artifact, whole or not at all.")],
    json: Json = False,
) -> None:
    """Make an artifact of a pack, after every byte was verified."""
    from mmcompress import pack as packs
    from mmcompress.cli import console

    console.show(*console.artifact_summary(packs.unpack(pack, out)), json)


@keyed(app, USE, "page")
def page(
    artifact: Source,
    out: Out,
    given: Given,
    beside: Annotated[
        str | None, typer.Option(metavar="ARTIFACT|TEACHER", help="Another model, side by side with it.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a static site in which the model runs in the reader's own browser: labels for a picture, and search."""
    from mmcompress.cli import console, show_use
    from mmcompress.pipeline import standalone

    console.show(*show_use.page_summary(standalone.page(artifact, beside, out, given)), json)


@app.command(rich_help_panel=USE)
def triton(
    artifact: Folder,
    out: Annotated[Path, typer.Option("--out", help="Model repository; other models in it stay.")],
    name: Annotated[str | None, typer.Option(help="Of the models; the folder's name if not given.")] = None,
    backend: Annotated[str | None, typer.Option(help="onnxruntime, openvino or tensorrt.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or int8; the smallest if not given.")] = None,
    target: Annotated[str | None, typer.Option(help="Of engines for several GPUs: sm86, say.")] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Largest batch of ONNX graphs; an engine has its own.")] = 32,
    json: Json = False,
) -> None:
    """Write a model repository for Triton: both towers and an ensemble. Clients send pixels and token ids."""
    from mmcompress.artifact import Artifact
    from mmcompress.cli import console, show_use
    from mmcompress.export.triton import Choice, write_repository

    choice = Choice(backend, precision, target, max_batch)
    console.show(*show_use.repository_summary(write_repository(Artifact.open(artifact), out, name, choice), out), json)


@app.command(rich_help_panel=USE)
def doctor(
    backend: Annotated[
        str | None, typer.Option(help="Also check what this one needs; exit 3 if it cannot run.")
    ] = None,
    json: Json = False,
) -> None:
    """Show what works on this machine, and what to install for what does not."""
    from mmcompress.cli import console, requirements, show_use
    from mmcompress.cli.doctor import diagnosis

    checks = None if backend is None else requirements.requirements(backend)
    console.show(*show_use.diagnosis_summary(diagnosis(), checks), json)
    requirements.enforce(checks or (), backend or "")


remote = typer.Typer(name="remote", no_args_is_help=True, context_settings=SETTINGS)
app.add_typer(remote, rich_help_panel=USE)
PASSING_ON = {**SETTINGS, "allow_extra_args": True, "ignore_unknown_options": True}
"""What is no option of ours is one of the command there."""
HostName = Annotated[str, typer.Argument(metavar="USER@HOST", help="As ssh knows it; give it first.")]
Ssh = Annotated[str, typer.Option("--ssh", help="The program, with options of its own: 'ssh -p 2222'.")]
CommandThere = Annotated[str, typer.Option("--command", help="mmcompress there: '~/venv/bin/mmcompress'.")]
Keep = Annotated[bool, typer.Option("--keep", help="Leave there what was sent and made, for the next command.")]


@remote.callback()
def remote_commands() -> None:
    """Run `doctor`, `build`, `bench` or `drift` on another machine, over ssh: `remote bench USER@HOST int8 --out b`."""


@remote.command("doctor", context_settings=PASSING_ON)
def remote_doctor(
    rest: typer.Context, host: HostName, client: Ssh = "ssh", command: CommandThere = "mmcompress", json: Json = False
) -> None:
    """Show what works there. Other options are those of `doctor`."""
    from mmcompress.pipeline import remote, ssh

    answer = remote.doctor(remote.There(host, client, command), [*rest.args, *(["--json"] if json else [])])
    print(answer.out, end="")
    ssh.check(answer, host)


def remote_stage(
    rest: typer.Context,
    host: HostName,
    out: Out,
    client: Ssh = "ssh",
    command: CommandThere = "mmcompress",
    keep: Keep = False,
    json: Json = False,
) -> None:
    """The command that was asked for, run there on what is sent."""
    from mmcompress.cli import console
    from mmcompress.pipeline import remote

    there = remote.There(host, client, command, keep)
    artifact = remote.run_stage(there, str(rest.info_name), rest.args, out)
    console.show(*console.artifact_summary(artifact), json)


for stage, does in {
    "build": "Send an ONNX artifact, build engines of it there, and bring them here with their passports.",
    "bench": "Send artifacts, measure their latency there, and bring the figures here.",
    "drift": "Send artifacts, measure accuracy and distances there, and bring the figures here.",
}.items():
    usage = (
        f"After USER@HOST come artifacts or packs, then options of `{stage}`; paths in those are of the machine there."
    )
    remote.command(stage, context_settings=PASSING_ON, help=f"{does}\n\n{usage}")(remote_stage)


data = typer.Typer(name="data", no_args_is_help=True, context_settings=SETTINGS)
app.add_typer(data, rich_help_panel=USE)


@data.callback()
def data_commands() -> None:
    """Make shards of image-text pairs, and look at them before anything learns from them."""


@data.command("index")
def data_index(
    spec: Annotated[str, typer.Argument(metavar="SHARDS", help="Shards, a pattern of them, or a folder.")],
    processes: Annotated[int, typer.Option(min=1, help="That read side by side.")] = 1,
    json: Json = False,
) -> None:
    """Read the shards that are new once, into the cache folder: samples, places, damage. Later passes read no headers.

    Whatever reads shards does so by itself; this does it beforehand.
    """
    from mmcompress.cli import console, show_data
    from mmcompress.data.indexing import index_data

    console.show(*show_data.data_summary(index_data(spec, processes)), json)


Shards = Annotated[str, typer.Argument(metavar="SHARDS", help="Shards, a pattern of them, or a folder; or other data.")]
AShard = Annotated[int, typer.Option("--samples-a-shard", min=1, help="The last shard has the rest.")]


@data.command("pack")
def data_pack(
    source: Annotated[
        Path, typer.Argument(metavar="DIR|TABLE", help="Images with captions beside them or by class; or .tsv, .csv.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of shards to write, whole or not at all.")],
    samples_a_shard: AShard = 10_000,
    max_bad_fraction: Annotated[
        float, typer.Option(min=0, max=1, callback=finite, help="Of items that cannot be read; more is an error.")
    ] = 0.05,
    json: Json = False,
) -> None:
    """Make WebDataset shards of loose images and captions: the same bytes every time, images unchanged."""
    from mmcompress.cli import console, show_data
    from mmcompress.data.packing import pack

    console.show(*show_data.shards_summary(pack(source, out, samples_a_shard, max_bad_fraction)), json)


@data.command("stats")
def data_stats(spec: Shards, json: Json = False) -> None:
    """Sizes, aspects, captions, scripts and damage of a data set, which is read once."""
    from mmcompress.cli import console, show_data
    from mmcompress.data.stats import stats

    console.show(*show_data.stats_summary(stats(spec)), json)


@data.command("dedupe")
def data_dedupe(
    spec: Shards,
    embeddings: Annotated[Path, typer.Option(help="Of this data by one teacher, as `embed` wrote them.")],
    out: Annotated[Path, typer.Option("--out", help="List to write, which `data filter --exclude` takes.")],
    threshold: Annotated[
        float, typer.Option(min=-1, max=1, callback=finite, help="Cosine from which images are nearly the same.")
    ] = 0.95,
    json: Json = False,
) -> None:
    """List images that are nearly the same, by a teacher's embeddings. Nothing is deleted."""
    from mmcompress.cli import console, show_data
    from mmcompress.compress.dedupe import dedupe

    console.show(*show_data.duplicates_summary(dedupe(spec, embeddings, out, threshold), out), json)


@data.command("filter")
def data_filter(
    spec: Shards,
    out: Annotated[Path, typer.Option("--out", help="Folder of new shards to write, whole or not at all.")],
    min_similarity: Annotated[
        float | None, typer.Option(min=-1, max=1, callback=finite, help="Least cosine of image and caption.")
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="Of this data by one teacher, for --min-similarity, as `embed` wrote them.")
    ] = None,
    exclude: Annotated[
        Path | None, typer.Option(help="List of samples to leave out, as `data dedupe` wrote it.")
    ] = None,
    samples_a_shard: AShard = 10_000,
    json: Json = False,
) -> None:
    """Write new shards of the pairs that fit by a teacher's own score, without those on a list."""
    from mmcompress.cli import console, show_data
    from mmcompress.compress.select import Wanted, select

    wanted = Wanted(min_similarity, embeddings, exclude)
    console.show(*show_data.shards_summary(select(spec, wanted, out, samples_a_shard)), json)


def main() -> NoReturn:
    # OpenMP's threads spin while they wait, which takes the processor from those that decode images. Read once, when
    # torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    never_failing()
    sys.exit(_told(_on_all_ranks))


def _told(run: Callable[[], int]) -> int:
    """Run; the exit code, an error printed."""
    try:
        return _written(run)
    except MMCompressError as error:
        print(f"error: {error.what}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _written(run: Callable[[], int]) -> int:
    """Run; what the system says of a disk becomes our error."""
    try:
        code = run()
        flushed()
        return code
    except OSError as error:
        if (told := disk_error(error)) is None:
            raise
        flushed()  # where it is stdout that is full, that is said
        raise told from error


def _on_all_ranks() -> int:
    """Of the processes that torchrun announces rank 0 runs the command, and the others follow it."""
    if (found := announced(os.environ)) is None:
        return _command()
    from mmcompress.pipeline.together import follow

    with joined(found) as here:
        return here.lead(lambda: _told(_command)) if here.leads else follow(here)


def _command() -> int:
    try:
        app(prog_name="mmcompress")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
