"""Indices of shards: the same samples and damage as reading the shard, made once, and never of another content."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome
from shards import SMALL, pair, picture, png_of, shard, write_tar

from mmcompress import digests
from mmcompress.data import index, parsing, shards
from mmcompress.data.batches import batches, count, fingerprint, listing, read
from mmcompress.data.index import Reference, indexed_shard
from mmcompress.data.indexing import index_data
from mmcompress.data.parsing import Damage, Meaning, parsed
from mmcompress.data.shards import BrokenShardError, Member, members
from mmcompress.digests import sha256_of
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import hash_file
from mmcompress.places import CACHE

LONG = f"{'deep/' * 15}{'n' * 90}.jpg"
Cli = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for each test, in which files count as settled that were written just now."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(CACHE, str(folder))
    monkeypatch.setattr(digests, "_SETTLED_NS", -(10**18))
    return folder


@pytest.fixture
def read_shards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards whose headers were read, in order."""
    seen: list[str] = []
    real = parsing.members

    def counted(place: str, **said: Any) -> Iterator[Member]:
        seen.append(Path(place).name)
        return real(place, **said)

    monkeypatch.setattr(parsing, "members", counted)
    return seen


def by_tarfile(path: Path) -> tuple[list[Member], str]:
    """The files of a tar and how it breaks, by Python's tarfile alone."""
    found: list[Member] = []
    with path.open("rb") as stream:
        try:
            found.extend(shards._any_members(stream, 0))
        except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
            return found, str(error) or type(error).__name__
    return found, ""


def by_us(path: Path) -> tuple[list[Member], str]:
    found: list[Member] = []
    try:
        found.extend(members(str(path)))
    except BrokenShardError as error:
        return found, str(error)
    return found, ""


def write_odd(path: Path, kind: int, **about: Any) -> Path:
    """A tar of one format with long and foreign names, times as webdataset writes them, folders and links."""
    with tarfile.open(path, "w", format=kind) as archive:
        for n, name in enumerate(("a.jpg", "a.TXT", "ordner/ü-文.jpg", LONG, "b.npy", "b.jpg")):
            info = tarfile.TarInfo(name)
            info.mtime = time.time() if kind == tarfile.PAX_FORMAT else 7
            content = picture(n) if name.endswith("jpg") else b"x" * (700 * n)
            info.size = len(content)
            for key, value in about.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
        for type_ in (tarfile.DIRTYPE, tarfile.SYMTYPE):
            info = tarfile.TarInfo("link.jpg")
            info.type, info.linkname = type_, "b.jpg"
            archive.addfile(info)
        info = tarfile.TarInfo("last.jpg")
        info.size = len(picture())
        archive.addfile(info, io.BytesIO(picture()))
    return path


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("about", [{}, {"uid": 10**9}, {"uname": "jemand"}])
def test_headers_read_by_hand_are_tarfiles(tmp_path: Path, kind: int, about: dict[str, Any]) -> None:
    if kind == tarfile.USTAR_FORMAT and "uid" in about:
        about = {"uid": 8**6}
    path = write_odd(tmp_path / "x.tar", kind, **about)
    found, broken = by_us(path)
    assert (found, broken) == by_tarfile(path) and len(found) == 7 and not broken
    whole = path.read_bytes()
    for member in found:
        assert member.content is None or whole[member.offset :].startswith(member.content)


def test_a_tar_breaks_as_in_tarfile_wherever_it_is_damaged(tmp_path: Path) -> None:
    whole, path = write_odd(tmp_path / "whole.tar", tarfile.PAX_FORMAT).read_bytes(), tmp_path / "x.tar"
    for end in range(0, len(whole), 256):
        path.write_bytes(whole[:end])
        assert by_us(path) == by_tarfile(path)
    order = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(order.choice((1, 2, 30))):
            damaged[order.randrange(len(damaged))] = order.choice((0, ord("0"), ord("x"), order.randrange(256)))
        path.write_bytes(damaged)
        assert by_us(path) == by_tarfile(path)


def odd_shards(folder: Path) -> list[Path]:
    folder.mkdir()
    mixed = [
        *pair("good", 1, None, {"captions": ["one", "two"], "label": 7, "seen": False}),
        *pair("none", 2, None),
        ("cut.jpg", picture(3)[:-9]),
        ("cut.txt", b"x"),
        *pair("good", 4),
        ("half.webp", picture(5, kind="WEBP")),
        ("half.json", rb'{"caption": "\ud83d", "label": "\ud83d"}'),
        ("huge.png", png_of(50_000, 50_000)),
        *pair("last", 6, "行分隔符\u2028"),
    ]
    paths = [write_tar(folder / "mixed.tar", mixed), write_tar(folder / "packed.tar.gz", mixed, "w:gz")]
    paths += [write_tar(folder / "empty.tar", []), shard(folder / "broken.tar", 5), folder / "none.tar"]
    paths[3].write_bytes(paths[3].read_bytes()[:3000])
    paths[4].write_bytes(b"hello" * 1000)
    return [*paths, shard(folder / "whole.tar", 5)]


def test_an_index_is_what_the_reader_reads(tmp_path: Path) -> None:
    places = odd_shards(tmp_path / "odd")
    for path in places:
        expected = list(parsed(str(path), f"{path.name.split('.')[0]}/", Meaning(None, False)))
        for _ in range(2):  # made, and from the cache
            indexed = indexed_shard(str(path), path.name.split(".")[0])
            assert indexed is not None
            found = list(index.references(indexed))
            assert [item for item in found if isinstance(item, Damage)] == [
                item for item in expected if isinstance(item, Damage)
            ]
            assert [isinstance(item, Damage) for item in found] == [isinstance(item, Damage) for item in expected]
            for item, known in zip(found, expected, strict=True):
                if isinstance(item, Reference) and not isinstance(known, Damage):
                    sample = known[0]
                    assert (item.key, item.captions, item.label) == (sample.key, sample.captions, sample.label)
                    assert (item.seen, item.mark) == (sample.seen, sample.mark)
                    if indexed.index.seekable:
                        assert item.stored() == sample.image
            assert indexed.index.seekable == (path.suffix != ".gz")


def test_a_set_of_odd_shards_is_read_as_without_indices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd_shards(tmp_path / "odd")
    spec, logs = str(tmp_path / "odd"), [tmp_path / f"{n}.txt" for n in range(3)]
    found = [list(read(spec, max_bad_fraction=1, log=log)) for log in logs[:2]]
    shuffled = [one.keys for one in batches(spec, SMALL, batch=3, shuffle_seed=1, max_bad_fraction=1)]
    monkeypatch.setattr("mmcompress.data.reading.indexed_shard", lambda *_: None)
    assert found == [list(read(spec, max_bad_fraction=1, log=logs[2]))] * 2
    assert len({log.read_text() for log in logs}) == 1 and len(logs[0].read_text().splitlines()) == 10
    assert shuffled == [one.keys for one in batches(spec, SMALL, batch=3, shuffle_seed=1, max_bad_fraction=1)]


def three(folder: Path) -> str:
    folder.mkdir()
    for n in range(3):
        shard(folder / f"s{n}.tar", 20, start=20 * n)
    return str(folder)


def test_what_is_known_is_not_read_again(
    tmp_path: Path, read_shards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = three(tmp_path / "data")
    known, whole = fingerprint(spec), [one.keys for one in batches(spec, SMALL, batch=8, shuffle_seed=3)]
    assert sorted(read_shards) == ["s0.tar", "s1.tar", "s2.tar"]
    monkeypatch.setattr(digests, "_tables", {})  # as in another process
    monkeypatch.setattr(digests, "hash_file", None)
    assert fingerprint(spec) == known and count(spec) == 60 and len(read_shards) == 3
    loaded: list[str] = []
    stored = Reference.stored
    monkeypatch.setattr(Reference, "stored", lambda item: (loaded.append(item.key), stored(item))[1])
    rest = [one.keys for one in batches(spec, SMALL, batch=8, shuffle_seed=3, skip=6)]
    assert rest == whole[6:] and sorted(loaded) == sorted(key for keys in rest for key in keys)
    loaded.clear()
    mine = [one.keys for one in batches(spec, SMALL, batch=4, shuffle_seed=3, drop_last=True, rank=1, world=2)]
    assert sorted(loaded) == sorted(key for keys in mine for key in keys), "a process reads its own images only"
    assert len(read_shards) == 3


def test_one_more_shard_is_the_work_of_one(tmp_path: Path, read_shards: list[str]) -> None:
    spec = three(tmp_path / "data")
    assert count(spec) == 60
    read_shards.clear()
    shard(tmp_path / "data" / "s3.tar", 5)
    assert count(spec) == 65 and read_shards == ["s3.tar"]


def test_shards_that_were_moved_have_their_indices(tmp_path: Path, read_shards: list[str]) -> None:
    spec = three(tmp_path / "data")
    known, keys = fingerprint(spec), [sample.key for sample in listing(spec)]
    read_shards.clear()
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    for moved in (tmp_path / "elsewhere", tmp_path / "elsewhere" / "s*.tar", tmp_path / "elsewhere" / "s{0..2}.tar"):
        assert fingerprint(str(moved)) == known
        assert [sample.key for sample in listing(str(moved))] == keys and read_shards == []


@pytest.mark.parametrize("times_kept", [False, True])
def test_a_shard_that_changed_is_read_again(tmp_path: Path, times_kept: bool) -> None:
    path = shard(tmp_path / "x.tar", 3)
    before, stat = list(read(str(path))), path.stat()
    known = fingerprint(str(path))
    other = shard(tmp_path / "other.tar", 3, start=3).read_bytes()
    time.sleep(0.02)  # the clock of a file system ticks every few milliseconds
    assert len(other) == stat.st_size
    path.write_bytes(other)
    if times_kept:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = list(read(str(path)))
    assert after != before and [sample.captions[0] for sample in after] == ["number 3", "number 4", "number 5"]
    assert fingerprint(str(path)) != known


def test_a_shard_that_changes_while_it_is_in_use(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", 3)
    stream = listing(str(path))
    first = next(stream)
    shard(path, 4)
    with pytest.raises(CorruptInputError, match=r"x\.tar has changed while it was in use"):
        first.stored()
    with pytest.raises(CorruptInputError, match="changed while it was in use"):
        list(in_use(path))


def in_use(path: Path) -> Iterator[Any]:
    """Batches of a shard that is written again behind the first one."""
    stream = batches(str(path), SMALL, batch=1, workers=1, max_bad_fraction=1)
    yield next(stream)
    shard(path, 9)
    yield from stream


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_index_is_made_again(tmp_path: Path, empty_cache: Path, damage: str, read_shards: list[str]) -> None:
    path = shard(tmp_path / "x.tar", 10)
    assert count(str(path)) == 10
    (file,) = (empty_cache / "indices").iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(
        {"cut": bytes(content[:-40]), "flipped": bytes(content), "empty": b"", "other": b"PK" + bytes(99)}[damage]
    )
    read_shards.clear()
    assert count(str(path)) == 10 and read_shards == ["x.tar"]


def test_a_killed_indexing_leaves_whole_indices_only(tmp_path: Path, empty_cache: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    first = shard(folder / "000.tar", 300)
    for n in range(1, 30):
        (folder / f"{n:03d}.tar").write_bytes(first.read_bytes())
        os.truncate(folder / f"{n:03d}.tar", first.stat().st_size - 512 * (n % 19))  # all end in zeros
    command = [sys.executable, "-m", "mmcompress", "data", "index", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 60
        while len(list((empty_cache / "indices").glob("[!.]*"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        running.send_signal(signal.SIGKILL)
    log = next((empty_cache / "digests").iterdir())
    log.write_bytes(log.read_bytes()[:-30])  # torn, as it can be
    digests._tables.clear()
    assert count(str(folder)) == 30 * 300


def test_digests_are_of_the_content(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in ("a", "ü\n", "c")]
    for n, path in enumerate(paths):
        path.write_bytes(bytes(n))
    assert [sha256_of(path) for path in paths] == [hash_file(path) for path in paths]
    (log,) = (empty_cache / "digests").iterdir()
    with log.open("ab") as stream:
        stream.write(b'["a", 0, 1\n\xff\nnull\n[1, 2]\n')
    monkeypatch.setattr(digests, "_tables", {})
    monkeypatch.setattr(digests, "hash_file", lambda _: "read")
    assert [sha256_of(path) for path in paths] != ["read"] * 3
    paths[0].write_bytes(b"changed")
    assert [sha256_of(path) == "read" for path in paths] == [True, False, False]


def test_a_file_that_may_still_change_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_SETTLED_NS", 10**12)
    path = tmp_path / "x"
    path.write_bytes(b"x")
    sha256_of(path)
    monkeypatch.setattr(digests, "hash_file", lambda _: "read")
    assert sha256_of(path) == "read"


def test_a_cache_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = three(tmp_path / "data")
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE, str(tmp_path / "file" / "cache"))
    assert count(spec) == 60 == len(list(read(spec)))
    assert capsys.readouterr().err.count("indices of shards cannot be kept in") == 1


def test_an_unreadable_shard(tmp_path: Path) -> None:
    spec = three(tmp_path / "data")
    (tmp_path / "data" / "s1.tar").unlink()
    (tmp_path / "data" / "s1.tar").symlink_to(tmp_path / "gone")
    log = tmp_path / "bad.txt"
    assert len(list(read(spec, log=log))) == 40
    assert "s1.tar: the shard breaks after 0 samples: [Errno 2]" in log.read_text()
    for ask in (fingerprint, index_data):
        with pytest.raises(CorruptInputError, match=r"s1\.tar cannot be read"):
            ask(spec)


def test_processes_get_equally_many_batches_whatever_cannot_be_decoded(tmp_path: Path) -> None:
    """Also of one shard for many processes."""
    files = [
        file
        for n in range(24)
        for file in ((f"{n:02d}.png", png_of(16, 16) if n % 3 == 1 else picture(n, kind="PNG")), (f"{n:02d}.txt", b"x"))
    ]
    path = write_tar(tmp_path / "x.tar", files)
    options: dict[str, Any] = {"batch": 1, "shuffle_seed": 1, "drop_last": True, "max_bad_fraction": 1, "world": 4}
    found = [list(batches(str(path), SMALL, rank=rank, **options)) for rank in range(4)]
    assert [len(own) for own in found] == [6] * 4
    seen = [one.keys[0] for own in found for one in own]
    assert {*seen} == {f"x/{n:02d}" for n in range(24) if n % 3 != 1}
    only = write_tar(tmp_path / "only.tar", [("a.png", png_of(16, 16)), ("a.txt", b"x"), *pair("b")])
    with pytest.raises(CorruptInputError, match=r"no readable sample|no image that can be decoded"):
        for rank in range(2):
            list(batches(str(only), SMALL, rank=rank, **{**options, "world": 2}))


def test_data_index(tmp_path: Path, cli: Cli) -> None:
    spec = three(tmp_path / "data")
    write_tar(tmp_path / "data" / "s3.tar.gz", [*pair("a"), *pair("\x1bb", caption=None)], "w:gz")
    said = cli("data", "index", spec, "--processes", 2)
    assert said.code == 0 and "61 samples in 4 shards" in said.out and "4 shards read now" in said.out
    assert "1 are compressed" in said.out and "s3.tar.gz: 1, �b: no caption" in said.out
    again = cli("data", "index", spec, "--json")
    document = json.loads(again.out.splitlines()[-1])
    assert (document["samples"], document["damaged"], document["made"]) == (61, 1, 0)
    assert [one["samples"] for one in document["shards"]] == [20, 20, 20, 1]
    assert cli("data", "index", tmp_path / "none.tar").code == 2
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(picture(kind="PNG"))
    for other in (tmp_path / "pictures", "pipe:cat x.tar"):
        with pytest.raises(UsageError, match="is no shard, and indices are of shards"):
            index_data(str(other))
