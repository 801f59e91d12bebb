"""Shards of stores and servers: as local ones, whatever breaks on the way."""

from __future__ import annotations

import functools
import http.server
import io
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from conftest import Outcome
from fsspec.implementations.memory import MemoryFileSystem
from shards import SMALL, shard

from mmcompress.data import parsing, remote
from mmcompress.data.batches import batches, fingerprint, read
from mmcompress.data.indexing import index_data
from mmcompress.data.remote import check_scheme
from mmcompress.data.sample import Sample
from mmcompress.data.spec import expand
from mmcompress.errors import CorruptInputError, MissingRequirementError, MMCompressError, UsageError
from mmcompress.places import CACHE

Cli = Callable[..., Outcome]


class Broken(io.BytesIO):
    """A file whose connection breaks behind a byte."""

    def __init__(self, content: bytes, at: int) -> None:
        super().__init__(content)
        self.at = at

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        if self.tell() <= self.at:
            return content
        if (good := len(content) - (self.tell() - self.at)) > 0:
            self.seek(self.at)
            return content[:good]
        raise ConnectionResetError("reset by peer")


class Flaky(MemoryFileSystem):
    """A store in memory of which each opened file breaks at the next of `breaks`, in the end at none."""

    protocol = "flaky"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    breaks: ClassVar[list[int]] = []
    opened: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("flaky://")))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode != "rb":
            return super()._open(path, mode, **options)
        self.opened.append(Path(path).name)
        whole = super()._open(path, mode).getvalue()
        return Broken(whole, self.breaks.pop(0) if self.breaks else len(whole))


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty store, an empty cache, and no waiting."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    for name, empty in (("store", {}), ("breaks", []), ("opened", [])):
        monkeypatch.setattr(Flaky, name, empty)
    monkeypatch.setattr(remote.time, "sleep", lambda _: None)
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))


def stored(folder: Path, *sizes: int) -> str:
    """Shards here and in the store; their address."""
    folder.mkdir(exist_ok=True)
    for number, samples in enumerate(sizes):
        path = shard(folder / f"{number}.tar", samples, start=100 * number)
        Flaky().pipe_file(f"/b/{number}.tar", path.read_bytes())
    return f"flaky://b/{{0..{len(sizes) - 1}}}.tar"


def found(spec: str, **options: Any) -> list[Sample]:
    return list(read(spec, **{"max_bad_fraction": 0, **options}))


def test_a_store_is_read_as_a_folder(tmp_path: Path) -> None:
    url = stored(tmp_path / "data", 5, 3)
    here = found(str(tmp_path / "data"))
    assert found(url) == here and Flaky.opened == ["0.tar", "1.tar"]
    assert found(f"part:0-4/10:{url}") == found(f"part:0-4/10:{tmp_path / 'data'}")
    assert found(f"file://{tmp_path}/data/{{0..1}}.tar") == here
    with fsspec.open("memory://mm/0.tar", "wb") as file:
        file.write((tmp_path / "data" / "0.tar").read_bytes())
    assert found("memory://mm/0.tar") == here[:5]


@pytest.mark.parametrize("breaks", [[0], [1], [700], [5000, 5001, 9000, 10000], [5000] * 4])
def test_a_broken_connection_goes_on_at_the_next_byte(tmp_path: Path, breaks: list[int]) -> None:
    url = stored(tmp_path / "data", 20)
    monkeys = list(breaks)
    Flaky.breaks.extend(breaks)
    assert found(url) == found(str(tmp_path / "data"))
    assert len(Flaky.opened) == 1 + len(monkeys)


def test_a_connection_that_breaks_each_time_is_a_broken_shard(tmp_path: Path) -> None:
    url = stored(tmp_path / "data", 40)
    Flaky.breaks.extend([35_000] * 5)
    some = found(url, max_bad_fraction=1, log=tmp_path / "log")
    assert 0 < len(some) < 40 and some == found(str(tmp_path / "data"))[: len(some)]
    assert "0.tar: the shard breaks after" in (tmp_path / "log").read_text()
    assert "flaky://b/0.tar: reset by peer" in (tmp_path / "log").read_text()
    assert len(Flaky.opened) == 5


def test_what_is_not_there_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = stored(tmp_path / "data", 2).replace("0..0", "0..1")
    monkeypatch.setattr(remote.time, "sleep", lambda _: pytest.fail("waits for what will not come"))
    assert len(found(url, max_bad_fraction=0.4)) == 2
    with pytest.raises(CorruptInputError, match=r"1\.tar: the shard breaks after 0 samples: flaky://b/1\.tar: "):
        found("flaky://b/1.tar")


def test_a_shard_that_is_replaced_meanwhile_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = stored(tmp_path / "data", 20)
    Flaky.breaks.append(9000)

    def replace(_: float) -> None:
        Flaky().pipe_file("/b/0.tar", (tmp_path / "data" / "0.tar").read_bytes() + bytes(512))

    monkeypatch.setattr(remote.time, "sleep", replace)
    with pytest.raises(CorruptInputError, match="it has changed while it was read"):
        found(url)


def test_a_file_that_ends_too_early_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a server closes a connection and calls it the end."""
    url = stored(tmp_path / "data", 20)
    cut = iter([True])
    real = Flaky._open

    def short(self: Flaky, path: str, mode: str = "rb", **options: Any) -> Any:
        file = real(self, path, mode)
        return io.BytesIO(file.getvalue()[:6000]) if next(cut, False) else file

    monkeypatch.setattr(Flaky, "_open", short)
    assert found(url) == found(str(tmp_path / "data"))


def test_cached_shards_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = stored(tmp_path / "data", 5, 3)
    here = found(str(tmp_path / "data"))
    Flaky.breaks.append(4000)
    assert found(f"cached:{url}") == here and Flaky.opened == ["0.tar", "0.tar", "1.tar"]
    Flaky.store.clear()
    assert found(f"cached:{url}") == here
    monkeypatch.setattr(parsing, "members", lambda _: pytest.fail("a shard is read again"))
    options: dict[str, Any] = {"batch": 4, "shuffle_seed": 1}
    mine, theirs = (
        [one.keys for one in batches(spec, SMALL, **options)] for spec in (f"cached:{url}", str(tmp_path / "data"))
    )
    assert mine == theirs
    assert fingerprint(f"cached:{url}") == fingerprint(url)


def test_a_fetch_that_fails_keeps_nothing(tmp_path: Path) -> None:
    url = stored(tmp_path / "data", 20)
    Flaky.breaks.extend([9000] * 5)
    with pytest.raises(CorruptInputError, match=r"the shard cannot be fetched: flaky://b/0\.tar: reset by peer"):
        found(f"cached:{url}")
    assert not [path for path in (tmp_path / "cache" / "shards").rglob("*") if path.is_file()]
    assert len(found(f"cached:{url}")) == 20


def test_a_cache_that_cannot_keep_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = stored(tmp_path / "data", 2)
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE, str(tmp_path / "file" / "cache"))
    with pytest.raises(UsageError, match=r"flaky://b/0\.tar cannot be kept in .*: Not a directory") as caught:
        found(f"cached:{url}")
    assert CACHE in caught.value.hint


def test_data_index_fetches_what_is_to_be_kept(tmp_path: Path) -> None:
    url = stored(tmp_path / "data", 5, 3)
    assert [facts.samples for facts in index_data(f"cached:{url}").shards] == [5, 3]
    Flaky.store.clear()
    assert not any(facts.made for facts in index_data(f"cached:{url}").shards)
    with pytest.raises(UsageError, match="is no shard, and indices are of shards"):
        index_data(url)
    with pytest.raises(CorruptInputError, match=r"cached:flaky://b/7\.tar cannot be fetched"):
        index_data("cached:flaky://b/7.tar")


def test_packages_and_schemes(monkeypatch: pytest.MonkeyPatch, cli: Cli, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gopher://host/x: fsspec knows no gopher://"):
        expand("gopher://host/x")

    def absent(_: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    with pytest.raises(MissingRequirementError, match=r"s3://b/0\.tar needs a Python package.*s3fs") as caught:
        check_scheme("cached:s3://b/0.tar")
    assert caught.value.hint == "pip install 'mmcompress[remote]'"
    said = cli("embed", "--teacher", "demo:teacher", "--data", "s3://b/{0..9}.tar", "--out", tmp_path / "out")
    assert said.code == 3 and "mmcompress[remote]" in said.err and not (tmp_path / "out").exists()


class RangedHandler(http.server.SimpleHTTPRequestHandler):
    """Files, or the asked part of them, and every fifth answer is cut off."""

    answers = 0

    def log_message(self, *_: object) -> None:
        pass

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = self.headers.get("Range")
        if asked is None or not path.is_file():
            return super().do_GET()
        content = path.read_bytes()
        first, last = (int(part) for part in asked.removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        type(self).answers += 1
        self.wfile.write(part[: len(part) // 2] if type(self).answers % 5 == 2 else part)


@contextmanager
def served(folder: Path, handler: type[http.server.SimpleHTTPRequestHandler]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # aiohttp's, where a connection was cut off
@pytest.mark.parametrize("handler", [Quiet, RangedHandler])
def test_web_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handler: type[http.server.SimpleHTTPRequestHandler]
) -> None:
    """With ranges and cut answers, and one that has no ranges."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(remote, "BLOCK_BYTES", 4096)
    stored(tmp_path / "data", 20, 30)
    here = found(str(tmp_path / "data"))
    with served(tmp_path / "data", handler) as address:
        url = f"{address}/{{0..1}}.tar"
        assert found(url) == here
        assert found(f"cached:{url}") == here
        some = found(f"{address}/{{0..2}}.tar", max_bad_fraction=0.5, log=tmp_path / "log")
    assert handler is Quiet or RangedHandler.answers > 10
    assert some == here and "/2.tar: the shard breaks after 0 samples: " in (tmp_path / "log").read_text()
    assert found(f"cached:{url}") == here
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(MMCompressError):
        found(f"cached:{url}")


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize(("status", "tries"), [(503, 2), (429, 2), (500, 2), (404, 1), (403, 1)])
def test_a_server_that_is_busy_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, tries: int
) -> None:
    """fsspec calls all of these not found."""
    pytest.importorskip("aiohttp")
    stored(tmp_path / "data", 20)
    here, refused, pauses = found(str(tmp_path / "data")), [status] * 2, list[float]()  # HEAD, then GET
    monkeypatch.setattr(remote.time, "sleep", pauses.append)

    class Busy(Quiet):
        def send_head(self) -> Any:
            if not refused:
                return super().send_head()
            self.send_error(refused.pop())
            return None

    with served(tmp_path / "data", Busy) as address:
        if tries == 2:
            assert found(f"{address}/0.tar") == here
        else:
            with pytest.raises(CorruptInputError, match=f"after 0 samples: .*0.tar: {status}, message="):
                found(f"{address}/0.tar")
    assert len(pauses) == tries - 1


def test_a_server_that_does_not_answer_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")
    pauses = list[float]()
    monkeypatch.setattr(remote.time, "sleep", pauses.append)
    with pytest.raises(CorruptInputError, match="Cannot connect to host"):
        found("http://127.0.0.1:1/0.tar")
    assert pauses == list(remote.PAUSES_S)
