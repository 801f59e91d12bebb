"""Signals sent to real commands: the exit code, the sentence that says how to go on, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from shards import write_tar

from mmcompress.interrupts import ended_by_signals

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")

WAITING = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
reached = Path(sys.argv.pop(1))

def wait(*_):
    reached.touch()
    time.sleep(60)

os.fsync = wait
from mmcompress.cli.main import main
main()
"""
"""A command that waits where what it made is whole and not yet in its place."""


@pytest.fixture(autouse=True)
def fresh_signals() -> Iterator[None]:
    """As a new interpreter has them: nohup ignores SIGHUP, and a library may have handlers of its own in C."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, standing in before.items():
        if standing is not None:
            signal.signal(number, standing)


MAIN = "from mmcompress.cli.main import main; main()"


def signalled(folder: Path, number: int, *words: object) -> tuple[int, str]:
    """Its exit code and stderr, of a command that got a signal where it syncs what it made."""
    reached = folder / "reached"
    command = [sys.executable, "-c", WAITING, str(reached), *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not reached.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    reached.unlink()
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    return process.returncode, said


ENDS = [
    (signal.SIGINT, 130, "Ctrl-C"),
    (signal.SIGTERM, 143, "SIGTERM"),
    (signal.SIGHUP, 129, "SIGHUP"),
    (signal.SIGUSR1, 138, "SIGUSR1"),
]


@pytest.mark.parametrize(("number", "code", "by"), ENDS)
def test_a_command_leaves_nothing(
    number: int, code: int, by: str, tmp_path: Path, make_artifact: Callable[..., Any]
) -> None:
    artifact, place = make_artifact("toy").path, tmp_path / "place"
    place.mkdir()
    ended, said = signalled(tmp_path, number, "pack", artifact, "--out", place / "o")
    assert ended == code and "Traceback" not in said
    assert said.splitlines()[-2:] == [f"error: stopped by {by}", "hint: give the same command again"]
    assert not list(place.iterdir())


def test_unpacking_and_packing_data_leave_nothing(
    tmp_path: Path, make_artifact: Callable[..., Any], coloured_squares: Path, cli: Callable[..., Any]
) -> None:
    pack, place = tmp_path / "toy.mmc", tmp_path / "place"
    place.mkdir()
    assert cli("pack", make_artifact("toy").path, "--out", pack).code == 0
    for words in (("unpack", pack), ("data", "pack", coloured_squares / "captions.tsv")):
        ended, said = signalled(tmp_path, signal.SIGTERM, *words, "--out", place / "o")
        assert ended == 143 and said.splitlines()[-1] == "hint: give the same command again"
        assert not list(place.iterdir())


def test_a_stage_says_what_the_same_command_does(tiny_clip_folder: Path, tmp_path: Path) -> None:
    ended, said = signalled(tmp_path, signal.SIGINT, "convert", tiny_clip_folder, "--out", tmp_path / "o")
    assert ended == 130 and "Traceback" not in said
    assert said.splitlines()[-2:] == [
        "error: stopped by Ctrl-C",
        "hint: give the same command again: convert (o) begins anew, and what was finished before it is reused",
    ]
    assert not list(tmp_path.iterdir())


def test_a_stage_that_keeps_its_work_goes_on_there(
    tiny_clip_folder: Path, coloured_squares: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    words = ("embed", "--teacher", tiny_clip_folder, "--data", coloured_squares, "--out", tmp_path / "e")
    ended, said = signalled(tmp_path, signal.SIGTERM, *words)
    assert ended == 75 and "Traceback" not in said
    assert said.splitlines()[-2:] == [
        "error: embed (e) was stopped by SIGTERM; what it has done so far is kept",
        "hint: give the same command again: it goes on there",
    ]
    assert [path.name for path in tmp_path.iterdir()] == [".e.work"]
    assert cli(*words).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_processes_of_a_command_end_with_it_and_say_nothing(tmp_path: Path) -> None:
    """Ctrl-C on a terminal reaches all of them."""
    for number in range(40):
        write_tar(tmp_path / f"{number:02d}.tar", [("a.txt", b"x")] * 2)
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);" + MAIN
    words = [sys.executable, "-c", code, "data", "index", str(tmp_path), "--processes", "2"]
    command = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 120
    while len(children) < 3 and command.poll() is None and time.monotonic() < deadline:  # with the resource tracker
        children = psutil.Process(command.pid).children()
        time.sleep(0.01)
    os.killpg(command.pid, signal.SIGINT)
    _, said = command.communicate(timeout=120)
    assert command.returncode == 130 and "Traceback" not in said, said
    assert psutil.wait_procs(children, timeout=60)[1] == []


SPARED = """
import signal, sys
from multiprocessing import get_context
from mmcompress.interrupts import children_spared

def look():
    sys.exit(0 if signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()) else 1)

if __name__ == "__main__":
    process = get_context("spawn").Process(target=look)
    with children_spared():
        process.start()
    process.join()
    sys.exit(process.exitcode)
"""


def test_the_first_process_is_spared_as_the_others_are(tmp_path: Path) -> None:
    """With the first one multiprocessing starts its tracker, which lets signals through again."""
    script = tmp_path / "spared.py"
    script.write_text(SPARED)
    assert subprocess.run([sys.executable, str(script)], timeout=120).returncode == 0


TWICE = """
import signal
from mmcompress.interrupts import Interrupted, ended_by_signals
try:
    with ended_by_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
except Interrupted as stop:
    print(stop.by, stop.exit_code)
"""
TRANSLATED = """
import signal
from mmcompress.errors import StoppedError
from mmcompress.interrupts import Interrupted, ended_by_signals
try:
    with ended_by_signals():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise RuntimeError("computation interrupted") from error
except Interrupted as stop:
    print(stop.by)
try:
    with ended_by_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise StoppedError("its state is written") from error
except StoppedError as stopped:
    print(stopped.what)
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [(TWICE, "SIGTERM 143"), (TRANSLATED, "Ctrl-C\nits state is written")],
    ids=["twice", "translated"],
)
def test_one_request_may_come_twice_and_what_a_library_makes_of_it_is_still_the_signal(code: str, said: str) -> None:
    """In an interpreter of its own: a library may have left handlers in this one."""
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + code
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout.strip()) == (0, said), ended.stderr


WHILE_IMPORTED = """
import sys, time
from pathlib import Path

reached = Path(sys.argv[1])

class Stall:
    def find_spec(self, name, *_):
        if name == "typer":
            reached.touch()
            time.sleep(60)

sys.meta_path.insert(0, Stall())
"""
AT_THE_END = """
import atexit, sys, time
from pathlib import Path
reached = Path(sys.argv[1])
atexit.register(lambda: (reached.touch(), time.sleep(60)))
"""
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from mmcompress.__main__ import main
sys.argv[1:] = ["--version"]
main()
"""


@pytest.mark.parametrize(
    ("code", "ended", "said"),
    [
        (WHILE_IMPORTED, 130, "error: stopped by Ctrl-C\nhint: give the same command again\n"),
        (AT_THE_END, -signal.SIGINT, ""),
    ],
    ids=["while it is imported", "at the end"],
)
def test_no_traceback_before_a_command_and_none_behind_it(code: str, ended: int, said: str, tmp_path: Path) -> None:
    reached = tmp_path / "reached"
    command = [sys.executable, "-c", code + PROGRAM, str(reached)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not reached.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, heard = process.communicate(timeout=30)
    assert (process.returncode, heard) == (ended, said)


def test_what_is_no_signal_stays_what_it_is() -> None:
    with pytest.raises(ZeroDivisionError), ended_by_signals():
        raise ZeroDivisionError


def test_what_is_ignored_stays_so_and_handlers_come_back() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        standing = signal.getsignal(signal.SIGTERM)
        with ended_by_signals():
            signal.raise_signal(signal.SIGHUP)  # as nohup has it
            assert signal.getsignal(signal.SIGTERM) is not standing
        assert signal.getsignal(signal.SIGTERM) is standing
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_changes_nothing() -> None:
    seen = []

    def elsewhere() -> None:
        with ended_by_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
