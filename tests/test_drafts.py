"""Files of the cache folder: whole or not there, and nothing that a killed writer leaves stays for long."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmcompress import drafts
from mmcompress.drafts import written_whole

WRITER = """
import sys, time
from pathlib import Path
from mmcompress.drafts import written_whole

with written_whole(Path(sys.argv[1])) as stream:
    stream.write(b"half")
    stream.flush()
    print("begun", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def anew() -> None:
    drafts._clear_once.cache_clear()


def begun(place: Path) -> subprocess.Popen[str]:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(place)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stdout.readline() == "begun\n"
    return writer


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(place: Path, content: bytes) -> None:
    with written_whole(place) as stream:
        stream.write(content)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no locks that end with their process")
def test_the_draft_of_a_killed_writer_goes_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    killed, living = begun(tmp_path / "a"), begun(tmp_path / "b")
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert len(names(tmp_path)) == 2, "both are hidden"
        write(tmp_path / "c", b"whole")
        assert len(names(tmp_path)) == 2 and (tmp_path / "c").read_bytes() == b"whole"
        assert any(name.endswith(drafts.SUFFIX) for name in names(tmp_path))
    finally:
        living.kill()
        living.communicate()
    drafts._clear_once.cache_clear()
    write(tmp_path / "c", b"again")
    assert names(tmp_path) == ["c"] and (tmp_path / "c").read_bytes() == b"again"
    assert killed.stdout is not None
    killed.stdout.close()


@pytest.mark.parametrize("raised", [ValueError("a bug"), KeyboardInterrupt()])
def test_what_fails_leaves_what_was_there(tmp_path: Path, raised: BaseException) -> None:
    write(tmp_path / "deep" / "a", b"old")
    with pytest.raises(type(raised)), written_whole(tmp_path / "deep" / "a") as stream:
        stream.write(b"new")
        raise raised
    assert names(tmp_path / "deep") == ["a"] and (tmp_path / "deep" / "a").read_bytes() == b"old"


@pytest.mark.parametrize("locks", ["none here", "no fcntl"])
def test_without_locks_a_draft_is_a_dead_ones_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: str
) -> None:
    class NoLocks:
        LOCK_EX, LOCK_NB = 2, 4

        @staticmethod
        def flock(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(drafts, "_fcntl", lambda: NoLocks if locks == "none here" else None)
    young, old = (tmp_path / f".{letter * 32}{drafts.SUFFIX}" for letter in "ab")
    for path in (young, old):
        path.touch()
    os.utime(old, (0, time.time() - 2 * 24 * 3600))
    write(tmp_path / "a", b"whole")
    assert names(tmp_path) == [young.name, "a"]
