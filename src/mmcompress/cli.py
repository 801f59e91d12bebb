"""The command line. Each command parses, calls one function and prints; heavy imports stay inside the commands.

Only `main` turns an `MMCompressError` into `error: …` and `hint: …` with its exit code. A bug keeps its traceback.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer

from mmcompress import __version__
from mmcompress.errors import MMCompressError

app = typer.Typer(
    name="mmcompress",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[Path, typer.Option("--out", help="Folder to write; what is there already and valid is reused.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: prune.mlp=0.4.")]
Json = Annotated[bool, typer.Option("--json", help="Print one compact JSON document on the last line of stdout.")]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A .toml file, or a packaged recipe: demo.")]
Folder = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder that an earlier command wrote.")]
Folders = Annotated[list[Path], typer.Argument(metavar="ARTIFACT…", help="ONNX artifacts, in the order of the report.")]
Teacher = Annotated[
    str | None, typer.Option(help="vit-l14 or another alias, a hub id, a Hugging Face folder, or file.py:function.")
]
Data = Annotated[
    str | None, typer.Option(help="WebDataset shards ('d/{00..09}.tar'), a folder, a stream, or demo:train.")
]
Backend = Annotated[
    str | None, typer.Option(help="openvino, onnxruntime, tensorrt or tensorrt-rtx; the first that works if not given.")
]
MaxDrop = Annotated[float | None, typer.Option(help="Share of R@10 hits that INT8 may lose: 0.005.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 where INT8 is not recommended.")]
Embeddings = Annotated[Path | None, typer.Option(help="The teacher's cached embeddings, as `embed` wrote them.")]
LIMIT = "METRIC=NUMBER"
MODEL, MEASURE, USE = "Compress", "Measure", "Use and look"


def print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", is_eager=True, callback=print_version, help="Print the version.")]


@app.callback()
def options(version: Version = False) -> None:
    """From a large CLIP teacher to a small INT8 engine, with a report of what each step cost and bought."""


@app.command(rich_help_panel=MODEL)
def run(recipe: RecipeName, out: Out, set_: Set = None, json: Json = False) -> None:
    """Run a recipe: every stage whose output is not there yet. `run demo` needs no data and no GPU."""
    from mmcompress import console, standalone

    artifacts = standalone.run(recipe, out, set_ or ())
    console.show(*console.run_summary(artifacts), json)


@app.command(rich_help_panel=MODEL)
def train(recipe: RecipeName, out: Out, set_: Set = None, json: Json = False) -> None:
    """Train a dual encoder from image-text pairs: a teacher of one's own."""
    from mmcompress import console, standalone

    console.show(*console.artifact_summary(standalone.train(recipe, out, set_ or ())), json)


@app.command(rich_help_panel=MODEL)
def embed(
    teacher: Annotated[str, typer.Option(help="Alias, hub id, folder, or file.py:function.")],
    data: Annotated[str, typer.Option(help="Shards, folder, stream, or demo:train.")],
    out: Out,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Embed the training pairs with the teacher, once."""
    from mmcompress import console, standalone

    console.show(*console.artifact_summary(standalone.embed(teacher, data, out, set_ or ())), json)


@app.command(rich_help_panel=MODEL)
def distill(
    out: Out,
    teacher: Teacher = None,
    student: Annotated[str | None, typer.Option(help="A preset (vit-s16), or inherit:0.25 of a CLIP teacher.")] = None,
    data: Data = None,
    embeddings: Embeddings = None,
    checkpoint: Annotated[Path | None, typer.Option("--from", help="Checkpoint to recover, after pruning say.")] = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Distill a student from a teacher, or recover a pruned one. Embeds the teacher into OUT-embeddings first."""
    from mmcompress import console, standalone

    chosen = {"teacher": teacher, "student": student, "data": data}
    made = standalone.distill(out, **chosen, embeddings=embeddings, checkpoint=checkpoint, overrides=set_ or ())
    console.show(*console.artifact_summary(made), json)


@app.command(rich_help_panel=MODEL)
def prune(
    artifact: Folder,
    out: Out,
    teacher: Teacher = None,
    data: Data = None,
    embeddings: Embeddings = None,
    target_latency: Annotated[str | None, typer.Option(help="0.5x of the image tower's latency, measured.")] = None,
    target_macs: Annotated[str | None, typer.Option(help="0.5x of each tower's MACs.")] = None,
    target_params: Annotated[str | None, typer.Option(help="0.5x of each tower's parameters.")] = None,
    backend: Annotated[str | None, typer.Option(help="The runtime of --target-latency; openvino if not given.")] = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Remove heads, MLP units and blocks. Teacher and data are those that the checkpoint was distilled with."""
    from mmcompress import console, standalone

    targets = {"target_latency": target_latency, "target_macs": target_macs, "target_params": target_params}
    given = {"teacher": teacher, "data": data, "backend": backend}
    made = standalone.prune(artifact, out, **given, embeddings=embeddings, targets=targets, overrides=set_ or ())
    console.show(*console.prune_summary(made), json)


@app.command(rich_help_panel=MODEL)
def quantize(
    artifact: Folder,
    out: Out,
    data: Data = None,
    max_drop: MaxDrop = None,
    ranges: Annotated[Path | None, typer.Option(help="A quantized checkpoint whose ranges to reuse.")] = None,
    backend: Annotated[str | None, typer.Option(help="Give the verdict on this runtime too, into OUT-verdict.")] = None,
    strict: Strict = False,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Fit INT8 to a checkpoint, from real samples; what would lose too much stays in float."""
    from mmcompress import console, standalone
    from mmcompress.export import ruling

    made = standalone.quantize(artifact, out, data=data, max_drop=max_drop, ranges=ranges, overrides=set_ or ())
    judged = standalone.verdict_beside(made, backend) if backend or strict else None
    console.show(*console.quantize_summary(made, judged), json)
    ruling.enforce(judged, strict)


@app.command(rich_help_panel=MODEL)
def verdict(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="As `quantize` wrote it.")],
    out: Out,
    backend: Backend = None,
    data: Annotated[str | None, typer.Option(help="Pairs to measure drift on, no test set; demo:val, say.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images a call; 1 if not given.")] = None,
    max_drop: MaxDrop = None,
    strict: Strict = False,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Measure FP32, FP16 and INT8 on a backend, choose the fastest INT8 graph, and say which file to ship."""
    from mmcompress import console, standalone
    from mmcompress.export import ruling

    given = {"backend": backend, "data": data, "batch": batch, "max_drop": max_drop}
    made = standalone.verdict(checkpoint, out, **cast(Any, given), overrides=set_ or ())
    console.show(*console.verdict_summary(made), json)
    ruling.enforce(made, strict)


@app.command(rich_help_panel=MODEL)
def qat(
    artifact: Folder,
    out: Out,
    data: Data = None,
    max_drop: Annotated[float | None, typer.Option(help="Share of R@10 hits that INT8 may lose untrained.")] = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Train the integers of a quantized checkpoint towards its float weights, where INT8 loses more than it may."""
    from mmcompress import console, standalone

    made = standalone.qat(artifact, out, data=data, max_drop=max_drop, overrides=set_ or ())
    console.show(*console.qat_summary(made), json)


@app.command(rich_help_panel=MODEL)
def export(
    source: Annotated[str, typer.Argument(metavar="ARTIFACT|TEACHER", help="A checkpoint, or an unmodified teacher.")],
    out: Out,
    precision: Annotated[list[str] | None, typer.Option(help="fp32, fp16 or int8; may be repeated.")] = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Write ONNX, one graph a tower. A quantized checkpoint becomes INT8 Q/DQ, a teacher goes through optimum."""
    from mmcompress import console, standalone

    console.show(*console.artifact_summary(standalone.export(source, out, precision or (), set_ or ())), json)


@app.command(rich_help_panel=MODEL)
def build(
    artifact: Folder,
    out: Out,
    target: Annotated[list[str] | None, typer.Option(help="sm86, sm89, sm120 or native; may be repeated.")] = None,
    backend: Annotated[str | None, typer.Option(help="tensorrt-rtx (needs no GPU to build) or tensorrt.")] = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Build TensorRT engines from an ONNX artifact, with an audit of layers and precisions."""
    from mmcompress import console, standalone

    made = standalone.build(artifact, out, target or (), backend, set_ or ())
    console.show(*console.artifact_summary(made), json)


@app.command(rich_help_panel=MEASURE)
def bench(artifacts: Folders, out: Out, set_: Set = None, json: Json = False) -> None:
    """Latency of ONNX artifacts, interleaved in one run."""
    from mmcompress import console, standalone

    console.show(*console.bench_summary(standalone.bench(artifacts, out, set_ or ())), json)


@app.command(rich_help_panel=MEASURE)
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="ONNX, an engine, a bench, a report.json or an INT8 fit.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="What to compare with it, of the same kind.")],
    backend: Backend = None,
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or int8; the smallest if not given.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images a call.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Of a CPU runtime; all cores if not given.")] = None,
    seconds: Annotated[float, typer.Option(min=2, help="Longest measured time of each side.")] = 30,
    pin: Annotated[str | None, typer.Option(metavar="CORES", help="Cores to stay on: 0,1.")] = None,
    json: Json = False,
) -> None:
    """Say whether B is faster than A, by how much, and whether that is more than noise.

    Of two quantized checkpoints: where their calibrations differ.
    """
    from mmcompress import console, standalone

    asked = {"backend": backend, "precision": precision, "batch": batch, "threads": threads, "seconds": seconds}
    console.show(*console.comparison_summary(standalone.compare(a, b, asked, pin)), json)


@app.command(rich_help_panel=MEASURE)
def drift(
    artifacts: Folders,
    data: Annotated[str, typer.Option(help="Test set: shards, a folder (also by class), stream, or demo:test.")],
    out: Out,
    labels: Annotated[str | None, typer.Option(help="Text file, one candidate a line.")] = None,
    templates: Annotated[str | None, typer.Option(help="Text file, one prompt around {c} a line.")] = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Accuracy of ONNX artifacts on a test set, and their distance from the first one and from the one before."""
    from mmcompress import console, standalone

    made = standalone.drift(artifacts, out, data, labels, templates, set_ or ())
    console.show(*console.drift_summary(made), json)


@app.command(rich_help_panel=MEASURE)
def bisect(
    reference: Annotated[Path, typer.Argument(metavar="FP32", help="The FP32 export of a checkpoint.")],
    candidate: Annotated[Path, typer.Argument(metavar="CANDIDATE", help="Its INT8 or FP16 export.")],
    data: Annotated[str, typer.Option(help="Pairs to run both on: shards, folder, stream, or demo:val.")],
    out: Out,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Find the modules in which a quantized model leaves its FP32 reference, and which to keep in higher precision."""
    from mmcompress import console, standalone

    console.show(*console.bisect_summary(standalone.bisect(reference, candidate, out, data, set_ or ())), json)


@app.command(rich_help_panel=MEASURE)
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="A run folder, or artifacts to join.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; DIR/report if not given.")] = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Join measurements into report.html, report.md and report.json."""
    from mmcompress import console, standalone

    console.show(*console.report_summary(standalone.report(folders, out, set_ or ())), json)


@app.command(rich_help_panel=MEASURE)
def check(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="report.json, or the folder with it.")],
    max_drop: Annotated[list[str] | None, typer.Option(metavar=LIMIT, help="Largest loss: i2t_r10=0.01.")] = None,
    max_: Annotated[list[str] | None, typer.Option("--max", metavar=LIMIT, help="Upper limit: p99_ms=5.")] = None,
    min_: Annotated[list[str] | None, typer.Option("--min", metavar=LIMIT, help="Lower limit: top1=0.6.")] = None,
    min_speedup: Annotated[float | None, typer.Option(help="Smallest ratio of median latencies.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="Report that changes are against; else the first row.")] = None,
    row: Annotated[str | None, typer.Option(help="Row to check; the last one if not given.")] = None,
    backend: Annotated[str | None, typer.Option(help="Of latency gates; the fastest if not given.")] = None,
    batch: Annotated[int, typer.Option(help="Batch size of latency gates.")] = 1,
    strict: Annotated[bool, typer.Option("--strict", help="Let changes that are not significant fail too.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Also write the verdicts as JUnit XML.")] = None,
    json: Json = False,
) -> None:
    """Hold a report against limits: exit 1 with a table if one is missed. Without limits, against its recipe's."""
    from mmcompress import console
    from mmcompress.report import checking

    chosen = {"row": row, "backend": backend, "batch": batch, "strict": strict, "min_speedup": min_speedup}
    limits = {"max_drop": max_drop, "max": max_, "min": min_}
    verdicts = checking.check(report, {**chosen, **checking.parsed(limits)}, baseline, junit)
    console.show(*console.verdicts_summary(verdicts), json)
    checking.enforce(verdicts)


@app.command(rich_help_panel=USE)
def classify(
    artifact: Folder,
    image: Annotated[Path, typer.Argument(metavar="IMAGE")],
    labels: Annotated[str, typer.Option(help="Separated by commas: cat,dog.")],
    template: Annotated[str, typer.Option(help="Sentence around a label.")] = "{}",
    backend: Backend = None,
    json: Json = False,
) -> None:
    """Say which of some labels fits an image, in percent."""
    from mmcompress import console
    from mmcompress.runtime import encoder

    names = [label.strip() for label in labels.split(",") if label.strip()]
    with encoder.Encoder.open(artifact, cast(Any, backend)) as opened:
        console.show(*console.shares_summary(encoder.classify(opened, image, names, template)), json)


@app.command(rich_help_panel=USE)
def search(
    artifact: Folder,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to look for, in a language the model knows.")],
    images: Annotated[Path, typer.Option(help="Folder of images.")],
    top: Annotated[int, typer.Option(help="How many to show.")] = 5,
    backend: Backend = None,
    json: Json = False,
) -> None:
    """Find the images in a folder that fit a text best."""
    from mmcompress import console
    from mmcompress.runtime import encoder

    with encoder.Encoder.open(artifact, cast(Any, backend)) as opened:
        console.show(*console.matches_summary(encoder.search(opened, images, text, top)), json)


@app.command(rich_help_panel=USE)
def inspect(artifact: Folder, json: Json = False) -> None:
    """Show what an artifact says of itself, after verifying every byte of it."""
    from mmcompress import console
    from mmcompress.artifact import Artifact

    found = Artifact.open(artifact)
    console.show(found.manifest.model_dump(mode="json", by_alias=True), console.manifest_view(found), json)


@app.command(rich_help_panel=USE)
def doctor(json: Json = False) -> None:
    """Show what works on this machine, and what to install for what does not."""
    from mmcompress import console
    from mmcompress.doctor import diagnosis

    found = diagnosis()
    console.show(found, console.diagnosis_view(found), json)


def main() -> NoReturn:
    # OpenMP's threads spin while they wait, which takes the processor from those that decode images. Read once, when
    # torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app(prog_name="mmcompress")
    except MMCompressError as error:
        print(f"error: {error.what}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
