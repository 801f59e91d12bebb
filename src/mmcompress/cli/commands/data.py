"""Commands on image-text pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmcompress.cli.commands.app import (
    USE,
    Json,
    app,
    finite,
)
from mmcompress.cli.options import SETTINGS

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
        str,
        typer.Argument(
            metavar="DIR|TABLE",
            help="Images with captions beside them or by class; or .tsv, .csv, .parquet. Other columns than image and "
            "caption: keys:IMAGE/CAPTION:TABLE.",
        ),
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
