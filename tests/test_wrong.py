"""The sentence of the first mistake that pydantic finds: one form for files, facts, recipes and foreign values."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mmcompress.artifact import Artifact
from mmcompress.compress.train.chunks import CONTENTS, contents_of
from mmcompress.config import PruneConfig, validated
from mmcompress.document import Document
from mmcompress.errors import CorruptInputError, MMCompressError
from mmcompress.foreign import said
from mmcompress.manifest import Kind, Manifest
from mmcompress.runtime.passport import PASSPORTS, stated_passport
from mmcompress.seen import SEEN, seen_pairs
from mmcompress.wrong import first_wrong


class Note(Document):
    """A document."""

    count: int
    """Of what it is a note."""


def of_file(tmp_path: Path, values: dict[str, Any]) -> Note:
    (tmp_path / "it").write_text(json.dumps(values))
    return Note.read(tmp_path / "it")


def of_manifest(tmp_path: Path, values: dict[str, Any]) -> Manifest:
    made = with_facts(tmp_path, {}).path / "manifest.json"
    body = json.loads(made.read_text())
    for key in {"count"} & values.keys():
        body |= {"name": values[key]}
    if "count" not in values:
        del body["name"]
    made.write_text(json.dumps({**body, **{key: value for key, value in values.items() if key != "count"}}))
    return Artifact.open(made.parent).manifest


def of_recipe(_: Path, values: dict[str, Any]) -> object:
    renamed = {{"count": "mlp"}.get(key, key): value for key, value in values.items()}
    return validated(PruneConfig, {"data": {}, **renamed}, "it")


def with_facts(folder: Path, facts: dict[str, Any], kind: Kind = Kind.CHECKPOINT) -> Artifact:
    with Artifact.create(folder / "made", kind=kind, stage="distill", key="k") as draft:
        draft.facts = facts
    return Artifact.open(folder / "made")


@pytest.mark.parametrize("door", [of_file, of_manifest, of_recipe])
@pytest.mark.parametrize(
    ("values", "form"),
    [({"count": ["x" * 99]}, r" is \['x{58}…: Input should be "), ({"count": 1, "x": {}}, r" has an unknown key 'x'")],
)
def test_every_door_says_it_in_one_form(
    tmp_path: Path, door: Callable[[Path, dict[str, Any]], object], values: dict[str, Any], form: str
) -> None:
    if door is of_manifest:
        values = {**values, "count": values["count"] if isinstance(values["count"], list) else "name"}
    with pytest.raises(MMCompressError, match=f"(it|manifest\\.json)(: (count|name|mlp))?{form}") as caught:
        door(tmp_path, values)
    assert "\n" not in caught.value.what and "Value error" not in caught.value.what


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    for door, key in ((of_file, "count"), (of_manifest, "name")):
        with pytest.raises(CorruptInputError, match=rf"(it|manifest\.json) has no '{key}'"):
            door(tmp_path, {})


def test_values_of_other_people_are_said_alike() -> None:
    with pytest.raises(ValidationError) as caught:
        Note.model_validate({"count": "many"})
    assert said(caught.value).startswith("ValidationError: Note: count is 'many': Input should be a valid integer")


def test_of_very_many_mistakes_none_is_looked_for() -> None:
    many = {f"f{number}": {} for number in range(20_000)}
    with pytest.raises(ValidationError) as caught:
        Manifest.model_validate({"files": many})
    began = time.process_time()
    assert str(first_wrong(caught.value)) == ": it is wrong in 40,006 places"
    assert str(first_wrong(caught.value, "a", "b")) == ": a.b is wrong in 40,006 places"
    assert time.process_time() - began < 0.05


@pytest.mark.parametrize(
    "stated",
    ["no", 7, {"image.engine": 1}, {"image.engine": {"built_on": {"backend": "tensorrt"}}}, {"image.engine": {"x": 1}}],
)
def test_a_passport_that_is_none_is_refused(make_artifact: Callable[..., Artifact], stated: object) -> None:
    made = make_artifact("engine", kind=Kind.ENGINE, facts={PASSPORTS: stated}).manifest
    graph = made.graphs[0].model_copy(update={"file": "image.engine"})
    with pytest.raises(CorruptInputError, match=r"^the passport of image\.engine"):
        stated_passport(made, graph)


def test_a_backend_that_is_none_is_refused(make_artifact: Callable[..., Artifact]) -> None:
    facts = {"backend": "abacus", "tensorrt_version": "10"}
    made = make_artifact("engine", kind=Kind.ENGINE, facts=facts, targets=("sm86",)).manifest
    with pytest.raises(CorruptInputError, match=r"backend is 'abacus': Input should be "):
        stated_passport(made, made.graphs[0])


def test_what_a_calibration_has_seen_is_held_to_its_kind(tmp_path: Path) -> None:
    made = with_facts(tmp_path, {SEEN: {"count": []}})
    with pytest.raises(CorruptInputError, match=r"manifest\.json.* 'facts\.seen\.|manifest\.json: facts\.seen\."):
        seen_pairs(made)


def test_a_list_of_shards_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    for content in ("{", '{"shards": 1}', "[]"):
        (tmp_path / CONTENTS).write_text(content)
        with pytest.raises(CorruptInputError, match=CONTENTS) as caught:
            contents_of(tmp_path)
        assert "\n" not in caught.value.what
