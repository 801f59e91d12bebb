"""Teachers of one's own: `file.py:function`, a function without arguments that returns a `Teacher`.

The file is run as a script would be: its folder stands first on the import path, so it may import what lies beside it.
That holds while its code runs and no longer, so that its `model.py` is not what the next file imports. The file is
named on the command line, and is trusted as the command line is.

What it reads is recorded, since a cache of its answers must not outlive a change of its weights (`recording.py`). Files
of weights that lie right beside it count too, read or not, and `Teacher(files=…)` declares what else there is. It has
to where the code starts another program, whose reading nobody hears.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

from mmcompress.compress.contract import Teacher, check_form, check_towers
from mmcompress.compress.recording import Record, recorded
from mmcompress.compress.towers import Towers
from mmcompress.errors import UsageError, suggestion
from mmcompress.foreign import foreign_code, in_environment
from mmcompress.home import expanded

P = ParamSpec("P")
T = TypeVar("T")
EXAMPLE = "give --teacher path/to/file.py:function"
CONTRACT = "docs/teachers.md says what a teacher has to give"
WEIGHTS = (".bin", ".ckpt", ".h5", ".npy", ".npz", ".onnx", ".pkl", ".pt", ".pth", ".safetensors")


def check_own(file: Path, function: str) -> None:
    """Raise UsageError for a file that is absent or no Python, or names no such function. Nothing in it is run."""
    if not file.is_file():
        raise UsageError(f"there is no Python file {file}", EXAMPLE)
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{file} is no Python: {error}", EXAMPLE) from error
    named: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            named.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            named.add(node.id)
        elif isinstance(node, ast.alias):
            named.add(node.asname or node.name)
    if function not in named and "*" not in named:
        raise UsageError(f"{file} has no function {function!r}", suggestion(function, named))


def check_has_towers(file: Path, function: str) -> None:
    """Raise UsageError for a function that makes a Teacher in a file without a word of towers, which graphs need."""
    source = file.read_text(encoding="utf-8", errors="replace")
    if "towers" in source:
        return
    named = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == function)
    calls = [node for body in named for node in ast.walk(body) if isinstance(node, ast.Call)]
    teachers = [call for call in calls if ast.unparse(call.func).rpartition(".")[2] == Teacher.__name__]
    handed_on = any(isinstance(given, ast.Starred) for call in teachers for given in call.args)
    if teachers and not handed_on and all(word.arg for call in teachers for word in call.keywords):
        raise without_towers(f"{file}:{function}")


def without_towers(source: str) -> UsageError:
    return UsageError(
        f"the teacher {source!r} offers functions only, and a graph is traced from torch modules",
        "give its Teacher `towers`, a function that returns mmcompress.compress.towers.Towers",
    )


def own_teacher(file: Path, function: str) -> tuple[Teacher, OwnCode]:
    """Run the file and its function. The teacher's own code runs as `code.running` says at every call."""
    check_own(file, function)
    code = OwnCode(file.absolute())
    with code.running():
        build = getattr(code.module(), function, None)
        if not callable(build):
            functions = [name for name, value in vars(code.module()).items() if callable(value)]
            raise UsageError(f"{file} has no function {function!r}", suggestion(function, functions))
        teacher: Any = build()
        if not isinstance(teacher, Teacher):
            raise UsageError(
                f"{file}:{function} returned {type(teacher).__name__}",
                "it must return a mmcompress.compress.teacher.Teacher",
            )
        check_form(teacher, f"{file}:{function}")
        code.declare(teacher.files)
    image, text = code.wrapped(teacher.encode_image), code.wrapped(teacher.encode_text)
    towers = None if teacher.towers is None else partial(_own_towers, code, teacher.towers, f"{file}:{function}")
    return replace(teacher, encode_image=image, encode_text=text, towers=towers), code


def _own_towers(code: OwnCode, build: Callable[[], Any], source: str) -> Towers:
    """What the teacher's `towers` returns, with all that was read for them."""
    code.recording = True
    with code.running():
        towers: Any = build()
        check_towers(towers, source)
        code.declare(towers.files)
    made: Towers = replace(towers, files=code.finished(), running=code.running)
    return made


@dataclass
class OwnCode:
    """The code of one file: the modules that it brought from outside of the Python environment, and what it read."""

    file: Path
    modules: dict[str, ModuleType] = field(default_factory=dict)
    read: Record = field(default_factory=Record)
    declared: set[Path] = field(default_factory=set)
    recording: bool = True
    """Until the teacher has answered for the first time."""

    def module(self) -> ModuleType:
        """The file's own module, run when it is first asked for."""
        name = self.file.stem
        if name not in self.modules:
            spec = importlib.util.spec_from_file_location(name, self.file)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            self.modules[name] = sys.modules[name] = module  # dataclasses and pickles look there
            spec.loader.exec_module(module)
        return self.modules[name]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Import from the file's folder, record what is read, and put the user's exceptions into our words.

        The modules that it brings are its own: another teacher that shares them runs and reads them again. The working
        directory is ours again afterwards.
        """
        here = Path.cwd()
        aside = {name: sys.modules[name] for name in (*self.modules, self.file.stem) if name in sys.modules}
        sys.modules.update(self.modules)
        sys.path.insert(0, str(self.file.parent))
        before = set(sys.modules)
        try:
            listening = recorded(self.read) if self.recording else nullcontext()
            with foreign_code("the teacher's own code", CONTRACT, file=str(self.file)), listening:
                yield
        finally:
            with suppress(ValueError):  # the code may have changed the path itself
                sys.path.remove(str(self.file.parent))
            self.modules |= {name: sys.modules[name] for name in set(sys.modules) - before if self._is_own(name)}
            for name in self.modules:
                sys.modules.pop(name, None)
            sys.modules.update(aside)
            os.chdir(here)

    def wrapped(self, function: Callable[P, T]) -> Callable[P, T]:
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.running():
                return function(*args, **kwargs)

        return call

    def declare(self, files: Sequence[str | Path]) -> None:
        """Take over what the teacher says that it was read from."""
        self.declared |= {expanded(name).absolute() for name in files}

    def finished(self) -> tuple[Path, ...]:
        """Stop recording. What a cache of the answers depends on, in order.

        Raises UsageError where a part of that cannot be known: another program was started, and no file is declared.
        """
        self.recording = False
        if self.read.programs and not self.declared:
            raise UsageError(
                f"the teacher's own code starts another program in {min(self.read.programs)}, and what that reads is "
                "not known, so a change of it would go unnoticed",
                "name what it reads in Teacher(…, files=(Path(…),)), and the program itself where that is all",
            )
        beside = {path for path in self.file.parent.iterdir() if path.suffix in WEIGHTS and path.is_file()}
        return tuple(sorted({self.file, *self.read.files, *self.declared, *beside}))

    def _is_own(self, name: str) -> bool:
        """Whether a module lies beside the file, or is neither ours nor of the Python environment."""
        module = sys.modules[name]
        file = getattr(module, "__file__", None)
        places = [Path(place) for place in ([file] if isinstance(file, str) else getattr(module, "__path__", ()))]
        outside = name.split(".")[0] != "mmcompress" and any(not in_environment(place) for place in places)
        return outside or any(place.absolute().is_relative_to(self.file.parent) for place in places)
