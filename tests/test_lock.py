"""One writer or many readers of a place, over processes; no lock file stays behind."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mmcompress import lock
from mmcompress.errors import UsageError
from mmcompress.lock import locked

HOLD = (
    "import sys; from pathlib import Path; from mmcompress.lock import locked\n"
    "how = {sys.argv[1]: [Path(sys.argv[2])]}\n"
    "with locked(*how.get('writing', ()), reading=how.get('reading', ())):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


@pytest.mark.parametrize("theirs", ["writing", "reading"])
@pytest.mark.parametrize("ours", ["writing", "reading"])
def test_another_process(tmp_path: Path, theirs: str, ours: str) -> None:
    place = tmp_path / "a"
    command = [sys.executable, "-c", HOLD, theirs, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        held = locked(place) if ours == "writing" else locked(reading=[place])
        if (ours, theirs) == ("reading", "reading"):
            with held:
                pass
        else:
            with pytest.raises(UsageError, match="another mmcompress is running"), held:
                pass
        process.communicate(b"")
    assert list(tmp_path.iterdir()) == []
    with locked(place):
        assert (tmp_path / ".a.lock").exists()


def test_a_place_that_is_read_and_written_is_held_once(tmp_path: Path) -> None:
    with locked(tmp_path / "a", reading=[tmp_path / "a", tmp_path / "b", tmp_path / "b"]):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_first_lock_is_let_go_where_the_second_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path / "b"), pytest.raises(UsageError), locked(tmp_path / "a", tmp_path / "b"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_taken", refuse)
    with locked(tmp_path / "a"):
        pass
    assert "no locks on this file system" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(lock, "_taken", refuse)
    with pytest.raises(UsageError, match="cannot be written to"), locked(tmp_path / "a"):
        pass
    with locked(reading=[tmp_path / "a"]):
        pass


def plainly(path: Path) -> None:
    path.write_bytes(b"12345")


def by_safetensors(path: Path) -> None:
    save_file({"a": np.zeros(3)}, path)


def by_what_it_needs(path: Path) -> None:
    raise UsageError(f"there is no tokenizer {path}", "give one")


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize("write", [plainly, by_safetensors, by_what_it_needs])
def test_a_folder_that_goes_while_something_is_written_there_is_a_sentence(
    tmp_path: Path, moved: bool, write: Callable[[Path], None]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with (
        pytest.raises(UsageError, match="run was moved or removed while this command wrote there"),
        locked(folder / "a", folder / "b"),
    ):
        if moved:
            folder.rename(tmp_path / "moved")
        else:
            shutil.rmtree(folder)
        write(folder / ".b.work" / "part")


def test_what_fails_where_the_folder_stands_is_told_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no tokenizer"), locked(tmp_path / "a"):
        (tmp_path / ".a.lock").unlink()
        by_what_it_needs(tmp_path)
    with pytest.raises(FileNotFoundError), locked(tmp_path / "a", reading=[tmp_path / "b"]):
        plainly(tmp_path / "none" / "file")
