"""Data in DataCompDR's layout: every view and caption meets its own embedding, and nothing is unpickled."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cached import cached
from clip_world import write_teacher
from conftest import Outcome
from PIL import Image
from shards import picture, write_tar

from mmcompress.artifact import Artifact
from mmcompress.compress.teacher import load_teacher
from mmcompress.compress.train.augment import normalized
from mmcompress.compress.train.embeddings import load_embeddings
from mmcompress.compress.train.pairs import training_pairs
from mmcompress.config import DataConfig, TeacherConfig
from mmcompress.data.given import given_view
from mmcompress.distributed import world
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import Preprocessing
from mmcompress.pipeline import standalone

Cli = Callable[..., Outcome]
VIEWS, SYNTHETIC = 3, 2
MADE_FOR = Preprocessing(size=32, resize=32, mean=(0.5,) * 3, std=(0.5,) * 3)
GIVEN = {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"))


def views_of(n: int) -> list[Any]:
    """As `param_aug` has them: a box, and numbered operations with their magnitudes."""
    noise = np.random.default_rng(n)
    boxes = [[int(noise.integers(0, 9)), int(noise.integers(0, 9)), 20 + v, 25 - v] for v in range(VIEWS)]
    return [[box, None if v == 2 else [[v + 3, 3.5], [11, 178.5]]] for v, box in enumerate(boxes)]


def embedded(teacher: Path, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the teacher makes of the views and of the caption and the synthetic ones, in that order."""
    loaded = load_teacher(TeacherConfig(source=str(teacher)), torch.device("cpu"))
    image = Image.open(io.BytesIO(picture(n, (40, 34))))
    pixels = [given_view(image, box, operations or [], MADE_FOR, 32) for box, operations in views_of(n)]
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    return loaded.encode_image(normalized(batch, MADE_FOR)), loaded.encode_text([f"number {n}", *synthetic(n)])


def synthetic(n: int) -> list[str]:
    return [f"a synthetic {n % 4}", f"number {n}" if n == 5 else f"another {n}"]  # of 5 both are said


def sample(teacher: Path, n: int, kind: str = "npz", **changed: bytes | None) -> list[tuple[str, bytes]]:
    images, texts = (2 * side for side in embedded(teacher, n))  # several teachers' rows are longer than 1
    content = io.BytesIO()
    if kind == "npz":
        np.savez_compressed(content, image_emb=images.numpy(), text_emb=texts.numpy())
    else:
        with gzip.open(content, "wb") as stream:
            torch.save({"image_emb": images.bfloat16(), "text_emb": texts.bfloat16()}, stream)
    files: dict[str, bytes | None] = {
        "jpg": picture(n, (40, 34)),
        "txt": f"number {n}".encode(),
        "url.txt": b"https://example.org/picture.jpg",
        "syn.json": json.dumps({"syn_text": synthetic(n)}).encode(),
        "paug.json": json.dumps({"param_aug": json.dumps(views_of(n))}).encode(),
        kind: content.getvalue(),
        "json": json.dumps({"uid": f"{n:032x}", "sha256": "0" * 64}).encode(),
        **changed,
    }
    return [(f"{n:032x}.{suffix}", content) for suffix, content in files.items() if content is not None]


@pytest.fixture(scope="module")
def data(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reinforced")
    write_tar(folder / "00000000.tar", [file for n in range(8) for file in sample(teacher, n)])
    write_tar(folder / "00000001.tar", [file for n in range(8, 13) for file in sample(teacher, n, "pth.gz")])
    return folder


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("imported") / "e"
    return standalone.import_embeddings(out, {"data.train": str(data), **GIVEN})


def test_embeddings_are_those_of_the_layout_with_unit_norm(teacher: Path, made: Artifact) -> None:
    images, texts = cached(made)
    assert images.shape == (13, VIEWS, 32) and made.manifest.facts["logit_scale"] == 100
    assert len(texts) == 3 * 13 - 1, "a caption that is said twice counts once"
    for n in (0, 7, 8, 12):
        torch.testing.assert_close(images[n], embedded(teacher, n)[0], atol=1e-2 if n > 7 else 1e-3, rtol=0)


def test_each_view_and_caption_meets_its_own_embedding(teacher: Path, data: Path, made: Artifact) -> None:
    """The pixels that the student sees are embedded by the teacher again, at two epochs, with captions of all kinds."""
    student, loaded = Artifact.open(made.path), load_teacher(TeacherConfig(source=str(teacher)), torch.device("cpu"))
    with world("cpu") as here:
        checkpoint = standalone.convert(str(teacher), data.parent / "converted")
        embeddings = load_embeddings(student)
        spec = DataConfig(train=str(data), workers=2)
        pairs = training_pairs(checkpoint, spec, batch=6, seed=3, here=here, embeddings=embeddings)
        assert pairs.count == 13
        seen = set()
        for batch in (batch for epoch in range(3) for batch in pairs.stream(epoch, 0)):
            assert batch.teacher is not None
            again = loaded.encode_image(batch.pixels)
            torch.testing.assert_close(again, batch.teacher[0], atol=1e-2, rtol=0)
            seen |= {tuple(row.tolist()) for row in batch.tokens}
    assert len(seen) > 15, "more captions than there are samples"


def test_a_student_needs_no_teacher_at_hand(
    teacher: Path, data: Path, made: Artifact, tmp_path: Path, cli: Cli
) -> None:
    """Only the tokenizer of one."""
    few = ("--set", "optimizer.steps=3", "--set", "optimizer.batch=6", "--device", "cpu")
    student = ("--student", "vit-t8-64", "--student-image-size", 32, "--teacher", teacher)
    done = cli("distill", "--embeddings", made.path, "--data", data, *student, *few, "--out", tmp_path / "s")
    assert done.code == 0, done.err
    assert Artifact.open(tmp_path / "s").model.embed_dim == 32


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('it was run')",))


def _pickled() -> bytes:
    content = io.BytesIO()
    np.savez(content, image_emb=np.array([_Harmful()], dtype=object), text_emb=np.zeros((3, 2)))
    return content.getvalue()


def _pickled_by_torch() -> bytes:
    content = io.BytesIO()
    torch.save(_Harmful(), content)
    return gzip.compress(content.getvalue())


def _zeros() -> bytes:
    content = io.BytesIO()
    np.savez(content, image_emb=np.zeros((VIEWS, 32)), text_emb=np.ones((3, 32)))
    return content.getvalue()


def _complex() -> bytes:
    content = io.BytesIO()
    np.savez(content, image_emb=np.ones((VIEWS, 32), np.complex64), text_emb=np.ones((3, 32)))
    return content.getvalue()


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"npz": None}, "it has neither npz nor pth.gz"),
        ({"npz": _pickled()}, "Object arrays cannot be loaded"),
        ({"npz": None, "pth.gz": _pickled_by_torch()}, "holds more than tensors"),
        ({"npz": b"not a zip"}, "not a zip file"),
        ({"npz": _zeros()}, "NaN, infinite or zeros only"),
        ({"paug.json": None}, "nobody knows which views were embedded"),
        ({"paug.json": b'{"param_aug": "[[[0, 0, 9, 9], []]]"}'}, "has 1 views, and 3 are embedded"),
        ({"paug.json": b'{"param_aug": [[[0, 0, 9, 9], [], "mixup"]]}'}, "only a crop and up to 2 operations"),
        ({"paug.json": b'{"param_aug": [[[0, 0, 9, 9], [[14, 1.0]]]]}'}, "numbered 0 to 13"),
        ({"paug.json": b'{"param_aug": [[[0, 0, 1000000000000, 9], []]]}'}, "are whole pixels"),
        ({"paug.json": b'{"param_aug": [[[0, 0.5, 9, 9], []]]}'}, "are whole pixels"),
        ({"paug.json": b'{"param_aug": [[[-1, 0, 9, 9], []]]}'}, "are whole pixels"),
        ({"paug.json": b'{"param_aug": [[[0, 0, 9, 9], [[3, null]]]]}'}, "no number and magnitude"),
        ({"paug.json": b'{"param_aug": [[[0, 0, 9, 9], [[3, 1e300]]]]}'}, "whose magnitude there is not"),
        ({"paug.json": b'{"param_aug": [[[0, 0, 9, 9], [[10, 99]]]]}'}, "whose magnitude there is not"),
        ({"paug.json": b'{"param_aug": 5}'}, "no list of views"),
        ({"npz": _complex()}, "no floating-point numbers"),
        ({"syn.json": b'{"syn_text": ["one"]}'}, "3 texts are embedded, and there are a caption and 1 synthetic ones"),
        ({"json": b'{"captions": ["more"]}'}, "its caption 'more' is not embedded"),
    ],
)
def test_what_is_not_in_the_layout_is_refused_by_sample(
    teacher: Path, tmp_path: Path, changed: dict[str, bytes | None], what: str
) -> None:
    (tmp_path / "d").mkdir()
    files = [*sample(teacher, 0), *sample(teacher, 1, "npz", **changed)]
    write_tar(tmp_path / "d" / "0.tar", files)
    with pytest.raises(
        CorruptInputError, match=f"the sample '0/{1:032x}' is not reinforced as DataCompDR is: .*{what}"
    ):
        standalone.import_embeddings(tmp_path / "e", {"data.train": str(tmp_path / "d"), **GIVEN})
    assert {path.name for path in tmp_path.iterdir()} <= {"d", ".e.lock"}, "not even an empty work folder"


def test_tables_and_streams_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(0, (16, 16)))
    (tmp_path / "captions.tsv").write_text("image\tcaption\na.jpg\ta thing\n")
    for spec in (str(tmp_path), f"pipe:cat {tmp_path}/0.tar"):
        with pytest.raises(UsageError, match="is not all tar shards on this machine"):
            standalone.import_embeddings(tmp_path / "e", {"data.train": spec})


def test_images_of_another_size_are_told_by_name(teacher: Path, made: Artifact, tmp_path: Path, cli: Cli) -> None:
    """Resized before they were imported: a crop lies outside."""
    (tmp_path / "d").mkdir()
    small = [file for n in range(8) for file in sample(teacher, n, jpg=picture(n, (12, 10)))]
    write_tar(tmp_path / "d" / "0.tar", small)
    embeddings = standalone.import_embeddings(tmp_path / "e", {"data.train": str(tmp_path / "d"), **GIVEN})
    few = ("--set", "optimizer.steps=3", "--set", "optimizer.batch=4", "--device", "cpu", "--teacher", teacher)
    asked = ("distill", "--embeddings", embeddings.path, "--data", tmp_path / "d", "--student", "inherit:0.5", *few)
    done = cli(*asked, "--out", tmp_path / "s")
    assert done.code == 4 and "the image has 12 x 10 pixels" in done.err
