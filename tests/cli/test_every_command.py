"""What signals, full disks and stop watches are tried on has every command, and words that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from every_command import NO_WORDS, WORDS

from mmcompress.cli.commands import app


def leaves(group: Any, above: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, f"{above}{name} ")
        else:
            yield f"{above}{name}"


def test_every_command_has_words() -> None:
    assert {*WORDS, *NO_WORDS} == {*leaves(typer.main.get_command(app))}


def test_what_writes_is_told_where() -> None:
    """Beside these all have `--out`."""
    silent = {name for name, words in WORDS.items() if not any("{out}" in word for word in words)}
    looking = {"compare", "check", "pointing", "classify", "search", "inspect", "doctor", "data index", "data stats"}
    assert silent == looking
