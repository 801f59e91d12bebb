"""Which files did some Python code read? What a cache of its results depends on, without asking its author.

Python reports every file that it opens to audit hooks (PEP 578). safetensors opens its files in native code, so its
function is replaced for the time, wherever it was imported to. Modules are found by what they added to `sys.modules`,
as a cached bytecode is all that is opened of them. What belongs to the Python environment does not count: its versions
are recorded in every manifest. Native readers of other libraries (TorchScript, ONNX Runtime) are not heard.
"""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_open_records: list[set[Path]] = []


@contextmanager
def recorded(found: set[Path]) -> Iterator[None]:
    """Add to `found` the absolute paths of the regular files outside of the environment that are read meanwhile."""
    import safetensors

    _listen()
    heard: set[Path] = set()
    before = set(sys.modules)
    native = safetensors.safe_open

    def heard_open(filename: Any, *args: Any, **kwargs: Any) -> Any:
        _note(filename)
        return native(filename, *args, **kwargs)

    _replace("safe_open", native, heard_open)
    _open_records.append(heard)
    try:
        yield
    finally:
        _open_records.remove(heard)
        _replace("safe_open", heard_open, native)
        heard = {path for path in heard if path.suffix not in (".py", ".pyc")}
        heard |= {Path(file).absolute() for name in set(sys.modules) - before if (file := _source(name)) is not None}
        found |= {path for path in heard if path.is_file() and not _in_environment(path)}


def _source(module: str) -> str | None:
    file = getattr(sys.modules[module], "__file__", None)
    return file if isinstance(file, str) and module.split(".")[0] != "mmcompress" else None


def _replace(name: str, old: Any, new: Any) -> None:
    for module in list(sys.modules.values()):
        space = getattr(module, "__dict__", {})
        if space.get(name) is old:
            space[name] = new


@functools.cache
def _listen() -> None:
    """Once: an audit hook can never be removed."""
    sys.addaudithook(_hear)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _open_records:
        path, _, flags = arguments
        if isinstance(path, str | bytes | os.PathLike) and not flags & (os.O_WRONLY | os.O_RDWR):
            _note(path)


def _note(path: str | bytes | os.PathLike[Any]) -> None:
    for record in _open_records:
        record.add(Path(os.fsdecode(path)).absolute())


@functools.cache
def _environment() -> tuple[Path, ...]:
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(Path(path).resolve() for path in (*paths, "/proc", "/sys", "/dev"))


def _in_environment(path: Path) -> bool:
    return any(path.resolve().is_relative_to(place) for place in _environment())
