"""Packs: one file that is an artifact, the same bytes every time, and nothing that reaches out of its folder."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmcompress import pack as packs
from mmcompress.artifact import Artifact
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import FileEntry, Kind, Manifest
from mmcompress.pack import pack, read_pack, unpack
from mmcompress.strictjson import text_from_json

Cli = Callable[..., Any]
CONTENT = b"weights"


def artifact(path: Path, text: bytes = CONTENT, stage: str = "export") -> Artifact:
    with Artifact.create(path, kind=Kind.ONNX, stage=stage, key="k") as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "image.onnx").write_bytes(text * 1000)
        (draft.path / "sub" / "empty").write_bytes(b"")
        (draft.path / "sub" / ("long-" * 30 + "name")).write_bytes(b"x" * 512)
    return Artifact.open(path)


def forged(names: dict[str, bytes], path: Path, sizes: dict[str, int] | None = None) -> Path:
    """A pack with a valid seal and right digests, of names that no stage would write."""
    files = {n: FileEntry(sha256=hashlib.sha256(b).hexdigest(), bytes=len(b)) for n, b in names.items()}
    files |= {name: files[name].model_copy(update={"bytes": size}) for name, size in (sizes or {}).items()}
    manifest = Manifest(kind=Kind.ONNX, stage="export", name="x", key="k", config={}, parents={}, files=files)
    manifest = manifest.model_copy(update={"digest": manifest.compute_digest()})
    body = {**manifest.model_dump(mode="json", by_alias=True), "seal": manifest.compute_seal()}
    with path.open("wb") as stream:
        for name, content in {"manifest.json": text_from_json(body).encode(), **names}.items():
            stream.write(packs._header(name, len(content)) + content + packs._padding(len(content)))
        stream.write(packs._END)
    return path


def test_a_pack_gives_the_same_artifact_back(tmp_path: Path) -> None:
    source = artifact(tmp_path / "source")
    pack(source.path, tmp_path / "model.mmc")
    back = unpack(tmp_path / "model.mmc", tmp_path / "new" / "back")
    assert back.manifest == source.manifest == read_pack(tmp_path / "model.mmc")
    for name in source.manifest.files:
        assert back.file(name).read_bytes() == source.file(name).read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"source", "model.mmc", "new"}


def test_a_pack_is_a_tar_of_the_same_bytes_every_time(tmp_path: Path) -> None:
    source = artifact(tmp_path / "source")
    pack(source.path, tmp_path / "a.mmc")
    os.utime(source.file("image.onnx"), (1, 1))
    source.file("image.onnx").chmod(0o600)
    pack(source.path, tmp_path / "b.mmc")
    assert (tmp_path / "a.mmc").read_bytes() == (tmp_path / "b.mmc").read_bytes()
    with tarfile.open(tmp_path / "a.mmc") as tar:
        assert tar.getnames() == ["manifest.json", *source.manifest.files]
        opened = tar.extractfile("image.onnx")
        assert opened is not None and opened.read() == CONTENT * 1000


def test_headers_are_the_same_in_every_python() -> None:
    """A pack of today is opened by the Pythons of tomorrow, byte by byte."""
    headers = packs._header("image.onnx", 5) + packs._header("ä" * 80, 9 << 30)
    assert len(headers) == 4 * 512
    assert hashlib.sha256(headers).hexdigest() == "5ac6144417ee3c33ee8b1a816ce99223f5333d921ed4ec656c193817cac3fb49"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../evil", "no path below"),
        ("/etc/evil", "no path below"),
        ("a/../../evil", "no path below"),
        ("a//b", "no path below"),
        ("./a", "no path below"),
        ("", "no path below"),
        ("C:evil", "not every system"),
        ("a\\..\\evil", "not every system"),
        ("a\nb", "not every system"),
        ("nul", "a device"),
        ("sub/COM1.txt", "a device"),
        ("a.", "another name"),
        ("Manifest.JSON", "one place"),
        (f"sub/{'x' * 300}", "more than 255 bytes"),
    ],
)
def test_a_name_that_escapes_is_refused_and_nothing_written(tmp_path: Path, name: str, why: str) -> None:
    path = forged({name: b"evil"}, tmp_path / "evil.mmc")
    with pytest.raises(CorruptInputError, match=why):
        unpack(path, tmp_path / "out" / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["evil.mmc"]


@pytest.mark.parametrize("names", [("a", "A"), ("sub/x", "SUB/y"), ("é", "e\u0301"), ("a", "a/b"), ("a/b", "a")])
def test_two_names_of_one_place_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    with pytest.raises(CorruptInputError, match="one place on some systems"):
        unpack(forged(dict.fromkeys(names, b""), tmp_path / "x.mmc"), tmp_path / "x")


def test_a_size_that_the_file_does_not_have_is_refused_before_it_is_read(tmp_path: Path) -> None:
    bomb = forged({"a": b"x"}, tmp_path / "bomb.mmc", {"a": 1 << 50})
    with pytest.raises(CorruptInputError, match="its manifest says 1,125,"):
        unpack(bomb, tmp_path / "x")
    negative = forged({"a": b"x" * 600, "b": b"x" * 600}, tmp_path / "n.mmc", {"a": -512})
    with pytest.raises(CorruptInputError, match="less than no bytes"):
        unpack(negative, tmp_path / "x")


def test_every_flipped_byte_and_every_cut_is_noticed(tmp_path: Path) -> None:
    artifact(tmp_path / "source")
    pack(tmp_path / "source", tmp_path / "whole.mmc")
    whole = (tmp_path / "whole.mmc").read_bytes()
    broken = tmp_path / "broken.mmc"
    for place in [*range(0, 512, 7), *range(512, len(whole), 211), len(whole) - 1]:
        broken.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises((CorruptInputError, UsageError)):
            unpack(broken, tmp_path / "out")
    for length in (0, 100, 512, 600, len(whole) - 1):
        broken.write_bytes(whole[:length])
        with pytest.raises((CorruptInputError, UsageError)):
            unpack(broken, tmp_path / "out")
    broken.write_bytes(whole + b"\0")
    with pytest.raises(CorruptInputError):
        unpack(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = forged({"a": b""}, tmp_path / "x.mmc")
    entry = tarfile.TarInfo("a")
    entry.type, entry.linkname, entry.mode = kind, "/etc/passwd", 0o644
    body = path.read_bytes()
    path.write_bytes(body[:-1536] + entry.tobuf(tarfile.PAX_FORMAT) + body[-1024:])
    with pytest.raises(CorruptInputError, match="the header of 'a' differs"):
        unpack(path, tmp_path / "x")


def test_other_files_are_no_packs(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("weights.bin"), io.BytesIO())
    for name in ("empty", "other.tar", "nowhere", "."):
        with pytest.raises(UsageError, match="is not a pack"):
            unpack(tmp_path / name, tmp_path / "x")


def test_only_what_is_ours_is_replaced(tmp_path: Path) -> None:
    artifact(tmp_path / "a")
    artifact(tmp_path / "b", b"other")
    (tmp_path / "notes.mmc").write_text("my notes")
    with pytest.raises(UsageError, match="is no pack, so it is not overwritten"):
        pack(tmp_path / "a", tmp_path / "notes.mmc")
    with pytest.raises(UsageError, match="lies below"):
        pack(tmp_path / "a", tmp_path / "a" / "model.mmc")
    pack(tmp_path / "a", tmp_path / "x.mmc")
    pack(tmp_path / "b", tmp_path / "x.mmc")
    unpack(tmp_path / "x.mmc", tmp_path / "a")
    assert Artifact.open(tmp_path / "a").digest == Artifact.open(tmp_path / "b").digest
    artifact(tmp_path / "c", stage="prune")
    with pytest.raises(UsageError, match="holds what prune made"):
        unpack(tmp_path / "x.mmc", tmp_path / "c")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not overwritten"):
        unpack(tmp_path / "x.mmc", tmp_path / "folder")


def test_a_damaged_artifact_is_not_packed(tmp_path: Path) -> None:
    artifact(tmp_path / "a").file("image.onnx").write_bytes(b"z" * 7000)
    with pytest.raises(CorruptInputError, match="is damaged"):
        pack(tmp_path / "a", tmp_path / "a.mmc")
    assert not (tmp_path / "a.mmc").exists()


def test_a_killed_unpack_leaves_nothing_that_the_next_does_not_tidy(tmp_path: Path) -> None:
    artifact(tmp_path / "a")
    pack(tmp_path / "a", tmp_path / "a.mmc")
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from mmcompress import pack\n"
        "pack.swap_in = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "pack.unpack(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path / "a.mmc", tmp_path / "back"])
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "back").exists()
    unpack(tmp_path / "a.mmc", tmp_path / "back")
    assert not (tmp_path / ".back.tmp").exists()


def test_the_commands(cli: Cli, tmp_path: Path) -> None:
    artifact(tmp_path / "a")
    made = json.loads(cli("pack", tmp_path / "a", "-o", tmp_path / "a.mmc", "--json").out)
    assert made["bytes"] == (tmp_path / "a.mmc").stat().st_size
    back = json.loads(cli("unpack", tmp_path / "a.mmc", "--out", tmp_path / "back", "--json").out)
    assert back["digest"] == made["digest"]
    assert "model" not in cli("pack", tmp_path / "a", "-o", tmp_path / "a.mmc").err
    told = cli("inspect", tmp_path / "a.mmc")
    assert told.code == 2 and f"mmcompress unpack {tmp_path / 'a.mmc'}" in told.err
