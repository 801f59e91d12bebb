"""One flipped byte in any file of any kind of artifact is found, before anything is used."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from every_command import write_world

from mmcompress import digests
from mmcompress.artifact import Artifact
from mmcompress.errors import CorruptInputError
from mmcompress.manifest import Kind

Cli = Callable[..., Any]


def made(path: Path, kind: Kind) -> Artifact:
    with Artifact.create(path, kind=kind, stage="stage", key="k", config={"rate": 1e-05, "on": True}) as draft:
        (draft.path / "rows.bin").write_bytes(random.Random(0).randbytes(300))
        (draft.path / "deep/er").mkdir(parents=True)
        (draft.path / "deep/er/é.txt").write_text("x")
        draft.facts, draft.metrics = {"params": 10, "scale": 50.0}, {"r10": None, "seconds": 1.5}
    return Artifact.open(path)


def check_found(artifact: Artifact, name: str, position: int, flip: int) -> None:
    """With that byte flipped opening fails, or the manifest says the same in other characters; then all is put back."""
    path = artifact.path / name
    content = path.read_bytes()
    spoiled = bytearray(content)
    spoiled[position] ^= flip
    stat = path.stat()
    path.write_bytes(spoiled)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as what copies with times kept does
    try:
        opened = Artifact.open(artifact.path)
    except CorruptInputError:
        opened = None
    finally:
        path.write_bytes(content)
    same = opened is not None and name == "manifest.json" and opened.manifest == artifact.manifest
    assert opened is None or same, f"{artifact.path.name}/{name}, byte {position} ^ {flip}"


@pytest.mark.parametrize("kind", Kind)
def test_every_file_of_every_kind(kind: Kind, tmp_path: Path) -> None:
    artifact, noise = made(tmp_path / kind.value, kind), random.Random(kind.value)
    artifact.remember()
    for name in ("manifest.json", *artifact.manifest.files):
        size = (artifact.path / name).stat().st_size
        for position in noise.sample(range(size), min(size, 30)):
            check_found(artifact, name, position, 1 << noise.randrange(8))
    assert Artifact.open(artifact.path).manifest == artifact.manifest


def test_every_byte_of_a_manifest(tmp_path: Path) -> None:
    """E in place of e in a number, or a tab in place of a line's end, are the same manifest."""
    artifact, noise = made(tmp_path / "a", Kind.ONNX), random.Random(0)
    for position in range((artifact.path / "manifest.json").stat().st_size):
        check_found(artifact, "manifest.json", position, 1 << noise.randrange(8))


@pytest.mark.parametrize("kind", [Kind.EMBEDDINGS, Kind.INDEX, Kind.SHARDS, Kind.CHECKPOINT])
def test_inspect_reads_what_is_remembered_again(
    kind: Kind, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that rots changes a byte and no time."""
    artifact = made(tmp_path / "a", kind)
    monkeypatch.setattr(digests, "identity_of", lambda path: (path.stat().st_size, 0, 0))
    artifact.remember()
    content = bytearray(artifact.file("rows.bin").read_bytes())
    content[7] ^= 16
    artifact.file("rows.bin").write_bytes(content)
    done = cli("inspect", artifact.path)
    assert done.code == 4 and "rows.bin is damaged" in done.err and "make it again" in done.err


@pytest.mark.slow  # makes one of each
def test_every_file_of_what_stages_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_world(tmp_path / "world")
    monkeypatch.setenv("MMCOMPRESS_CACHE", str(tmp_path / "world/cache"))
    noise, kinds = random.Random(0), set()
    for path in sorted((tmp_path / "world/run").iterdir()):
        artifact = Artifact.open(path)
        kinds.add(artifact.manifest.kind)
        assert {"manifest.json", *artifact.manifest.files} == {
            found.relative_to(path).as_posix() for found in path.rglob("*") if found.is_file()
        }
        for name in artifact.manifest.files:
            size = (path / name).stat().st_size
            for position in {0, size - 1, *(noise.randrange(size) for _ in range(3))}:
                check_found(artifact, name, position, 1 << noise.randrange(8))
    assert kinds == {Kind.CHECKPOINT, Kind.EMBEDDINGS, Kind.ONNX, Kind.REPORT}
