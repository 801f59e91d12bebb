"""Commands from a teacher to what a device runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmcompress.cli.commands.app import (
    MODEL,
    Backend,
    Embeddings,
    Given,
    Json,
    Out,
    RecipeName,
    Source,
    app,
    finite,
)
from mmcompress.cli.options import Set, keyed
from mmcompress.errors import UsageError


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
    target_latency: Annotated[
        str | None, typer.Option(metavar="TIME", help="Choose the student: the best that takes so long an image, 3ms.")
    ] = None,
    backend: Backend = None,
    latency_table: Annotated[
        Path | None, typer.Option(help="Costs of another machine, of `bench --blocks` there; else of this one.")
    ] = None,
    json: Json = False,
) -> None:
    """Distill a student from a teacher, or recover a pruned one. Embeds the teacher into OUT-embeddings first."""
    from mmcompress.cli import console
    from mmcompress.pipeline import standalone

    if pilot is not None:
        return _try_teachers(pilot, budget or "10m", out, given, embeddings or checkpoint, json)
    if budget is not None:
        raise UsageError("--budget is a pilot's", "give --pilot A,B, or leave --budget out; optimizer.steps ends a run")
    sized = standalone.Budget(target_latency, backend, latency_table)
    student = standalone.distill(out, given, embeddings=embeddings, checkpoint=checkpoint, budget=sized)
    console.show(*console.artifact_summary(student), json)


@keyed(app, MODEL, "size")
def size(
    out: Out,
    given: Given,
    latency_table: Annotated[
        Path | None, typer.Option(help="Costs of another machine, of `bench --blocks` there; else of this one.")
    ] = None,
    json: Json = False,
) -> None:
    """Say which student has the most capacity within a latency; `distill --target-latency` begins with that."""
    from mmcompress.cli import console, show_compress
    from mmcompress.pipeline import standalone

    console.show(*show_compress.sizing_summary(standalone.size(out, given, latency_table)), json)


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
