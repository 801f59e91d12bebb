"""Tables in terminals that are too narrow for them: nothing is cut, and every part keeps the first column."""

from __future__ import annotations

import ast
import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

import mmcompress.cli
from mmcompress.artifact import Artifact
from mmcompress.cli import console
from mmcompress.cli.console import LINE, empty_table
from mmcompress.cli.show_use import manifest_view
from mmcompress.manifest import FileEntry, Kind
from mmcompress.strictjson import text_from_json

COLUMNS = ("row", ">parameters", ">MACs", ">size", ">R@10", "95%", ">top-1", ">cosine", ">batch 1", "on")
ROWS = [
    (f"row-{i}", f"{i},640,449", "322.9 M", "38.8 MB", "68.3%", "66–70", "34.0%", "1.0000", "4.97 ms", "x")
    for i in range(3)
]


def printed(
    width: int, columns: tuple[str, ...] = COLUMNS, rows: list[tuple[str, ...]] = ROWS, keys: int = 1
) -> list[str]:
    table = empty_table(*columns, keys=keys)
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


def tables() -> dict[str, tuple[tuple[str, ...], int]]:
    """Every table that a command prints, by where it is made: its headers and how many of them say which row it is.
    Headers that are not written in the code are `figure`."""
    found: dict[str, tuple[tuple[str, ...], int]] = {}
    for path in sorted(Path(mmcompress.cli.__file__).parent.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "empty_table":
                headers: list[str] = []
                for arg in call.args:
                    some = [">figure"] * 6 if isinstance(arg, ast.Starred) else [">figure"]
                    headers += [str(arg.value)] if isinstance(arg, ast.Constant) else some
                keys = next((k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)), 1)
                found[f"{path.stem}-{call.lineno}"] = (tuple(headers), int(str(keys)))
    return found


TABLES = tables()


def cell(column: int, header: str, row: int) -> str:
    """A figure with its unit, each another one, or a word as long as ours are."""
    words = ("recovered", "openvino-int8", "8", "significant", "noisy")
    return f"{column + 11}.{row + 10} ms" if header.startswith(">") else f"{words[min(column, 4)]}-{row}"


@pytest.mark.parametrize("width", [60, 80, 120, LINE])
@pytest.mark.parametrize("name", TABLES)
def test_every_table_keeps_its_rows_and_units(name: str, width: int) -> None:
    headers, keys = TABLES[name]
    rows = [tuple(cell(column, header, row) for column, header in enumerate(headers)) for row in range(3)]
    lines = printed(width, headers, rows, keys)
    assert max(map(len, lines)) <= width
    parts = [part.splitlines() for part in "\n".join(line.rstrip() for line in lines).split("\n\n")]
    for row in rows:
        for figure in row:
            assert any(figure in line for part in parts for line in part), f"{figure} is cut"
        for part in parts:
            own = part[1 + rows.index(row)]
            assert re.findall(r"\S+(?: ms)?", own)[:keys] == list(row[:keys]), "which row it is"


def test_every_table_is_one_of_those() -> None:
    assert len(TABLES) > 20
    for path in Path(mmcompress.cli.__file__).parent.parent.rglob("*.py"):
        if path != Path(console.__file__):
            assert "rich.table import" not in path.read_text(encoding="utf-8"), f"{path.name}: empty_table stacks"


def test_columns_that_say_which_row_it_is_leave_room_for_a_figure() -> None:
    rows = [("a" * 20, "b" * 20, "1 ms", "2 ms")]
    for width, with_both in ((46, 1), (50, 2)):
        lines = [line for line in printed(width, ("row", "on", ">p50", ">p99"), rows, 2) if line.startswith("a" * 20)]
        assert (len(lines), sum("b" * 20 in line for line in lines)) == (2, with_both)


def test_of_very_many_facts_the_first_are_shown(tmp_path: Path) -> None:
    with Artifact.create(tmp_path / "a", kind=Kind.CHECKPOINT, stage="distill", key="k", config={}) as draft:
        draft.facts = {f"fact{n}": n for n in range(1234)}
    out = io.StringIO()
    Console(file=out, width=100).print(manifest_view(Artifact.open(tmp_path / "a")))
    said = out.getvalue()
    assert "fact199" in said and "fact200" not in said
    assert "1,034 more, which --json has" in said


def test_of_very_many_parents_files_versions_and_keys_the_first_are_shown(tmp_path: Path) -> None:
    many = {f"one{n}": "a" for n in range(100_000)}
    with Artifact.create(tmp_path / "a", kind=Kind.CHECKPOINT, stage="distill", key="k", config=many, parents=many):
        pass
    made = Artifact.open(tmp_path / "a")
    files = {name: FileEntry(sha256="a", bytes=1) for name in many}
    body = made.manifest.model_copy(update={"environment": many, "files": files})
    out, began = io.StringIO(), time.process_time()
    Console(file=out, width=100).print(manifest_view(Artifact(made.path, body)))
    assert time.process_time() - began < 5 and len(out.getvalue()) < 100_000
    for what in ("parents", "versions", "files"):
        assert f"and of the {what} 99,800 more, which --json has" in out.getvalue()
    assert f"… ({len(text_from_json(many)):,} characters)" in out.getvalue()
