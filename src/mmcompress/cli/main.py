"""The program: the command that was asked for, on every rank, and what its end says.

Only `main` turns an `MMCompressError` into `error: …` and `hint: …` with its exit code. A bug keeps its traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import typer

from mmcompress.cli.commands import app
from mmcompress.cli.streams import flushed, never_failing
from mmcompress.errors import MMCompressError, UsageError, memory_error
from mmcompress.formats import printable
from mmcompress.interrupts import Interrupted, ended_by_signals
from mmcompress.places import disk_error
from mmcompress.ranks import announced, joined
from mmcompress.runtime.container import cpu_quota
from mmcompress.strictjson import is_unicode

CLICK_ERROR: Any = typer.BadParameter.__mro__[2]
"""click's ClickException, which typer has a copy of or imports, by its version."""

LONGEST = 5000
"""Characters of an error that are shown."""


def main() -> NoReturn:
    # OpenMP's threads spin while they wait, which takes the processor from those that decode images. Read once, when
    # torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if (quota := cpu_quota()) is not None:  # which OpenMP does not ask for
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, int(quota))))
    never_failing()
    sys.exit(_told(_on_all_ranks))


def _told(run: Callable[[], int]) -> int:
    """Run; the exit code, an error printed."""
    try:
        return _written(run)
    except (MMCompressError, KeyboardInterrupt) as told:
        error = told if isinstance(told, MMCompressError | Interrupted) else Interrupted(signal.SIGINT)
        print(printable(f"error: {_shortened(error.what)}"), file=sys.stderr)
        if error.hint:
            print(printable(f"hint: {error.hint}"), file=sys.stderr)
        return error.exit_code


def _shortened(text: str) -> str:
    """What a file holds may be quoted in an error, and be of any length."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 500]} … {text[-500:]}"


def _written(run: Callable[[], int]) -> int:
    """Run; what the system says of a disk, and of memory, becomes our error."""
    try:
        code = run()
        flushed()
        return code
    except (OSError, MemoryError, RuntimeError) as error:
        if (told := disk_error(error) if isinstance(error, OSError) else memory_error(error)) is None:
            raise
        if isinstance(error, OSError):
            flushed()  # where it is stdout that is full, that is said
        raise told from error


def _on_all_ranks() -> int:
    """Of the processes that torchrun announces rank 0 runs the command, and the others follow it."""
    if (found := announced(os.environ)) is None:
        return _command()
    from mmcompress.pipeline.together import follow

    with joined(found) as here:
        return here.lead(lambda: _told(_command)) if here.leads else follow(here)


def _shown_alive() -> AbstractContextManager[None]:
    """A sign of life, but where ssh may ask for a password on the same terminal."""
    name = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if name in ("", "remote"):
        return nullcontext()
    from mmcompress.alive import alive
    from mmcompress.progress import console

    return alive(console, name)


def _command() -> int:
    _check_unicode(sys.argv[1:])
    try:
        with ended_by_signals(), _shown_alive():
            sys.exit(app(prog_name="mmcompress", standalone_mode=False))
    except SystemExit as ended:
        return int(ended.code or 0)
    except typer.Abort:
        return 1
    except CLICK_ERROR as error:
        return _wrong_words(error)


def _check_unicode(words: Sequence[str]) -> None:
    for word in words:
        if not is_unicode(word):
            said = "rename that file or folder; the terminal and the files have to agree on UTF-8"
            raise UsageError(f"{word!r} on the command line has bytes that are no UTF-8", said)


def _wrong_words(error: Any) -> int:
    """What typer says of the words of a command, as an error of ours; of no words at all it has shown the help."""
    if not (what := " ".join(error.format_message().split())):
        return 2
    context = getattr(error, "ctx", None)
    name = "mmcompress" if context is None else context.command_path
    raise UsageError(f"{name}: {what.removesuffix('.')}", f"what it takes is said by: {name} --help") from error
