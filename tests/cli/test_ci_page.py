"""The pipelines of docs/ci.md are YAML, and every command in them has the options that it is given."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from mmcompress.cli.commands import app

yaml = pytest.importorskip("yaml")
PAGE = Path(__file__).parents[2] / "docs" / "ci.md"
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def commands(node: Any) -> list[str]:
    """Every string in a document that begins with our command."""
    if isinstance(node, str):
        return [node] if node.startswith("mmcompress ") else []
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [found for child in children for found in commands(child)]


def test_there_is_one_for_github_and_two_for_gitlab() -> None:
    documents = [yaml.safe_load(block) for block in BLOCKS]
    assert [list(document)[-1] for document in documents] == ["jobs", "engines", "gpu"]


@pytest.mark.parametrize("command", [found for block in BLOCKS for found in commands(yaml.safe_load(block))])
def test_every_option_is_there(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    group: Any = typer.main.get_command(app)
    context = group.make_context("mmcompress", [name, "-h"], resilient_parsing=True)
    _, known, _ = group.resolve_command(context, [name])
    options = {option for parameter in known.params for option in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= options
