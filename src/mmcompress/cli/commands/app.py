"""The command line itself, and what several commands take."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mmcompress import __version__
from mmcompress.cli.completion import recipes, sources
from mmcompress.cli.options import SETTINGS, Commands

app = typer.Typer(
    cls=Commands,
    name="mmcompress",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)

Out = Annotated[Path, typer.Option("--out", help="Folder to write; what is there already and valid is reused.")]
Json = Annotated[bool, typer.Option("--json", help="Print one compact JSON document on the last line of stdout.")]
RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A .toml file, or a packaged recipe: demo.", autocompletion=recipes)
]
Source = Annotated[
    str,
    typer.Argument(
        metavar="ARTIFACT|TEACHER",
        help="Folder that an earlier command wrote, or a teacher, which is converted first.",
        autocompletion=sources,
    ),
]
Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="ARTIFACT|TEACHER…",
        help="In the order of the report; a teacher is exported first.",
        autocompletion=sources,
    ),
]
NoSources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[ARTIFACT|TEACHER…]",
        help="In the order of the report; a teacher is exported first.",
        autocompletion=sources,
    ),
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
