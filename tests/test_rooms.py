"""A package imports only from packages nearer the ground, inside functions too; devices never meet torch."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from check_wheel import SOURCES

from mmcompress.stages import STAGES

GROUND_UP = ("core", "data", "runtime", "export", "measure", "compress", "report", "pipeline", "cli")
"""`core` is what lies directly in `src/mmcompress`."""
WITH_TORCH = (
    "mmcompress.measure.verdict",
    "mmcompress.measure.explain.explain",
    "mmcompress.measure.explain.relevance",
)
"""What measures checkpoints, too."""
DATA_ONLY = {"demo", "recipes"}
NAMED = re.compile(r"^(mmcompress(?:\.\w+)+)(?::\w+)?$")
"""A string that names a module, or a function in one."""


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in SOURCES.items():
        for path in folder.rglob("*.py"):
            if not any(parent.is_symlink() for parent in path.parents):
                parts = (*package.split("/"), *path.relative_to(folder).with_suffix("").parts)
                yield ".".join(part for part in parts if part != "__init__"), path


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in {*GROUND_UP[1:], *DATA_ONLY} else "core"


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports anywhere, `from package import module` counted as that module.

    A name in a string counts too, as it may be imported by it; the table of stages names functions of every room.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert "mmcompress" not in [alias.name for alias in node.names], f"{path}:{node.lineno}: name what is meant"
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and path.name != "stages.py":
            yield from ((node.lineno, name) for name in NAMED.findall(node.value))


def test_no_import_points_upwards() -> None:
    upwards = [
        f"{path}:{line}: {room(module)} imports {name}"
        for module, path in modules()
        if room(module) not in DATA_ONLY and module != "mmcompress.__main__"
        for line, name in imported(path)
        if name.split(".")[0] == "mmcompress" and room(name) not in DATA_ONLY
        if GROUND_UP.index(room(name)) > GROUND_UP.index(room(module))
    ]
    assert upwards == []


def test_no_circle_within_a_room() -> None:
    """Nor is one hidden in a function: the graph of all imports has none."""
    known = dict(modules())
    edges = {
        module: {
            target
            for _, name in imported(path)
            for target in (name, name.rpartition(".")[0])
            if target in known and target not in ("mmcompress", module)
        }
        for module, path in known.items()
    }
    for target in edges.values():
        target -= {name for name in target if known[name].name == "__init__.py"}
    while ready := [module for module, targets in edges.items() if not targets & edges.keys()]:
        for module in ready:
            del edges[module]
    assert edges == {}


def test_the_runtime_never_imports_torch() -> None:
    found = [
        f"{path}:{line}: {name}"
        for module, path in modules()
        if room(module) in ("data", "runtime") or (room(module) == "measure" and not module.startswith(WITH_TORCH))
        for line, name in imported(path)
        if name.split(".")[0] in ("torch", "transformers", "safetensors")
    ]
    assert found == []


@pytest.mark.parametrize("name", ["build", "bench", "drift", "bisect", "report", "page"])
def test_a_stage_of_devices_starts_without_torch(name: str) -> None:
    """Its function and its check are imported, with all that they import."""
    places = {place.partition(":")[0] for place in (STAGES[name].run, STAGES[name].check) if place}
    code = "import sys, importlib\nsys.modules['torch'] = None\n"
    code += f"for name in {sorted(places)}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_package_is_found_where_its_room_is() -> None:
    for package, folder in SOURCES.items():
        spec = importlib.util.find_spec(package.replace("/", "."))
        assert spec is not None and spec.origin is not None
        assert Path(spec.origin).resolve() == folder / "__init__.py"
