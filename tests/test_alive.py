"""The sign of life: on a terminal and in a log, beside bars and lines, and gone when the answer comes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from mmcompress import alive as module
from mmcompress import progress
from mmcompress.alive import alive
from mmcompress.cli.console import show
from mmcompress.progress import RUNNING, say, track


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Console, io.StringIO]]:
    """A console of progress, and what was written on it; silence is over sooner."""
    monkeypatch.setattr(module, "_SILENCE_S", 0.05)
    monkeypatch.setattr(module, "_LOOK_S", 0.02)

    def made(terminal: bool) -> tuple[Console, io.StringIO]:
        written = io.StringIO()
        monkeypatch.setattr(progress, "console", Console(file=written, force_terminal=terminal, width=80))
        return progress.console, written

    return made


def awaited(written: io.StringIO, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in written.getvalue():
        assert time.monotonic() < deadline, written.getvalue()
        time.sleep(0.02)


def test_a_terminal_shows_what_runs_until_something_else_is_written(
    on: Callable[..., tuple[Console, io.StringIO]], capsys: pytest.CaptureFixture[str]
) -> None:
    console, written = on(terminal=True)
    with alive(console, "prune"):
        awaited(written, "  prune: ")
        say("quantize", "q", RUNNING, "stage 3 of 9")
        awaited(written, "  stage 3 of 9: quantize (q): ")
        for _ in track(range(3), "fitting", 3):
            time.sleep(0.2)
        assert "fitting" in written.getvalue()
        awaited(written, "so far")
        show({"a": 1}, "", True)
        shown = len(written.getvalue())
        time.sleep(0.3)
        assert len(written.getvalue()) == shown, "nothing is drawn over an answer"
    assert capsys.readouterr().out == '{"a":1}\n'
    assert module.sign() is None


def test_a_bar_has_the_line_to_itself(on: Callable[..., tuple[Console, io.StringIO]]) -> None:
    console, written = on(terminal=True)
    with alive(console, "prune"):
        items = track(range(2), "fitting", 2)
        next(items)
        begun = len(written.getvalue())
        time.sleep(0.3)
        assert "so far" not in written.getvalue()[begun:]
        items.close()
        awaited(written, "so far")


def test_a_log_gets_a_line_now_and_then(
    on: Callable[..., tuple[Console, io.StringIO]], monkeypatch: pytest.MonkeyPatch
) -> None:
    console, written = on(terminal=False)
    with alive(console, "prune"):
        time.sleep(0.3)
        assert written.getvalue() == ""
        monkeypatch.setattr(module, "LOG_SECONDS", 0.1)
        awaited(written, " s so far\n")
    assert "\x1b" not in written.getvalue()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pty")
def test_a_command_on_a_terminal(tmp_path: Path, tiny_clip_folder: Path) -> None:
    """Its own entry, with a stage that takes two seconds in which it says nothing."""
    import pty

    slow = (
        "import sys, time; from mmcompress.compress import convert; stage = convert.convert;"
        "convert.convert = lambda job: (time.sleep(2), stage(job));"
        "from mmcompress.cli.main import main; main()"
    )
    terminal, its_side = pty.openpty()
    words = [sys.executable, "-c", slow, "convert", tiny_clip_folder, "--out", tmp_path / "c"]
    command = subprocess.Popen(words, stdin=its_side, stdout=its_side, stderr=its_side)
    os.close(its_side)
    said = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # Linux' way to say that nobody writes any more
            break
        if not piece:
            break
        said += piece
    os.close(terminal)
    assert command.wait() == 0, said
    assert b"  convert (c): 1 s so far" in said
    assert said.rstrip().split(b"\x1b[2K")[-1].startswith(f"{tmp_path}/c  checkpoint".encode()[:60])
