"""Loose pairs into shards, and what a set is like: against tarfile, numpy, and counts by hand."""

from __future__ import annotations

import csv
import json
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards import picture, write_tar

from mmcompress.artifact import Artifact
from mmcompress.data.batches import read
from mmcompress.data.loose import _database
from mmcompress.data.packing import pack
from mmcompress.data.stats import percentile, script_of, stats
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import Kind


def beside(folder: Path) -> Path:
    """Five good images in two folders, of them one with several captions, and two that are damaged."""
    (folder / "in").mkdir(parents=True)
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(picture(number))
        (folder / f"{number}.txt").write_text(f"number {number}")
    (folder / "in" / "ä.PNG").write_bytes(picture(7, kind="PNG"))
    (folder / "in" / "ä.json").write_text(json.dumps({"captions": ["one", "two"], "label": "letter"}))
    (folder / "bare.jpg").write_bytes(picture(8))
    (folder / "cut.jpg").write_bytes(picture(9)[:200])
    (folder / "cut.txt").write_text("cut")
    return folder


def samples_of(spec: Path) -> list[tuple[bytes, tuple[str, ...], str | None]]:
    return [(sample.image, sample.captions, sample.label) for sample in read(str(spec))]


def test_captions_beside_images_become_shards(tmp_path: Path) -> None:
    made = pack(beside(tmp_path / "loose"), tmp_path / "shards", a_shard=2, max_bad_fraction=0.5)
    assert made.manifest.kind is Kind.SHARDS
    assert made.manifest.facts == {"samples": 5, "captions": 6, "shards": 3, "damaged": 2}
    expected = [(picture(n), (f"number {n}",), None) for n in range(4)]
    assert samples_of(made.path) == [*expected, (picture(7, kind="PNG"), ("one", "two"), "letter")]
    again = pack(tmp_path / "loose", tmp_path / "again", a_shard=2, max_bad_fraction=0.5)
    assert again.manifest.files == made.manifest.files, "the same bytes"
    with tarfile.open(made.path / "00002.tar") as tar:
        assert tar.getnames() == ["000000004.png", "000000004.txt", "000000004.json"]
        assert {(info.mtime, info.uid, info.mode) for info in tar} == {(0, 0, 0o644)}
        image, text, about = (tar.extractfile(info).read() for info in tar)  # type: ignore[union-attr]
    assert (image, text) == (picture(7, kind="PNG"), b"one")
    assert json.loads(about) == {"captions": ["one", "two"], "origin": "in/ä.PNG", "label": "letter"}


def test_damage_is_limited_and_nothing_half_is_left(tmp_path: Path) -> None:
    with pytest.raises(CorruptInputError, match=r"2 of 7 items cannot be read, more than 5%") as error:
        pack(beside(tmp_path / "loose"), tmp_path / "shards")
    assert "allow more with --max-bad-fraction" in error.value.hint
    assert {path.name for path in tmp_path.iterdir()} == {"loose"}


def test_folders_above_shards_that_were_not_made_go_again(tmp_path: Path) -> None:
    (source := beside(tmp_path / "source")).joinpath("a.jpg").write_bytes(b"no image")
    with pytest.raises(CorruptInputError):
        pack(source, tmp_path / "new/er/out", max_bad_fraction=0.0)
    assert not (tmp_path / "new").exists()


def test_class_folders_become_shards(tmp_path: Path) -> None:
    for label in ("dog", "cat"):
        (tmp_path / "classes" / label).mkdir(parents=True)
        (tmp_path / "classes" / label / "1.jpg").write_bytes(picture(len(label) + ord(label[0])))
    made = pack(tmp_path / "classes", tmp_path / "shards")
    assert samples_of(made.path) == samples_of(tmp_path / "classes")


@pytest.mark.parametrize(
    ("name", "header"), [("pairs.csv", ("filepath", "title")), ("pairs.tsv", ("image", "caption"))]
)
def test_tables_become_shards(tmp_path: Path, name: str, header: tuple[str, str]) -> None:
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(picture(number))
    rows = [("images/2.jpg", "two, three"), ("images/0.jpg", "zero"), ("images/2.jpg", "zwei"), ("images/9.jpg", "no")]
    rows.append((str(tmp_path / "images" / "1.jpg"), "one"))
    with (tmp_path / name).open("w", newline="") as stream:
        csv.writer(stream, delimiter="," if name.endswith("csv") else "\t").writerows([header, *rows])
    made = pack(tmp_path / name, tmp_path / "shards", max_bad_fraction=0.3)
    assert samples_of(made.path) == [
        (picture(2), ("two, three", "zwei"), None),
        (picture(0), ("zero",), None),
        (picture(1), ("one",), None),
    ]
    assert made.manifest.facts["damaged"] == 1


def test_a_table_of_any_length_is_sorted_in_the_same_memory(tmp_path: Path) -> None:
    """SQLite's own count of what it holds, with 100,000 rows put into order."""
    with closing(_database(tmp_path)) as rows:
        named = ((f"images/{number:08d}.png", f"a sentence about {number}", "") for number in range(100_000))
        rows.executemany("INSERT INTO row (image, caption, label) VALUES (?, ?, ?)", named)
        assert 1024 * rows.execute("PRAGMA cache_size").fetchone()[0] == -(2**22), "4 MB"
        size = rows.execute("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()").fetchone()[0]
        assert size > 2**22, "more than it holds"


def test_what_cannot_be_packed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(picture())
    (tmp_path / "packed").mkdir()
    write_tar(tmp_path / "packed" / "0.tar", [])
    (tmp_path / "bad.csv").write_text("url,caption\n")
    (tmp_path / "latin.csv").write_bytes("image,caption\na.jpg,ä\n".encode("latin-1"))
    (tmp_path / "open.csv").write_text('image,caption\nphotos/a.jpg,one\nphotos/a.jpg,"two\nphotos/a.jpg,three\n')
    cases: list[tuple[type[Exception], str, str]] = [
        (CorruptInputError, "open.csv", "cannot be read as a table: unexpected end of data"),
        (UsageError, "photos", "has a caption beside it"),
        (UsageError, "packed", "is packed already"),
        (UsageError, "bad.csv", "has the columns url, caption"),
        (UsageError, "nothing.csv", "there is no"),
        (UsageError, "photos/a.jpg", "neither a folder nor a table"),
        (CorruptInputError, "latin.csv", "is not UTF-8"),
    ]
    for kind, source, words in cases:
        with pytest.raises(kind, match=words):
            pack(tmp_path / source, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_shards_are_an_artifact(tmp_path: Path, cli: Callable[..., Any]) -> None:
    assert cli("data", "pack", beside(tmp_path / "loose"), "--out", tmp_path / "s", "--max-bad-fraction", 0.5).code == 0
    document = json.loads(cli("data", "stats", tmp_path / "s", "--json").out)
    assert document["samples"] == 5 and document["formats"] == {"JPEG": 4, "PNG": 1}
    assert "median" in cli("data", "stats", tmp_path / "s").out
    place = tmp_path / "s" / "00000.tar"
    content = bytearray(place.read_bytes())
    content[600] ^= 1
    place.write_bytes(content)
    with pytest.raises(CorruptInputError, match=r"00000\.tar is damaged"):
        Artifact.open(tmp_path / "s")
    (tmp_path / "s" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds 'notes\.txt'"):
        pack(tmp_path / "loose", tmp_path / "s", max_bad_fraction=0.5)


def test_stats_are_those_of_numpy(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    sizes = draw.integers(8, 90, (60, 2)).tolist()
    captions = ["a dog " * (1 + n % 7) if n % 3 else "树枝上的鸟" for n in range(60)]
    files = [
        file
        for n, ((width, height), caption) in enumerate(zip(sizes, captions, strict=True))
        for file in ((f"{n}.jpg", picture(n, (width, height))), (f"{n}.txt", caption.encode()))
    ]
    files += [("cut.jpg", picture(1)[:99]), ("cut.txt", b"x"), ("bare.jpg", picture(2))]
    found = stats(str(write_tar(tmp_path / "0.tar", files)))
    assert (found.samples, found.captions, found.damaged) == (60, 60, 2)
    assert sorted(found.damage.values()) == [1, 1] and "the JPEG is truncated" in found.damage
    assert found.scripts == {"Latin": 40, "Han": 20}
    for figure, values in (
        ("width", [width for width, _ in sizes]),
        ("aspect", [round(width / height, 2) for width, height in sizes]),
        ("caption_characters", [len(caption.strip()) for caption in captions]),
    ):
        expected = np.percentile(values, [0, 5, 50, 95, 100], method="inverted_cdf")
        assert list(found.percentiles[figure].values()) == pytest.approx(expected.tolist())


def test_languages_are_told_of_sentences(tmp_path: Path) -> None:
    pytest.importorskip("py3langid")
    captions = ["a dog runs through the snow", "ein Hund läuft durch den Schnee", "树枝上的鸟", "a dog"]
    files = [f for n, said in enumerate(captions) for f in ((f"{n}.jpg", picture(n)), (f"{n}.txt", said.encode()))]
    found = stats(str(write_tar(tmp_path / "0.tar", files)))
    assert found.languages == {"en": 1, "de": 1, "zh": 1, "too short": 1}


def test_without_a_package_languages_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    found = stats(str(write_tar(tmp_path / "0.tar", [("0.jpg", picture()), ("0.txt", b"a dog in the snow")])))
    assert found.languages is None and found.scripts == {"Latin": 1}


def test_scripts_and_percentiles() -> None:
    said = {
        "a dog": "Latin",
        "собака": "Cyrillic",
        "いぬ": "Kana",
        "개": "Hangul",
        "1, 2!": "no letters",
        "كلب": "Arabic",
    }
    assert {text: script_of(text) for text in said} == said
    assert [percentile(Counter({1.0: 1, 2.0: 98, 9.0: 1}), at) for at in (0, 5, 50, 100)] == [1, 2, 2, 9]
