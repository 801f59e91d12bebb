"""What pages tell readers to type: every command and option is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from mmcompress.cli.commands import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    """The lines of a page's blocks that call mmcompress, those that go on in the next line as one."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [re.sub(r"\s+(# .*|…)$", "", line) for line in lines if line.startswith("mmcompress ")]


def parse(line: str) -> None:
    """As the command line does, without running it or looking at what it names."""
    program: Any = typer.main.get_command(app)
    words, context = shlex.split(line)[1:], typer.Context(program, info_name="mmcompress")
    name, command, rest = program.resolve_command(context, words)
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(typer.Context(command, info_name=name, parent=context), rest)
    inside = typer.Context(command, info_name=name, parent=context, **command.context_settings)
    command.make_parser(inside).parse_args(list(rest))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_one(page: Path) -> None:
    for line in commands(page):
        try:
            parse(line)
        except Exception as error:
            pytest.fail(f"{line}: {error}")


def test_the_pages_have_many() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 100


@pytest.mark.parametrize("line", ["mmcompress quantise x", "mmcompress quantize x --outt y", "mmcompress data pak x"])
def test_a_line_that_is_none_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such"):
        parse(line)
