"""Disks that are full or read-only, outside of stages too: a sentence that names the place, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report_run import make_run

from mmcompress.artifact import Artifact
from mmcompress.errors import UsageError
from mmcompress.manifest import Kind
from mmcompress.pipeline import standalone

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


@pytest.fixture(params=["full", "read-only"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 kB with no room on it; making one takes root."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        if request.param == "full":
            (place / "filler").write_bytes(bytes(16384))
        else:
            subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("name", ["pack", "unpack", "triton", "junit", "markdown"])
def test_what_cannot_be_written_is_named(
    name: str, disk: Path, cli: Callable[..., Any], tmp_path: Path, make_artifact: Callable[..., Any]
) -> None:
    if name in ("junit", "markdown"):
        make_run(tmp_path / "run")
        report = standalone.report([tmp_path / "run"]).path
        place = disk / "sub" / "gates"
        asked: tuple[Any, ...] = ("check", report, "--max", "p99_ms=50", f"--{name}", place)
    else:
        artifact, place = make_artifact("toy").path, disk / "out"
        packed = tmp_path / "toy.mmc"
        if name == "unpack":
            assert cli("pack", artifact, "--out", packed).code == 0
        asked = (name, packed if name == "unpack" else artifact, "--out", place)
    done = cli(*asked)
    assert done.code == 2 and str(disk) in done.err and "Traceback" not in done.err
    assert "hint:" in done.err
    left = {"filler", "sub", *(["out"] if name == "triton" else [])}  # a repository is no artifact
    assert {path.name for path in disk.iterdir()} <= left, "nothing half-written is left"


def test_whoever_makes_an_artifact_is_told_its_place(disk: Path) -> None:
    """`split` said that the output or a file that it needs cannot be written."""
    with (
        pytest.raises(UsageError, match=f"{disk / 'made'} cannot be written"),
        Artifact.create(disk / "made", kind=Kind.BUNDLE, stage="split", key="k") as draft,
    ):
        (draft.path / "half.onnx").write_bytes(bytes(1 << 20))
    assert {path.name for path in disk.iterdir()} <= {"filler"}


def test_an_output_that_is_full_is_an_error() -> None:
    """The answer of minutes must not be lost with exit code 0; a reader that has enough is none."""
    for words in (["doctor", "--json"], ["--help"]):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "mmcompress", *words], stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert (
            done.returncode == 2 and "error: the output" in done.stderr and "cannot be written: No space" in done.stderr
        )
        assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_reader_that_went_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "mmcompress", "--version"], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
