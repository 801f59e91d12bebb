"""Which files did some Python code read? What a cache of its results depends on, without asking its author.

Python reports every file that it opens to audit hooks (PEP 578). Libraries that open files in native code do not: their
readers are heard by a function in their place for the time, and what is mapped into memory at the end is known to the
system. Modules are found by what they added to `sys.modules`, as a cached bytecode is all that is opened of them. What
belongs to the Python environment does not count: its versions are recorded in every manifest.

What another program reads is not heard. That one is started is, and which line did; processes of `multiprocessing` are
heard by a function in the place of their start, as some ways of starting one report nothing.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

from mmcompress.foreign import SHARED_MEMORY, in_environment, is_foreign, is_standard

_NATIVE = (
    "safetensors.safe_open",
    "torch.from_file",
    "torch.UntypedStorage.from_file",
    "torch._C.PyTorchFileReader.__init__",
    "torch._C.import_ir_module",
    "tokenizers.Tokenizer.from_file",
    "sentencepiece.SentencePieceProcessor.LoadFromFile",
    "onnxruntime.InferenceSession.__init__",
    "openvino.Core.read_model",
    "openvino.Core.compile_model",
    "h5py.File.__init__",
)
"""Readers of files in native code, as far as their packages are installed. They are given the path by the caller."""
_GRAPHS = (".onnx", ".xml")
"""Files that may keep weights in others beside them, whose names begin as theirs do."""
_WRITING = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
"""What is opened so is output; for reading and writing, as numpy maps files by default, it has to be there."""
_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn")
_PROCESS = "multiprocessing.process.BaseProcess.start"


@dataclass
class Record:
    """What some code read, and what it started."""

    files: set[Path] = field(default_factory=set)
    """Absolute paths of regular files outside of the Python environment."""
    programs: set[str] = field(default_factory=set)
    """Where another program was started by code that is no library's: `FILE, line N`."""


_recording: list[Record] = []


@contextmanager
def recorded(found: Record) -> Iterator[None]:
    """Add to `found` what is read and started meanwhile."""
    _listen()
    heard = Record()
    modules = set(sys.modules)
    with ExitStack() as replaced:
        for name in _NATIVE:
            _hear_calls(name, _note_paths, replaced)
        _hear_calls(_PROCESS, _note_start, replaced)
        before = _mapped() | _opened()  # by now, as the packages of the readers may keep files of their own open
        _recording.append(heard)
        try:
            yield
        finally:
            _recording.remove(heard)
            files = heard.files | (_mapped() - before) | _sources(set(sys.modules) - modules)
            files |= {
                path for graph in files if graph.suffix in _GRAPHS for path in graph.parent.glob(f"{graph.stem}*")
            }
            files -= _sources(name for name in sys.modules if name.split(".")[0] == "mmcompress")
            found.files |= {path for path in files if _counts(path)}
            found.programs |= heard.programs


def _sources(modules: Iterable[str]) -> set[Path]:
    files = (getattr(sys.modules[name], "__file__", None) for name in modules)
    return {Path(file).absolute() for file in files if isinstance(file, str)}


def _counts(path: Path) -> bool:
    """Whether it is a file, and neither bytecode nor of the environment."""
    try:
        return path.is_file() and path.suffix != ".pyc" and not in_environment(path)
    except OSError:  # a text that a reader took is no path at all
        return False


def _mapped() -> set[Path]:
    """The files that are mapped into memory, where the system tells them; programs and libraries left out.

    So is shared memory, and the index that SQLite keeps there of a database: both are gone with the process.
    """
    maps = Path("/proc/self/maps")
    lines = maps.read_text(errors="surrogateescape").splitlines() if maps.is_file() else []
    named = [(fields[1], Path(fields[5])) for line in lines if len(fields := line.split(maxsplit=5)) == 6]
    files = {path for _, path in named if path.is_absolute()} - {path for how, path in named if "x" in how}
    return {path for path in files if not path.is_relative_to(SHARED_MEMORY) and not path.name.endswith("-shm")}


def _opened() -> set[Path]:
    """The files and folders that the process holds open, where the system tells them."""
    found: set[Path] = set()
    with suppress(FileNotFoundError):
        for descriptor in Path("/proc/self/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                found.add(descriptor.readlink())
    return found


def _hear_calls(name: str, note: Callable[..., None], replaced: ExitStack) -> None:
    """Put a function that notes calls into another's place, wherever it was imported to, until the stack is left."""
    package, *path, last = name.split(".")
    if importlib.util.find_spec(package) is None:
        return
    try:
        owner = functools.reduce(getattr, path, importlib.import_module(package))
        native = getattr(owner, last)
    except (ImportError, OSError, AttributeError):  # broken, or of another version: it reads nothing then
        return

    def heard(*args: Any, **kwargs: Any) -> Any:
        note(*args, *kwargs.values())
        return native(*args, **kwargs)

    if not isinstance(owner, type):
        _replace(last, native, heard)
        replaced.callback(_replace, last, heard, native)
        return
    of_instances = last == "__init__" or isinstance(native, FunctionType)
    own = vars(owner).get(last)
    setattr(owner, last, heard if of_instances else staticmethod(heard))
    replaced.callback(delattr, owner, last) if own is None else replaced.callback(setattr, owner, last, own)


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
    if not _recording:
        return
    if event == "open":
        path, mode, flags = arguments
        is_path = isinstance(path, str | bytes | os.PathLike)
        if is_path and (not flags & _WRITING or _reads_and_appends(path, mode)):
            _note(path)
            if mode is None and not Path(os.fsdecode(path)).is_absolute():  # `os.open`, maybe below an open folder
                for folder in _opened():
                    _note(folder / os.fsdecode(path))
    elif event == "sqlite3.connect":
        _note(arguments[0])
    elif event in _PROGRAMS:
        _note_start()


def _reads_and_appends(path: Any, mode: str | None) -> bool:
    """Whether a file that is there is opened as `a+`: its content can be read."""
    return mode is not None and "a" in mode and "+" in mode and Path(os.fsdecode(path)).exists()


def _note_start(*_: Any) -> None:
    """Another program is being started by the caller's caller, or further up."""
    if (line := _own_line(sys._getframe(2))) is not None:
        for record in _recording:
            record.programs.add(line)


def _note_paths(*given: Any) -> None:
    for path in given:
        if isinstance(path, str | os.PathLike):  # bytes are the content itself
            _note(path)


def _own_line(frame: FrameType | None) -> str | None:
    """The line that called into Python's own library; None where an installed package did."""
    while frame is not None and is_standard(Path(frame.f_code.co_filename)):
        frame = frame.f_back
    if frame is None or not is_foreign(frame.f_code.co_filename, str(frame.f_globals.get("__name__"))):
        return None
    return f"{frame.f_code.co_filename}, line {frame.f_lineno}"


def _note(path: str | bytes | os.PathLike[Any]) -> None:
    for record in _recording:
        record.files.add(Path(os.fsdecode(path)).absolute())
