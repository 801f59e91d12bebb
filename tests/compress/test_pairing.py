"""Teacher embeddings are paired with the very images and captions that they are of, whatever these are called."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from clip_world import CAPTIONS, write_teacher
from conftest import Outcome
from PIL import Image
from safetensors.torch import save_file
from shards import write_tar

from mmcompress.artifact import Artifact
from mmcompress.compress.train import pairs
from mmcompress.compress.train.embeddings import Embeddings, load_embeddings
from mmcompress.compress.train.pairs import paired
from mmcompress.data.sample import difference, mark_of
from mmcompress.errors import CorruptInputError
from mmcompress.manifest import Kind, Preprocessing
from mmcompress.pipeline import standalone

Cli = Callable[..., Outcome]
SQUARE = Preprocessing(size=32, resize=32, mean=(0.5,) * 3, std=(0.5,) * 3)
SAID = [[CAPTIONS[n], f"number {n}"] for n in range(16)]


def write(folder: Path, said: Sequence[Sequence[str]], blue: int = 0) -> str:
    """Squares that are numbered as img2dataset does, in the only shard of a folder."""
    folder.mkdir()
    files: list[tuple[str, bytes]] = []
    for n, captions in enumerate(said):
        buffer = io.BytesIO()
        Image.new("RGB", (40, 32), (10 * n, 90, blue)).save(buffer, "PNG")
        image = buffer.getvalue()
        files += [(f"{n:04d}.png", image), (f"{n:04d}.json", json.dumps({"captions": captions}).encode())]
    write_tar(folder / "00000.tar", files)
    return str(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    teacher = {"source": str(write_teacher(folder / "teacher"))}
    data = {"train": write(folder / "data", SAID), "workers": 2}
    standalone.embed(folder / "embeddings", {"teacher": teacher, "data": data, "batch": 8})
    return folder


@pytest.fixture
def embedded(world: Path) -> Embeddings:
    return load_embeddings(Artifact.open(world / "embeddings"))


@pytest.mark.parametrize(
    ("said", "blue", "what"),
    [
        (SAID, 200, "'00000/0000' is not the one whose teacher embedding is cached: it has another image"),
        ([*SAID[:3], SAID[3][::-1], *SAID[4:]], 0, "'00000/0003' is not the one .* it has other captions"),
        ([*SAID[:5], [*SAID[5], "more"], *SAID[6:]], 0, "'00000/0005' is not the one .* it has other captions"),
        ([*SAID[:5], ["one"], *SAID[6:]], 200, "'00000/0000' is not the one .*: it has another image"),
        ([*SAID, ["one more"]], 0, "'00000/0016' has no teacher embedding"),
    ],
)
def test_other_data_of_the_same_keys_is_refused(
    embedded: Embeddings, tmp_path: Path, said: list[list[str]], blue: int, what: str
) -> None:
    with pytest.raises(CorruptInputError, match=what):
        paired(write(tmp_path / "other", said, blue), 0.05, embedded, SQUARE)


def test_the_same_data_and_parts_of_it_are_taken(
    embedded: Embeddings, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert paired(write(tmp_path / "part", SAID[:9]), 0.05, embedded, SQUARE) == 9
    assert 0 < paired(f"part:0-1/3:{world / 'data'}", 0.05, embedded, SQUARE) < 16
    monkeypatch.setattr(pairs, "listing", None)  # what has the fingerprint need not be looked through
    (world / "data").rename(tmp_path / "moved")
    try:
        assert paired(str(tmp_path / "moved"), 0.05, embedded, SQUARE) == 16
        assert paired(f"pipe:cat {tmp_path}/moved/00000.tar", 0.05, embedded, SQUARE) == 16
    finally:
        (tmp_path / "moved").rename(world / "data")


def test_distill_ends_before_its_first_step(world: Path, tmp_path: Path, cli: Cli) -> None:
    other = write(tmp_path / "other", SAID, 200)
    asked = ("distill", "--embeddings", world / "embeddings", "--data", other, "--student", "inherit:0.8")
    done = cli(*asked, "--set", "optimizer.steps=2", "--set", "optimizer.batch=8", "--out", tmp_path / "student")
    assert done.code == 4 and "it has another image" in done.err and "embed the same data" in done.err
    assert not (tmp_path / "student").exists()


def test_data_of_others_is_refused_before_a_stage_begins(
    world: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "paired", None)
    other = write(tmp_path / "other", SAID, 200)
    student = standalone.convert(str(world / "teacher"), tmp_path / "converted", {})
    words = ("--embeddings", world / "embeddings", "--data", other, "--out", tmp_path / "out")
    for asked in (("prune", student.path, "--mlp", "0.5"), ("distill", "--student", "inherit:0.8")):
        done = cli(*asked, *words, "--batch" if asked[0] == "prune" else "--optimizer-batch", "8")
        assert done.code == 4 and "it has another image" in done.err and "(out)" not in done.err
        assert f"leave --data out: {world / 'embeddings'} is of {world / 'data'}" in done.err
        assert not (tmp_path / "out").exists()


def test_images_that_are_enlarged_for_a_student_are_told(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {}
    for side in (64, 32):
        student = {"student.source": "mnv4-s-64", "student.image_size": side, "student.width": 0.25}
        few = {"optimizer.steps": 1, "optimizer.batch": 8, "data.train": str(world / "data")}
        standalone.distill(tmp_path / str(side), student | few, embeddings=world / "embeddings")
        said[side] = " ".join(capsys.readouterr().err.split())
    assert "has 32 pixels a side or fewer, and the student takes 64: enlarged they show no more" in said[64]
    assert "at 4 times the work; give the student a smaller image_size" in said[64] and "pixels" not in said[32]
    recipe = f'[[stage]]\nrun = "train"\ndata.train = "{world / "data"}"\noptimizer = {{steps = 1, batch = 8}}\n'
    (tmp_path / "r.toml").write_text(recipe + 'student = {source = "mnv4-s-64", width = 0.25}\n')
    standalone.run(str(tmp_path / "r.toml"), tmp_path / "run")
    assert "and the student takes 64" in " ".join(capsys.readouterr().err.split())


def test_a_stream_is_checked_batch_by_batch(world: Path, tmp_path: Path, cli: Cli) -> None:
    other = write(tmp_path / "other", SAID, 200)
    asked = ("distill", "--embeddings", world / "embeddings", "--data", f"pipe:cat {other}/00000.tar")
    words = ("--student", "inherit:0.8", "--set", "optimizer.steps=2", "--set", "optimizer.batch=8")
    done = cli(*asked, *words, "--out", tmp_path / "student")
    assert done.code == 4 and "has no teacher embedding" in done.err, done.err


def test_embeddings_of_an_earlier_version_are_made_again(world: Path, tmp_path: Path) -> None:
    with Artifact.create(tmp_path / "old", kind=Kind.EMBEDDINGS, stage="embed", key="e") as draft:
        save_file({"images": torch.zeros(1, 1, 2)}, draft.path / "embeddings-00000.safetensors")
        (draft.path / "keys-00000.json").write_text("[]")
    with pytest.raises(CorruptInputError, match="in the form of an earlier version"):
        load_embeddings(Artifact.open(tmp_path / "old"))


def test_moved_data_and_more_workers_embed_nothing_again(world: Path, tmp_path: Path, cli: Cli) -> None:
    teacher = ("--teacher", world / "teacher", "--batch", 8, "--out", world / "embeddings")
    (world / "data").rename(tmp_path / "moved")
    try:
        for spec in (tmp_path / "moved", tmp_path / "moved" / "*.tar"):
            done = cli("embed", *teacher, "--data", spec, "--set", "data.workers=7", "--device", "cpu")
            assert done.code == 0 and "reused" in done.err and "(out)" not in done.err
    finally:
        (tmp_path / "moved").rename(world / "data")


def test_marks_tell_image_and_captions_apart() -> None:
    marks = {mark_of(image, said) for image in (b"a", b"b") for said in ((), ("ab",), ("a", "b"), ("b", "a"))}
    assert len(marks) == 8
    assert difference(mark_of(b"a", ("x",)), mark_of(b"a", ("x",))) is None
    assert difference(mark_of(b"a", ("x",)), mark_of(b"b", ("y",))) == "another image and other captions"
