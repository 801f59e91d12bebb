"""Everything that can be known is refused before anything is embedded, by commands and by recipes alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clip_world import write_squares, write_teacher

from mmcompress.artifact import Artifact
from mmcompress.compress.early import check_same_teacher
from mmcompress.errors import MMCompressError, UsageError
from mmcompress.manifest import Kind
from mmcompress.pipeline import run, standalone

OWN = "def build(): raise SystemExit('it ran')\n"


def no_stage(*_: object) -> None:
    raise AssertionError("a stage ran")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run, "_made_or_reused", no_stage)
    write_squares(tmp_path)
    write_teacher(tmp_path / "teacher")
    write_teacher(tmp_path / "bare")
    for file in (tmp_path / "bare").glob("tokenizer*"):
        file.unlink()
    config = json.loads((write_teacher(tmp_path / "other") / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "model_type": "siglip2"}))
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


MISTAKES = [
    ("teacher", {"student.source": "vit-s61"}, "unknown student 'vit-s61'"),
    ("teacher", {"student.source": "vit-s16", "student.image_size": 100}, "image_size 100 is not a multiple"),
    ("teacher", {"student.source": "vit-s16", "student.image_size": 0}, "image_size 0 is not a multiple"),
    ("teacher", {"student.source": "inherit:1.5"}, "above 0 and up to 1"),
    ("teacher", {"student.source": "inherit:0.001"}, "too small to inherit"),
    ("none", {"student.source": "vit-s16"}, "no teacher folder"),
    ("other", {"student.source": "vit-s16"}, "NaFlex"),
    ("own.py:build", {"student.source": "vit-s16"}, "no Hugging Face folder to take a tokenizer from"),
    ("own.py:bild", {"student.source": "vit-s16"}, "has no function 'bild'"),
]


@pytest.mark.parametrize(("teacher", "keys", "what"), MISTAKES)
def test_a_command_refuses_before_it_embeds(world: Path, teacher: str, keys: dict[str, object], what: str) -> None:
    given = {"teacher.source": str(world / teacher), "data.train": str(world / "squares-00000.tar"), **keys}
    with pytest.raises(MMCompressError, match=what):
        standalone.distill(world / "out", given)


@pytest.mark.parametrize(("teacher", "keys", "what"), MISTAKES)
def test_a_recipe_refuses_before_its_first_stage(world: Path, teacher: str, keys: dict[str, object], what: str) -> None:
    lines = [f"{key.removeprefix('student.')} = {json.dumps(value)}" for key, value in keys.items()]
    recipe = world / "recipe.toml"
    recipe.write_text(
        f'[data]\ntrain = "{world / "squares-00000.tar"}"\n[teacher]\nsource = "{world / teacher}"\n'
        + "\n".join(["[student]", *lines, "[[stage]]", 'run = "embed"', "[[stage]]", 'run = "distill"', ""])
    )
    with pytest.raises(MMCompressError, match=what):
        standalone.run(str(recipe), world / "run")


def test_training_begins_with_a_preset(world: Path) -> None:
    recipe = world / "recipe.toml"
    recipe.write_text(f'[data]\ntrain = "{world / "squares-00000.tar"}"\n[[stage]]\nrun = "train"\n')
    for student, what in (("vit-s61", "unknown student"), ("inherit:0.5", "inherits from no teacher")):
        with pytest.raises(UsageError, match=what):
            standalone.train(str(recipe), world / "out", {"student.source": student})


def test_embeddings_of_another_teacher_are_refused(tmp_path: Path) -> None:
    write_teacher(tmp_path / "a")
    write_teacher(tmp_path / "b", 1)
    config = {"teacher": {"source": str(tmp_path / "a")}}
    with Artifact.create(tmp_path / "e", kind=Kind.EMBEDDINGS, stage="embed", key="k", config=config) as draft:
        (draft.path / "x").write_bytes(b"1")
    cached = Artifact.open(tmp_path / "e")
    check_same_teacher(str(tmp_path / "a"), cached)
    check_same_teacher(f"{tmp_path}/b/../a", cached)
    given = {"teacher.source": str(tmp_path / "b"), "student.source": "vit-s16", "data.train": "x.tar"}
    with pytest.raises(UsageError) as caught:
        standalone.distill(tmp_path / "o", given, embeddings=tmp_path / "e")
    assert str(tmp_path / "a") in caught.value.what and str(tmp_path / "b") in caught.value.what
    with Artifact.create(tmp_path / "c", kind=Kind.CHECKPOINT, stage="distill", key="k") as draft:
        (draft.path / "x").write_bytes(b"1")
    with pytest.raises(UsageError, match="has nothing to do here"):
        standalone.prune(
            tmp_path / "c", tmp_path / "o", {"teacher.source": str(tmp_path / "b")}, embeddings=tmp_path / "e"
        )
