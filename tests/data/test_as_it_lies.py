"""Data as it lies around: what works, and where it does not, what was found and what mends it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from shards import write_tar

from mmcompress.data.batches import read
from mmcompress.data.spec import expand
from mmcompress.errors import UsageError


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (20 * number, 90, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, *kinds: str, text: bytes = b"a square") -> Path:
    """Of four samples, with the files that kinds say."""
    files = [
        (f"p{i}.{kind}" if "{}" not in kind else kind.format(i), picture(i) if "png" in kind.lower() else text)
        for i in range(4)
        for kind in kinds
    ]
    return write_tar(path, files)


@pytest.mark.parametrize(
    ("kinds", "text", "found"),
    [
        (("PNG", "TXT"), b"a square", None),
        (("png", "json"), b'{"caption": "a square", "url": "x"}', None),
        (("png", "caption"), b"a square", "no caption (txt, or captions or caption in json) among: caption, png"),
        (("png", "json"), b'{"alt": "a square", "url": "x"}', "among: json, png; in json: alt, url"),
        (("image", "txt"), b"a square", "no image (jpg, jpeg, png or webp) among: image, txt"),
        (("p.{}.png", "p.{}.txt"), b"a square", "among: 0.png, 0.txt, 1.png, 1.txt, 2.png, 2.txt, 3.png, 3.txt; what"),
    ],
)
def test_files_of_other_names(
    tmp_path: Path, cli: Callable[..., Any], kinds: tuple[str, ...], text: bytes, found: str | None
) -> None:
    done = cli("data", "stats", shard(tmp_path / "a.tar", *kinds, text=text))
    if found is None:
        assert done.code == 0 and done.out.startswith("4 samples with 4 captions")
        return
    assert done.code == 4 and found in done.err, done.err
    assert "hint: a sample of a shard is KEY.jpg" in done.err and "mmcompress data pack DIR|TABLE" in done.err


def test_what_is_damaged_and_named_well_is_not_told_how_to_be_named(tmp_path: Path, cli: Callable[..., Any]) -> None:
    broken = write_tar(tmp_path / "a.tar", [("a.png", b"no picture"), ("a.txt", b"a square")])
    assert "hint: mend or remove them" in cli("data", "stats", broken).err


def test_an_empty_text_beside_a_json_that_has_one(tmp_path: Path) -> None:
    files = [("a.png", picture(0)), ("a.txt", b" "), ("a.json", json.dumps({"caption": "a square"}).encode())]
    (sample,) = read(str(write_tar(tmp_path / "a.tar", files)))
    assert sample.captions == ("a square",)


def test_a_gap_in_a_range_names_what_is_missing_and_the_pattern_of_the_rest(tmp_path: Path) -> None:
    for number in (0, 2):
        shard(tmp_path / f"s-{number:05d}.tar", "png", "txt")
    with pytest.raises(UsageError, match=r"of 4 places that .* names 2 are not there: .*s-00001.tar, ") as told:
        expand(f"{tmp_path}/s-{{00000..00003}}.tar")
    assert f"'{tmp_path}/s-*.tar'" in told.value.hint
    assert len(expand(f"{tmp_path}/s-*.tar")) == 2
    with pytest.raises(UsageError, match=r"there is no .*t-00000\.tar"):
        expand(f"{tmp_path}/t-{{00000..00003}}.tar")


@pytest.mark.parametrize("where", ["file", "folder"])
def test_parquet_where_shards_are_read_is_named_with_the_way(tmp_path: Path, where: str) -> None:
    table = tmp_path / "t.parquet"
    table.write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="is a Parquet table") as told:
        expand(str(table if where == "file" else tmp_path))
    assert f"mmcompress data pack {table if where == 'file' else tmp_path} --out SHARDS" in told.value.hint


def test_loose_files_with_dots_and_capitals(tmp_path: Path, cli: Callable[..., Any]) -> None:
    folder = tmp_path / "loose"
    folder.mkdir()
    for number in range(4):
        (folder / f"A.B{number}.PNG").write_bytes(picture(number))
        (folder / f"A.B{number}.TXT").write_text(f"square {number}")
    assert cli("data", "pack", folder, "--out", tmp_path / "packed").code == 0
    assert [sample.captions for sample in read(str(tmp_path / "packed"))] == [(f"square {i}",) for i in range(4)]
