"""Samples out of shards, streams and tables: against the webdataset library, and with everything broken in turn."""

from __future__ import annotations

import gc
import io
import json
import random
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from shards import pair, picture, png_of, shard, write_tar

from mmcompress.data import shards
from mmcompress.data.batches import count, listing, read
from mmcompress.data.sample import Sample
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.packaged import packaged


def readable(spec: object, log: Path | None = None, bad: float = 1.0) -> list[Sample]:
    return list(read(str(spec), max_bad_fraction=bad, log=log))


def one(tmp_path: Path, files: list[tuple[str, bytes]]) -> Sample:
    (found,) = readable(write_tar(tmp_path / "one.tar", files), bad=0)
    return found


def reason(tmp_path: Path, files: list[tuple[str, bytes]]) -> str:
    """What the log says of a sample between two good ones."""
    path = write_tar(tmp_path / "some.tar", [*pair("first"), *files, *pair("last")])
    found = readable(path, tmp_path / "log" / "bad.txt")
    assert [sample.key for sample in found] == ["some/first", "some/last"]
    (line,) = (tmp_path / "log" / "bad.txt").read_text(encoding="utf-8").splitlines()
    return line.removeprefix(f"{path}: ")


@pytest.mark.filterwarnings("ignore:Exception ignored in.*_io.FileIO:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its files open
def test_same_samples_as_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    mixed = [
        ("__meta__/x.json", b"{}"),
        ("dir.d/one.JPG", picture(1)),
        ("dir.d/one.txt", b"one"),
        ("two.json", b'{"caption": "two"}'),
        ("two.webp", picture(2, kind="WEBP")),
    ]
    paths = [str(write_tar(tmp_path / "a.tar", mixed)), str(shard(tmp_path / "b.tar", 5)), *map(str, demo_val())]
    reference = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False))
    gc.collect()
    ours = [sample for path in paths for sample in readable(path, bad=0)]
    assert [sample.key.partition("/")[2] for sample in ours] == [item["__key__"] for item in reference]
    images = [next(item[suffix] for suffix in ("jpg", "webp") if suffix in item) for item in reference]
    assert [sample.image for sample in ours] == images


def demo_val() -> list[Path]:
    return sorted(packaged("demo:val").parent.glob("val-*.tar"))


def test_captions_label_and_seen(tmp_path: Path) -> None:
    several = one(
        tmp_path, pair("k", 0, " first \n", {"captions": ["second", "first", "", "第三"], "label": 7, "seen": False})
    )
    assert several.captions == ("first", "second", "第三")
    assert (several.key, several.label, several.seen, several.image) == ("one/k", "7", False, picture(0))
    img2dataset = {"caption": "alt text", "url": "u", "key": "000", "status": "success", "captions": None, "seen": None}
    assert one(tmp_path, pair("k", 0, None, img2dataset)).captions == ("alt text",)
    assert one(tmp_path, pair("k", 0, "processed", img2dataset)).captions == ("processed",)
    plain = one(tmp_path, pair("k", 0, "words"))
    assert (plain.captions, plain.label, plain.seen) == (("words",), None, True)
    half = one(tmp_path, [("k.jpg", picture()), ("k.json", rb'{"caption": "\ud83d"}')])
    assert half.captions[0].encode() == b"?"


def test_synthetic_captions_follow_the_others(tmp_path: Path) -> None:
    said = [("a.syn.json", b'{"syn_text": ["another", "a caption", " ", 3]}'), ("b.syn.json", b"{"), *pair("c")]
    write_tar(tmp_path / "s.tar", [*pair("a"), said[0], *pair("b"), *said[1:]])
    listed = list(listing(str(tmp_path), max_bad_fraction=0.5))
    assert [(s.key, s.captions) for s in listed] == [("s/a", ("a caption", "another")), ("s/c", ("a caption",))]


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (pair("k", caption=None), "k: no caption (txt, or captions or caption in json) among: jpg"),
        (pair("k", caption=" \n"), "k: no caption (txt, or captions or caption in json) among: jpg, txt"),
        ([("k.jpg", picture()[:-9]), ("k.txt", b"x")], "k: the JPEG is truncated"),
        ([("k.jpg", b""), ("k.txt", b"x")], "k: the image is empty"),
        ([("k.jpg", b"<html>"), ("k.txt", b"x")], "k: the image is no JPEG, PNG or WebP"),
        (
            [("k.png", png_of(50_000, 50_000)), ("k.txt", b"x")],
            "k: the image is 50000 x 50000 pixels large, and more than 67,108,864 are refused",
        ),
        ([("k.txt", b"x"), ("k.gif", b"")], "k: no image (jpg, jpeg, png or webp) among: gif, txt"),
        ([("k.jpg", picture()), ("k.txt", b"\xff\xfe")], "k: the txt is not UTF-8"),
        ([*pair("k"), ("k.json", b"{")], "k: the json cannot be parsed"),
        ([*pair("k"), ("k.json", b"[" * 100_000)], "k: the json cannot be parsed"),
        (pair("k", about=[1]), "k: the json is no object"),
        (pair("k", about={"captions": "text"}), "k: captions in json is no list"),
        (pair("k", about={"seen": "no"}), "k: seen in json is neither true nor false"),
        (pair("k") + pair("k"), "k: a file or a sample of that name was there before"),
        (pair("first"), "first: a file or a sample of that name was there before"),
        (pair("\x1b[31mred", caption=None), "�[31mred: no caption (txt, or captions or caption in json) among: jpg"),
    ],
)
def test_bad_samples_are_named_and_skipped(tmp_path: Path, files: list[tuple[str, bytes]], line: str) -> None:
    if line.startswith("first"):
        files = [*pair("between"), *files]
        write_tar(tmp_path / "some.tar", [*pair("first"), *files])
        assert len(readable(tmp_path / "some.tar", tmp_path / "bad.txt")) == 2
        assert (tmp_path / "bad.txt").read_text().strip() == f"{tmp_path}/some.tar: {line}"
    else:
        assert reason(tmp_path, files) == line


def test_large_members_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MEMBER_BYTES", 2**20)
    assert reason(tmp_path, [("k.jpg", bytes(2**20 + 1)), ("k.txt", b"x")]) == "k: the jpg has more than 1 MiB"


def test_text_has_limits(tmp_path: Path) -> None:
    """A tokenizer takes 150 bytes for one, and JSON 30 for an entry of a list."""
    image = ("k.jpg", picture())
    assert reason(tmp_path, [image, ("k.txt", b"x" * (2**20 + 1))]) == "k: the txt has more than 1 MiB"
    assert reason(tmp_path, [image, ("k.json", b" " * (2**24 + 1))]) == "k: the json has more than 16 MiB"
    many = json.dumps({"captions": [f"{number:0100}" for number in range(11_000)]}).encode()
    assert reason(tmp_path, [image, ("k.json", many)]) == "k: its captions have more than 1 Mi characters in all"


def test_a_header_that_unpacks_to_more_than_a_mebibyte_is_damage(tmp_path: Path) -> None:
    info = tarfile.TarInfo("k.jpg")
    info.size, info.pax_headers = len(picture()), {"comment": "x" * 2**21}
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(picture()))
    assert (tmp_path / "s.tar.gz").stat().st_size < 2**14
    with pytest.raises(CorruptInputError, match="the shard breaks after 0 samples: a header of 2 MiB"):
        list(read(str(tmp_path / "s.tar.gz")))


def test_names_in_a_tar_are_never_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    path = tmp_path / "evil.tar"
    names = ["../up", "/absolute/x", "a/../../b", "..", "x\udcff"]
    with tarfile.open(path, "w") as archive:
        for name in names:
            for suffix, content in (("jpg", picture()), ("txt", b"t")):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "../up.jpg"), (tarfile.FIFOTYPE, "")):
            info = tarfile.TarInfo("link.jpg")
            info.type, info.linkname = kind, target
            archive.addfile(info)
    keys = [sample.key for sample in readable(path)]
    assert keys == ["evil/../up", "evil//absolute/x", "evil/a/../../b", "evil/x�"]
    assert sorted(tmp_path.rglob("*")) == [path, inside]


@pytest.mark.parametrize("where", ["content", "header", "between", "garbage"])
def test_a_tar_that_breaks_keeps_what_came_before(tmp_path: Path, where: str) -> None:
    path = shard(tmp_path / "broken.tar", 10)
    with tarfile.open(path) as archive:
        offset = archive.getmember("000006.txt").offset
    whole = path.read_bytes()
    cut = {"content": offset + 512 + 3, "header": offset + 100, "between": offset, "garbage": offset}[where]
    path.write_bytes(whole[:cut] + (b"\x01" * 512 + whole[cut + 512 :] if where == "garbage" else b""))
    shard(tmp_path / "next.tar", 2)
    found = readable(tmp_path / "{broken,next}.tar", tmp_path / "bad.txt")
    assert [sample.key for sample in found] == [f"broken/{n:06d}" for n in range(6)] + ["next/000000", "next/000001"]
    (line,) = (tmp_path / "bad.txt").read_text().splitlines()
    assert line.startswith(f"{path}: the shard breaks after 6 samples: ")


def test_what_is_no_tar_counts_once(tmp_path: Path) -> None:
    for name, content in (("a.tar", b""), ("b.tar", b"hello" * 1000), ("c.tar.gz", b"\x1f\x8b" + bytes(100))):
        (tmp_path / name).write_bytes(content)
    shard(tmp_path / "good.tar", 2)
    assert len(readable(tmp_path, tmp_path / "bad.txt")) == 2
    lines = (tmp_path / "bad.txt").read_text().splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        [str(tmp_path / name), "the shard breaks after 0 samples"] for name in ("a.tar", "b.tar", "c.tar.gz")
    ]


def test_any_damage_is_counted_and_never_a_crash(tmp_path: Path) -> None:
    whole = bytearray(shard(tmp_path / "x.tar", 4).read_bytes())
    order = random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(order.choice((1, 3, 50))):
            damaged[order.randrange(len(damaged))] = order.randrange(256)
        (tmp_path / "x.tar").write_bytes(damaged[: order.choice((None, order.randrange(1, len(damaged))))])
        try:
            assert len(readable(tmp_path / "x.tar")) <= 4
        except CorruptInputError as error:
            assert "has no readable sample" in error.what


def test_compressed_shards_and_unique_keys(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        files = [file for n in range(3) for file in pair(f"{n}", n)]
        write_tar(tmp_path / folder / "0.tar.gz", files, "w:gz")
    assert [sample.key for sample in readable(tmp_path / "a")] == ["0/0", "0/1", "0/2"]
    keys = [sample.key for sample in readable(tmp_path / "{a,b}")]
    assert keys == [f"{shard_name}/{n}" for shard_name in ("00000-0", "00001-0") for n in range(3)]


def test_pipes_and_stdin(tmp_path: Path) -> None:
    path = shkey(shard(tmp_path / "x.tar", 5))
    assert [sample.key for sample in readable(f"pipe:cat {path}", bad=0)] == [f"stream-00000/{n:06d}" for n in range(5)]
    assert next(iter(read(f"pipe:cat {path} && cat /dev/zero", max_bad_fraction=0))).captions == ("number 0",)
    code = "from mmcompress.data.batches import count; print(count('-'))"
    with (tmp_path / "x.tar").open("rb") as stdin:
        done = subprocess.run([sys.executable, "-c", code], stdin=stdin, capture_output=True, text=True, check=True)
    assert done.stdout == "5\n"


def shkey(path: Path) -> str:
    return shlex.quote(str(path))


def test_a_program_that_fails_is_a_broken_shard(tmp_path: Path) -> None:
    path = shkey(shard(tmp_path / "x.tar", 5))
    found = readable(f"pipe:cat {path}; exit 7", tmp_path / "bad.txt")
    assert len(found) == 4  # the last one might have been cut short
    said = (tmp_path / "bad.txt").read_text()
    assert "its program failed with exit 7" in said and "shell" not in said


@pytest.mark.parametrize("cut", ["exit 7", "head -c 1500 {path}; exit 7", "head -c 700 {path}; exit 7"])
def test_a_program_that_fails_early_says_so(tmp_path: Path, cut: str) -> None:
    """And not that its tar ends too early."""
    program = cut.format(path=shkey(shard(tmp_path / "x.tar", 5)))
    with pytest.raises(CorruptInputError, match="its program failed with exit 7"):
        readable(f"pipe:{program}", bad=0)


def test_a_program_that_ends_well_with_half_a_tar_is_a_broken_shard(tmp_path: Path) -> None:
    path = shkey(shard(tmp_path / "x.tar", 5))
    with pytest.raises(CorruptInputError, match="unexpected end of data"):
        readable(f"pipe:head -c 1500 {path}", bad=0)


def test_too_many_bad_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [file for n in range(20) for file in pair(f"{n:02d}", n, None if n in (3, 5) else "x")]
    path, log = write_tar(tmp_path / "x.tar", files), tmp_path / "bad.txt"
    assert len(readable(path, log, bad=0.1)) == 18
    words = "no caption (txt, or captions or caption in json) among: jpg"
    said = f"2 of 20 items cannot be read and were skipped: {path}: 03: {words}; {path}: 05: {words}"
    assert capsys.readouterr().err.strip() == f"warning: {path}: {said} (all of them in {log})"
    with pytest.raises(CorruptInputError) as caught:
        readable(path, log, bad=0.05)
    found = f"{path}: 2 of 20 items cannot be read, more than 5%: {path}: 03: {words}; {path}: 05: {words}"
    assert caught.value.what == found
    assert (
        caught.value.hint == f"{log} names all of them; mend or remove them, or allow more with data.max_bad_fraction"
    )
    assert caught.value.exit_code == 4
    with pytest.raises(CorruptInputError, match="2 of 20 items"):
        count(str(path))
    assert count(str(path), 0.1) == 18
    assert capsys.readouterr().err == ""


def test_a_long_bad_data_set_stops_early(tmp_path: Path) -> None:
    files = [(f"{n}.txt", b"x") for n in range(1500)]
    path = write_tar(tmp_path / "x.tar", [*pair("good"), *files])
    with pytest.raises(CorruptInputError, match=r"999 of the first 1000 items cannot be read, more than 50%.*; …$"):
        readable(path, bad=0.5)


def test_no_sample_at_all(tmp_path: Path) -> None:
    empty = write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(CorruptInputError) as caught:
        readable(empty)
    assert caught.value.what == f"{empty} has no readable sample; nothing in it is one"
    assert "a sample of a shard is KEY.jpg" in caught.value.hint and "mend" not in caught.value.hint
    all_bad = write_tar(tmp_path / "bad.tar", [*pair("a", caption=None), *pair("b", caption=None)])
    with pytest.raises(
        CorruptInputError, match=r"has no readable sample; 2 of 2 items cannot be read: .*/bad.tar: a: no cap"
    ):
        readable(all_bad)
    with pytest.raises(UsageError, match=r"there is no nowhere\.tar"):
        read("nowhere.tar")  # at once, not at the first sample


def table(folder: Path, *lines: str) -> Path:
    (folder / "captions.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_table(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for n in range(3):
        (tmp_path / "pictures" / f"{n}.jpg").write_bytes(picture(n))
    lines = (
        "image\tcaption\tlabel\tseen\tother",
        'pictures/0.jpg\tsaid "so\tcat\t\tx',
        "pictures/1.jpg\tsecond\tdog\tfalse\tx\tmore",
        "",
        "pictures/0.jpg\tsaid again\tcat\ttrue\tx",
        "pictures/2.jpg\t行分隔符\u2028在内",
    )
    zero, first, second = readable(table(tmp_path, *lines), bad=0)
    assert zero == Sample("pictures/0.jpg", picture(0), ('said "so', "said again"), "cat", True)
    assert (first.captions, first.label, first.seen) == (("second",), "dog", False)
    assert (second.captions, second.label, second.seen) == (("行分隔符\u2028在内",), None, True)
    assert readable(tmp_path / "captions.tsv") == [zero, first, second]


def test_table_errors(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for outside in (tmp_path / "secret.jpg", folder / "good.jpg"):
        outside.write_bytes(picture())
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "cut.jpg").write_bytes(picture()[:100])
    rows = (
        "good.jpg\tx",
        "../secret.jpg\tx",
        f"{tmp_path}/secret.jpg\tx",
        "link.jpg\tx",
        "none.jpg\tx",
        ".\tx",
        "cut.jpg\tx",
        f"good.jpg \t{'x' * (2**20 + 1)}",
    )
    found = readable(table(folder, "image\tcaption", *rows, "good2.jpg", "nul\0.jpg\tx"), tmp_path / "bad.txt")
    assert [sample.key for sample in found] == ["good.jpg"]
    outside_of = "the image lies outside of the folder of the table"
    reasons = [line.rpartition(": ")[2] for line in (tmp_path / "bad.txt").read_text().splitlines()]
    missing = "there is no such image"
    long = "a caption has more than 1,048,576 characters"
    assert reasons[:8] == [outside_of] * 3 + [missing] * 2 + ["the JPEG is truncated", long, "no caption"]
    assert len(reasons) == 9
    table(folder, "file\ttext", "good.jpg\tx")
    with pytest.raises(UsageError) as caught:
        readable(folder)
    assert caught.value.what == f"{folder}/captions.tsv has the columns file, text"
    assert "`image` and `caption` among them" in caught.value.hint
    (folder / "captions.tsv").write_bytes(b"image\tcaption\n\xff\tx\n")
    with pytest.raises(CorruptInputError, match=r"captions.tsv is not UTF-8"):
        readable(folder)


def test_json_of_the_demo_is_read_whole() -> None:
    with tarfile.open(demo_val()[0]) as archive:
        files = {info.name: archive.extractfile(info) for info in archive}
        about = {name[:-5]: json.load(file) for name, file in files.items() if name.endswith(".json") and file}
    for sample in readable("demo:val", bad=0):
        expected = about[sample.key.removeprefix("val-00000/")]
        assert (list(sample.captions), sample.label, sample.seen) == (
            expected["captions"],
            expected["label"],
            expected["seen"],
        )
