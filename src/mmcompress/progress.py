"""What a user sees while stages run: one line a stage, and a bar with rate and time left for long loops.

Everything goes to stderr, so that `--json` keeps stdout to itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
LOG_SECONDS = 30.0
console = Console(stderr=True, highlight=False)


def say(stage: str, name: str, text: str) -> None:
    """One line: the stage, the artifact, what happened."""
    label = stage if stage == name or not stage else f"{stage} ({name})"
    console.print(f"[bold]{escape(f'{label or name:<22}')}[/bold] {escape(text)}")


def track(items: Iterable[T], what: str, total: int | None, start: int = 0) -> Iterator[T]:
    """Yield the items, showing rate and time left: a bar on a terminal, a line every half minute in a log."""
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    began = logged = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, completed=start, rate="")
        for done, item in enumerate(items, 1):
            yield item
            now = time.monotonic()
            rate = done / (now - began) if now > began else 0.0
            bar.update(task, advance=1, rate=f"{rate:.1f}/s")
            if not console.is_terminal and now - logged > LOG_SECONDS:
                left = f", {(total - start - done) / rate:.0f} s left" if total and rate else ""
                console.print(f"  {what}: {start + done}{f' of {total}' if total else ''}, {rate:.2f}/s{left}")
                logged = now
