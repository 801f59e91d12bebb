"""Photos of which nothing is said, and parts of a set that share no sample."""

from __future__ import annotations

from pathlib import Path

import pytest
from shards import SMALL, picture

from mmcompress.data.batches import batches, read
from mmcompress.data.fingerprint import fingerprint
from mmcompress.data.layout import class_names
from mmcompress.data.sentences import sentences
from mmcompress.data.spec import expand, is_photos, is_stream
from mmcompress.errors import UsageError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for index in range(40):
        place = folder / ("deep/2024" if index % 4 == 3 else ".") / f"{index:02d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture(index))
    (folder / "notes.txt").write_text("mine")
    (folder / ".hidden.jpg").write_bytes(picture())
    return folder


def test_every_image_at_any_depth_is_a_photo(photos: Path) -> None:
    assert len(expand(str(photos))) == 40 and is_photos(str(photos)) and class_names(str(photos)) is None
    found = list(read(str(photos)))
    assert len({sample.key for sample in found}) == 40
    assert all(sample.label is None and sample.captions[0] in sentences() for sample in found)
    assert is_photos(f"{photos}/*.jpg") and not is_photos("demo:train")
    assert sum(len(batch.keys) for batch in batches(str(photos), SMALL, batch=16, shuffle_seed=0)) == 40


def test_a_photo_that_is_none_is_skipped(photos: Path) -> None:
    (photos / "00.jpg").write_bytes(picture()[:200])
    assert len(list(read(str(photos)))) == 39


def test_folders_of_classes_stay_classes(photos: Path) -> None:
    for path in photos.glob("*.jpg"):
        path.unlink()
    assert class_names(str(photos)) == ["deep"] and not is_photos(str(photos))


def test_parts_are_disjoint_and_together_the_whole(photos: Path) -> None:
    whole = {sample.key for sample in read(str(photos))}
    first, rest = ({sample.key for sample in read(f"part:{bins}/4:{photos}")} for bins in ("0-0", "1-3"))
    assert first and rest and not first & rest and first | rest == whole
    shuffled = batches(f"part:0-0/4:{photos}", SMALL, batch=4, shuffle_seed=1)
    assert {key for batch in shuffled for key in batch.keys} == first


def test_a_part_is_known_by_its_content_and_its_bins(photos: Path) -> None:
    specs = [f"part:0-0/4:{photos}", f"part:1-3/4:{photos}", str(photos)]
    before = [fingerprint(spec) for spec in specs]
    assert len(set(before)) == 3
    (photos / "00.jpg").write_bytes(picture(99))
    assert not set(before) & {fingerprint(spec) for spec in specs}


def test_a_part_of_a_stream_is_a_stream() -> None:
    """What an artifact records is not run, however it is written."""
    assert is_stream("part:0-1/2:pipe:touch x") and is_stream("part:0-1/2:-") and not is_stream("part:0-1/2:demo:val")


@pytest.mark.parametrize("spec", ["part:3-1/4:x", "part:0-4/4:x", "part:0/4:x", "part:"])
def test_what_is_no_part_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="is no part of a data set"):
        expand(spec)
