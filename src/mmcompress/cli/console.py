"""What commands print on stdout: rich tables for people, or with `--json` one compact document on the last line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from mmcompress.alive import sign
from mmcompress.artifact import Artifact
from mmcompress.cli.streams import encodes
from mmcompress.document import Document
from mmcompress.formats import megabytes, printable
from mmcompress.strictjson import text_from_json

LINE = 120
_PROSE = 30
"""Columns that a cell of words gets at least before its line is broken."""
Summary = tuple[object, RenderableType]
"""What `--json` prints, and what people see."""


class _Printable:
    """A view whose texts, some of which others wrote, send nothing to the terminal but characters."""

    def __init__(self, view: RenderableType) -> None:
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._view, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def show(document: object, view: RenderableType, as_json: bool) -> None:
    """Print the document as JSON, or else its view."""
    if (alive := sign()) is not None:
        alive.end()
    if as_json:
        text = text_from_json(document, compact=True)
        print(text if encodes(text) else text_from_json(document, compact=True, ascii=True))
    else:
        out = Console(highlight=False, markup=False)
        if not out.is_terminal:
            out = Console(highlight=False, markup=False, width=LINE)
        out.print(_Printable(view), soft_wrap=isinstance(view, Text))


def artifact_summary(artifact: Artifact) -> Summary:
    """What a command made."""
    manifest = artifact.manifest
    size = megabytes(sum(entry.bytes for entry in manifest.files.values()))
    view = Text(f"{artifact.path}  {manifest.kind.value}, {size}, digest {artifact.digest[:12]}")
    return about(artifact), view


def about(artifact: Artifact, **documents: Document) -> dict[str, object]:
    """What `--json` prints of an artifact, with documents that it holds."""
    manifest = artifact.manifest
    return {
        "path": str(artifact.path),
        "kind": manifest.kind.value,
        "stage": manifest.stage,
        "digest": artifact.digest,
        "files": {name: entry.bytes for name, entry in manifest.files.items()},
        "facts": manifest.facts,
        "metrics": manifest.metrics,
        **{name: document.model_dump(mode="json", by_alias=True) for name, document in documents.items()},
    }


class _Stacked(Table):
    """A table that is too wide for the terminal as several, one above the other, each with the columns that say which
    row it is."""

    keys = 1
    """How many columns those are; fewer where they leave no room for another one."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        gap, cells = 2, [list(column.cells) for column in self.columns]
        texts = [[column.header, *own] for column, own in zip(self.columns, cells, strict=True)]
        widths = [max(min(console.measure(text).maximum, _PROSE) for text in own) + gap for own in texts]
        if sum(widths) - gap <= options.max_width or len(self.columns) < 3:
            yield from cast(Iterator[RenderableType], super().__rich_console__(console, options))
            return
        keys = self.keys
        while keys > 1 and sum(widths[:keys]) + max(widths[keys:]) - gap > options.max_width:
            keys -= 1
        groups: list[list[int]] = []
        for column in range(keys, len(self.columns)):
            used = sum(widths[one] for one in groups[-1]) if groups else options.max_width
            if used + widths[column] - gap > options.max_width:
                groups.append([*range(keys)])
            groups[-1].append(column)
        for number, group in enumerate(groups):
            part = Table(box=None, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0))
            for column in group:
                like = self.columns[column]
                part.add_column(like.header, justify=like.justify, no_wrap=like.no_wrap, overflow=like.overflow)
            for row in range(self.row_count):
                part.add_row(*(cells[column][row] for column in group))
            yield from ([Text("")] if number else [])
            yield part


def empty_table(*columns: str, keys: int = 1) -> Table:
    """Columns by their headers, those of figures with `>` in front; the first `keys` of them say which row it is."""
    table = _Stacked(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.lstrip(">"), justify="right" if right else "left", no_wrap=right, overflow="fold")
    table.keys = keys
    return table


def pairs(values: Mapping[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in values.items():
        table.add_row(key, Text(value))
    return table
