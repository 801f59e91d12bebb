"""Benchmarks are run by hand: here, that what they import of the product and of each other is there."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = sorted(BENCHMARKS.rglob("*.py"))


def imported(script: Path) -> Iterator[tuple[str, str]]:
    """Module and name of every `from … import …` that is ours."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            ours = node.module.split(".")[0] == "mmcompress" or (BENCHMARKS / f"{node.module}.py").is_file()
            yield from ((node.module, alias.name) for alias in node.names if ours)


def names_of(module: str) -> set[str]:
    """What a benchmark defines, without running it; what a module of the product has."""
    beside = BENCHMARKS / f"{module}.py"
    if not beside.is_file():
        return set(dir(importlib.import_module(module)))
    tree = ast.parse(beside.read_text(encoding="utf-8"))
    stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored | {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.relative_to(BENCHMARKS).as_posix())
def test_what_a_benchmark_imports_is_there(script: Path) -> None:
    for module, name in imported(script):
        assert name in names_of(module) or is_module(f"{module}.{name}"), f"{script.name}: {module} has no {name}"
