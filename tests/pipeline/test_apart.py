"""A small set is cut into parts that share no sample, so that what judges was not fitted to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from photos import write_photos

from mmcompress.data.batches import read
from mmcompress.errors import UsageError
from mmcompress.pipeline.apart import with_some_apart

Cli = Callable[..., Any]


@pytest.fixture
def photos(tmp_path: Path, coloured_squares: Path) -> Path:
    return write_photos(tmp_path / "photos", coloured_squares, 10)


def keys(spec: str) -> set[str]:
    return {sample.key for sample in read(spec)}


def test_what_a_verdict_reads_is_kept_from_the_calibration(photos: Path) -> None:
    said = with_some_apart({"data.train": str(photos), "backend": "openvino"}, {})
    fitted, judging = keys(said["data.train"]), keys(said["data.validation"])
    assert not fitted & judging and len(fitted | judging) == 320 and len(judging) > 40
    assert said["backend"] == "openvino"


def test_what_a_calibration_leaves_judges_as_it_is(photos: Path) -> None:
    for said in (
        {"data.train": str(photos), "quantize.samples": 256},
        {"data.train": str(photos), "data.validation": "demo:val"},
        {"data.train": "pipe:cat x.tar"},
    ):
        assert with_some_apart(said, {}) == said
    assert with_some_apart({}, {"train": str(photos)})["data.train"].startswith("part:2-9/10:")


def test_too_little_for_a_verdict_is_refused_before_anything_is_calibrated(
    cli: Cli, tmp_path: Path, photos: Path, coloured_squares: Path, tiny_clip_folder: Path
) -> None:
    done = cli("quantize", tiny_clip_folder, "--data", photos, "--verdict", "--out", tmp_path / "q")
    assert done.code == 2 and "too few samples to calibrate on 512 and to leave some for a verdict" in done.err
    assert f"--data part:2-9/10:{photos} --validation part:0-1/10:{photos}" in done.err
    done = cli("verdict", tiny_clip_folder, "--data", coloured_squares, "--out", tmp_path / "v")
    assert done.code == 2 and "has 32 samples, too few to keep some apart" in done.err
    assert not [*tmp_path.glob("q*"), *tmp_path.glob("v*")]
    with pytest.raises(UsageError, match="150 are needed"):
        with_some_apart({"data.train": str(coloured_squares)}, {})


def test_copies_of_one_photo_are_refused_before_anything_is_calibrated(tmp_path: Path, photos: Path) -> None:
    (copies := tmp_path / "copies").mkdir()
    image = next(photos.iterdir())
    for number in range(160):
        shutil.copyfile(image, copies / f"{number}.png")
    with pytest.raises(UsageError, match="has 1 different images in 160 samples"):
        with_some_apart({"data.train": str(copies)}, {})
