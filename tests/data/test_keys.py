"""Images and captions under other names: every reader takes the same keys, and messages name the option that mends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shards import picture, write_tar

from mmcompress.config import DataConfig, validated, what_counts
from mmcompress.data.batches import count, read
from mmcompress.data.fingerprint import fingerprint
from mmcompress.data.indexing import index_data
from mmcompress.data.sections import digest_of, sections
from mmcompress.data.spec import is_stream
from mmcompress.data.tally import Tally
from mmcompress.datakeys import Keys, keys_of, with_keys
from mmcompress.errors import UsageError
from mmcompress.pipeline.recipe import parse_assignments, recipe_of, stage_config


def shard(path: Path, **kinds: str) -> Path:
    """Four samples with an image of the kind `image`, and what else is said: kinds of files with their texts."""
    image = kinds.pop("image")
    files = [
        (f"{i}.{kind}", picture(i) if kind == image else kinds[kind].replace("#", str(i)).encode())
        for i in range(4)
        for kind in (image, *kinds)
    ]
    return write_tar(path, files)


def captions(spec: object) -> list[tuple[str, ...]]:
    return [sample.captions for sample in read(str(spec))]


def test_files_of_other_kinds_are_read_by_their_keys(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", image="image", caption="square #", txt="not a caption")
    assert captions(f"keys:image/caption:{path}") == [(f"square {i}",) for i in range(4)]
    assert captions(f"part:0-9/10:keys:image/caption:{path}") == captions(f"keys:image/caption:{path}")
    assert captions(f"keys:nothing,IMAGE:{path}") == [("not a caption",)] * 4, "captions as they are known"
    assert [sample.image for sample in read(f"keys:image:{path}")] == [picture(i) for i in range(4)]
    with pytest.raises(Exception, match=r"no caption \(alt or title\) among: caption, image, txt"):
        captions(f"keys:image/alt,title:{path}")


def test_names_in_json_and_several_keys(tmp_path: Path) -> None:
    about = json.dumps({"ALT": "alt #", "tags": ["one", "two"], "caption": "other"})
    path = shard(tmp_path / "a.tar", image="png", json=about)
    assert captions(f"keys:/alt,tags:{path}") == [(f"alt {i}", "one", "two") for i in range(4)]


def test_names_with_dots(tmp_path: Path) -> None:
    files = [(f"IMG.{i}.{end}", picture(i) if end == "JPG" else b"it") for i in range(60) for end in ("JPG", "txt")]
    path = write_tar(tmp_path / "a.tar", files)
    with pytest.raises(Exception, match="a dot too many") as told:
        captions(path)
    assert re.search(r"data\.image_keys=\*\.jpg'.*'keys:\*\.jpg:DATA'", told.value.hint)  # type: ignore[attr-defined]
    assert [sample.key for sample in read(f"keys:*.jpg:{path}")] == [f"a/IMG.{i}" for i in range(60)]


def test_columns_of_a_table(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(picture(number))
    (tmp_path / "captions.tsv").write_text("File\tAlt\tcaption\n0.jpg\ta zero\tx\n1.jpg\ta one\tx\n")
    assert captions(f"keys:file/alt:{tmp_path}") == [("a zero",), ("a one",)]
    with pytest.raises(UsageError, match="has the columns File, Alt, caption") as told:
        captions(tmp_path)
    assert "--set 'data.image_keys=COLUMN'" in told.value.hint


def test_what_is_known_of_a_set_depends_on_its_keys(tmp_path: Path) -> None:
    """Fingerprints, indices in the cache and embeddings of one shard, read in two ways, are not each other's."""
    path = shard(tmp_path / "a.tar", image="png", txt="text #", alt="alt #")
    plain, keyed = str(path), f"keys:/alt:{path}"
    assert fingerprint(plain) != fingerprint(keyed) == fingerprint(f"keys:/alt:{tmp_path}")
    assert captions(plain) != captions(keyed) == captions(keyed)
    assert index_data(keyed).shards[0].samples == count(keyed) == 4 and not index_data(plain).shards[0].made
    one, other = sections(plain)[0], sections(keyed)[0]
    assert digest_of(one, plain) != digest_of(other, keyed)
    assert [s.captions for s in other.listed(Tally("x", 0.0))] == captions(keyed)


def test_a_stream_stays_one() -> None:
    assert is_stream("keys:image:pipe:cat x") and is_stream("part:0-1/2:keys:image:-") and not is_stream("keys:image:x")


@pytest.mark.parametrize(
    "spec", ["keys:x", "keys::x", "keys:/:x", "keys:a b*/c:x", "keys:a/b/c:x", "keys:a:part:0-1/2:x"]
)
def test_what_says_no_keys_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="keys"):
        keys_of(spec)


def test_keys_of_a_config_become_a_part_of_its_specifications() -> None:
    values = {"train": "a.tar", "validation": "part:0-0/10:b.tar", "test": "demo:test", "image_keys": "image,png"}
    data = validated(DataConfig, {**values, "text_keys": ["caption"]}, "here")
    assert data.train == "keys:image,png/caption:a.tar"
    assert data.validation == "part:0-0/10:keys:image,png/caption:b.tar" and data.test == "demo:test"
    assert validated(DataConfig, data.model_dump(), "here") == data, "as a manifest records it"
    assert what_counts(data) == what_counts(validated(DataConfig, {}, "here")), "the fingerprint has them"
    assert with_keys("keys:a/b:x", (), ("c",)) == "keys:a/c:x", "what is said later wins"
    assert keys_of("keys:a/b:x") == (Keys(("a",), ("b",)), "x")
    with pytest.raises(UsageError, match=r"here: image_keys is 5: Input should be"):
        validated(DataConfig, {"image_keys": 5}, "here")
    with pytest.raises(UsageError, match="'a/b' is no key"):
        validated(DataConfig, {"train": "x", "image_keys": "a/b"}, "here")


def test_keys_of_a_recipe_and_its_overrides() -> None:
    tables: dict[str, Any] = {
        "data": {"train": "a.tar"},
        "teacher": {"source": "vit-b32"},
        "stage": [{"run": "embed"}],
    }
    recipe = recipe_of(tables, "here", parse_assignments(["data.image_keys=image", "data.text_keys=alt"]))
    assert stage_config(recipe, recipe.stages[0], "here").data.train == "keys:image/alt:a.tar"  # type: ignore[attr-defined]


def test_a_command_with_set_and_one_without(tmp_path: Path, cli: Callable[..., Any]) -> None:
    path = shard(tmp_path / "a.tar", image="image", caption="square #")
    refused = cli("embed", "--teacher", "demo:teacher", "--data", path, "--out", tmp_path / "e")
    assert refused.code == 4 and "no image (jpg, jpeg, png or webp) among: caption, image" in refused.err
    assert "--set 'data.image_keys=NAME', or in a command without --set 'keys:NAME:DATA'" in refused.err
    said = ("--set", "data.image_keys=image,png", "--data-text-keys", "caption")
    done = cli("embed", "--teacher", "demo:teacher", "--data", path, "--out", tmp_path / "e", *said)
    assert done.code == 0, done.err
    recorded = json.loads((tmp_path / "e" / "manifest.json").read_text())["config"]["data"]
    assert recorded["train"] == f"keys:image,png/caption:{path}"
    assert cli("data", "stats", f"keys:image/caption:{path}").out.startswith("4 samples with 4 captions")
    assert cli("data", "index", f"keys:image/caption:{path}").code == 0
