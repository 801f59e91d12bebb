"""What a user sees while stages run: one line a stage, and a bar with rate and time left for long loops.

Everything goes to stderr, so that `--json` keeps stdout to itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmcompress.alive import LOG_SECONDS, sign
from mmcompress.formats import printable

T = TypeVar("T")
RUNNING = "running"
console = Console(stderr=True, highlight=False)


def say(stage: str, name: str, text: str, turn: str = "") -> None:
    """One line: the stage, the artifact, what happened, and of several stages which one it is: `stage 3 of 9`."""
    label = stage if stage == name or not stage else f"{stage} ({name})"
    told = f"{text}, {turn}" if turn else text
    console.print(f"[bold]{escape(printable(f'{label or name:<22}'))}[/bold] {escape(printable(told))}")
    if (alive := sign()) is not None:
        alive.runs(f"{turn}: {label}" if turn else label) if text == RUNNING else alive.spoke()


Told = Callable[[], str]
"""What to show beside a count, asked for only when it is shown."""


def track(items: Iterable[T], what: str, total: int | None, start: int = 0) -> Iterator[T]:
    """Yield the items, showing rate and time left: a bar on a terminal, a line every half minute in a log."""
    began = time.monotonic()
    with counted(what, total, start) as count:
        for done, item in enumerate(items, 1):
            yield item
            count(partial(_rate, done, began))


def _rate(done: int, began: float) -> str:
    seconds = time.monotonic() - began
    return f"{done / seconds:.2f}/s" if seconds > 0 else ""


@contextmanager
def counted(what: str, total: int | None, start: int = 0, *, quiet: bool = False) -> Iterator[Callable[[Told], None]]:
    """Give a function to call after each item, which shows the count and what it is given: as `track` does."""
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[told]}"),
    )
    began = logged = time.monotonic()
    done = start
    in_log = not quiet and not console.is_terminal
    alive = sign()
    drawing = alive.paused() if alive is not None and not (quiet or in_log) else nullcontext()
    with drawing, Progress(*columns, console=console, transient=True, disable=quiet or in_log) as bar:
        task = bar.add_task(what, total=total, completed=start, told="")

        def count(told: Told) -> None:
            nonlocal done, logged
            done += 1
            now = time.monotonic()
            if not (quiet or in_log):
                bar.update(task, advance=1, told=told())
            elif in_log and now - logged > LOG_SECONDS:
                left = f", {(total - done) * (now - began) / (done - start):.0f} s left" if total else ""
                console.print(f"  {what}: {done}{f' of {total}' if total else ''}, {told()}{left}", markup=False)
                logged = now
                if alive is not None:
                    alive.spoke()

        yield count
