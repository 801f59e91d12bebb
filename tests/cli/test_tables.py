"""Tables in terminals that are too narrow for them: nothing is cut, and every part keeps the first column."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mmcompress.cli.console import empty_table

COLUMNS = ("row", ">parameters", ">MACs", ">size", ">R@10", "95%", ">top-1", ">cosine", ">batch 1", "on")
ROWS = [
    (f"row-{i}", f"{i},640,449", "322.9 M", "38.8 MB", "68.3%", "66–70", "34.0%", "1.0000", "4.97 ms", "x")
    for i in range(3)
]


def printed(width: int, columns: tuple[str, ...] = COLUMNS, rows: list[tuple[str, ...]] = ROWS) -> list[str]:
    table = empty_table(*columns)
    for row in rows:
        table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, markup=False).print(table)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_every_figure_is_there_beside_the_name_of_its_row(width: int) -> None:
    lines = printed(width)
    assert max(map(len, lines)) <= width
    headers = [line.split() for line in lines if line.startswith("row ")]
    assert {name for line in headers for name in line} >= {*" ".join(c.lstrip(">") for c in COLUMNS).split()}
    for row in ROWS:
        own = [line for line in lines if line.startswith(row[0])]
        assert len(own) == len(headers)
        assert " ".join(" ".join(own).split()).replace(f" {row[0]}", "") == " ".join(row)


def test_a_table_that_fits_stays_one() -> None:
    assert len(printed(120)) == 4 and len(printed(60)) > 5


def test_prose_is_broken_and_does_not_split_a_table() -> None:
    lines = printed(60, ("backend", "", "why not"), [("tensorrt", "no", "this needs a package " * 5)])
    assert lines[0].split() == ["backend", "why", "not"] and len(lines) > 3 and "" not in lines
