"""Names that no UTF-8 decodes, as photos of old systems have them, and names that are too long."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shards import picture

from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import TextProcessing
from mmcompress.measure.explain.picture import check_picture
from mmcompress.runtime.tokenize import load_tokenizer, tokenize
from mmcompress.strictjson import is_unicode, json_from_text, text_from_json

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")

Cli = Callable[..., Any]
LATIN = os.fsdecode(b"caf\xe9")
"""As ISO 8859-1 writes it."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(("plain", LATIN, "new\nline", "日本", "a b")):
        (folder / f"{name}.jpg").write_bytes(picture(number))
        (folder / f"{name}.txt").write_text("a caption")
    return folder


def test_photos_are_found_by_whatever_name(
    photos: Path, tmp_path: Path, cli: Cli, make_artifact: Callable[..., Any]
) -> None:
    model, index = make_artifact("toy").path, tmp_path / "index"
    for _ in range(2):  # the second finds them by what the first wrote
        done = cli("index", model, "--images", photos, "--out", index)
        assert done.code == 0, done.err
    done = cli("search", index, "cat", "--top", "9", "--json")
    assert done.code == 0, done.err
    found = {Path(match["image"]).stem for match in json.loads(done.out)}
    assert found == {path.stem for path in photos.glob("*.jpg")}
    assert cli("inspect", index).code == cli("search", index, "cat").code == 0


def test_photos_are_packed_by_whatever_name(photos: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("data", "pack", photos, "--out", tmp_path / "shards", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["facts"]["samples"] == 5
    assert cli("data", "stats", tmp_path / "shards").code == 0


def test_the_command_line_has_to_be_text(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be found out when a manifest is written, behind all the work."""
    monkeypatch.chdir(tmp_path)
    for words in (("convert", "demo:teacher", "--out", LATIN), ("search", "demo:teacher", LATIN, "--images", ".")):
        done = cli(*words)
        assert done.code == 2 and "on the command line has bytes that are no UTF-8" in done.err
        assert "Traceback" not in done.err and not list(tmp_path.iterdir())


def test_json_keeps_them_and_is_as_before_without() -> None:
    value = {"file": f"é/{LATIN}.jpg", "other": "é"}
    text = text_from_json(value)
    assert text.isascii() and json_from_text(text) == value
    assert text_from_json({"other": "é"}) == '{"other": "é"}'
    assert is_unicode("é日") and not is_unicode(LATIN)


def test_a_text_that_is_none_is_not_the_tokenizer_s_fault(make_artifact: Callable[..., Any]) -> None:
    """A folder of a class, say."""
    artifact = make_artifact("toy")
    processing: TextProcessing = artifact.manifest.tokenizer
    with pytest.raises(CorruptInputError, match="has bytes that are no UTF-8") as told:
        tokenize(load_tokenizer(artifact.file("tokenizer.json")), ["cat", LATIN], processing)
    assert "rename" in told.value.hint


def test_long_names_are_refused_before_the_work(tmp_path: Path, cli: Cli, make_artifact: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="has 254 bytes, and 224 are possible"):
        check_picture(tmp_path / f"{'n' * 250}.png", tmp_path / "image.png")
    artifact = make_artifact("toy").path
    done = cli("pack", artifact, "--out", tmp_path / ("n" * 250))
    assert done.code == 2 and "has 250 bytes, and 224 are possible" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
