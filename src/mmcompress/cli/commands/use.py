"""Commands that ask a model, look at it and hand it on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from mmcompress.cli.commands.app import (
    USE,
    Backend,
    Folder,
    Given,
    Json,
    Method,
    Out,
    Source,
    Trust,
    app,
    finite,
)
from mmcompress.cli.options import keyed


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
    opened.verify()
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
