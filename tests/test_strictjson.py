"""Python's own json is the reference for what is finite; NaN and infinity are refused both ways, by their key."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from mmcompress.artifact import Artifact, read_manifest
from mmcompress.errors import CorruptInputError, MMCompressError
from mmcompress.manifest import Kind
from mmcompress.measure.bench.document import BenchDocument
from mmcompress.pipeline.recipe import parse_assignments
from mmcompress.runtime.tokenize import load_tokenizer
from mmcompress.sidefiles import check_side_files
from mmcompress.strictjson import json_from_text, read_json, text_from_json, write_json

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("value", [None, 1.5, "é", [1, (2.0, None)], {"b": {"c": [1e308]}, "a": True}])
def test_what_is_finite_is_written_as_python_does(value: Any, tmp_path: Path) -> None:
    plain = json.loads(json.dumps(value))
    for text in (text_from_json(value), text_from_json(value, indent=1), text_from_json(value, compact=True)):
        assert json.loads(text) == plain
    assert text_from_json(value, canonical=True) == json.dumps(value, sort_keys=True, separators=(",", ":"))
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json", "") == plain


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_the_key_of_a_number_that_is_none_is_named(number: float) -> None:
    with pytest.raises(CorruptInputError, match=rf"^rows\.1\.ci95\.0 is {number}, ") as caught:
        text_from_json({"rows": [{"top1": 0.5}, {"ci95": (number, 1.0)}]})
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("text", ["NaN", '{"a": Infinity}', "[-Infinity]", "1e999", "[" * 100_000, "", "{"])
def test_what_is_no_number_is_not_read(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r".+"):
        json_from_text(text)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CorruptInputError, match=r"a\.json is no JSON: ") as caught:
        read_json(tmp_path / "a.json", "measure it again")
    assert caught.value.hint == "measure it again"


def test_whole_numbers_are_read_as_long_as_a_float_holds_them() -> None:
    assert json_from_text(str(10**30)) == 10**30
    with pytest.raises(ValueError, match="a whole number of 401 digits"):
        json_from_text(str(10**400))


@pytest.mark.parametrize("part", ["facts", "metrics"])
def test_an_artifact_does_not_hide_it_as_null(part: str, tmp_path: Path) -> None:
    creating = Artifact.create(tmp_path / "a", kind=Kind.REPORT, stage="bench", key="k")
    with pytest.raises(MMCompressError, match=rf"^{part}\.loss is nan"), creating as draft:
        setattr(draft, part, {"loss": math.nan})
    assert not list(tmp_path.iterdir())


def test_what_is_larger_than_any_of_its_kind_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate((16 << 20) + 1)
    (tmp_path / "tokenizer.json").write_bytes(path.read_bytes())
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it was read"))
    said = r"config\.json has 16,777,217 bytes, and none of its kind has more than 16,777,216"
    for read in (
        lambda: read_json(path, ""),
        lambda: BenchDocument.read(path),
        lambda: read_manifest(path),
        lambda: check_side_files(tmp_path),
    ):
        with pytest.raises(CorruptInputError, match=said):
            read()
    path.unlink()
    check_side_files(tmp_path)
    os.truncate(tmp_path / "tokenizer.json", (64 << 20) + 1)
    for read in (lambda: load_tokenizer(tmp_path / "tokenizer.json"), lambda: check_side_files(tmp_path)):
        with pytest.raises(CorruptInputError, match=r"tokenizer\.json has 67,108,865 bytes"):
            read()


def test_a_setting_is_checked_by_its_config() -> None:
    assert parse_assignments(["a=NaN", "b=1e999", "c=0.5"]) == {"a": "NaN", "b": "1e999", "c": 0.5}


def test_no_other_module_writes_json() -> None:
    folders = [ROOT / name for name in ("src", "compress", "export", "measure", "runtime")]
    using = {
        file.relative_to(ROOT).as_posix()
        for folder in folders
        for file in folder.rglob("*.py")
        if "import json\n" in file.read_text(encoding="utf-8")
    }
    assert using - {"src/mmcompress/strictjson.py"} == {"src/mmcompress/data/parsing.py"}
