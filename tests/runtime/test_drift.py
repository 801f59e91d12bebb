"""Metrics against brute force, torch.topk and transformers-free references; the stage on a toy data set."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from toy_model import SIDE, WORDS, make_model, unit_rows

from mmcompress.artifact import Artifact
from mmcompress.config import DataConfig, DriftConfig
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.runtime import drift as drifts
from mmcompress.runtime.drift import (
    agreement,
    bootstrap_ci,
    classification,
    drift,
    drift_report,
    flip_rate,
    retrieval,
    retrieval_ranks,
)

Make = Callable[..., Artifact]
Array = np.ndarray[Any, Any]


def random_pairs(images: int, captions: int, noise: float, seed: int, distractors: int = 0) -> tuple[Array, ...]:
    rng = np.random.default_rng(seed)
    pictures = unit_rows(rng.standard_normal((images, 16)).astype(np.float32))
    owner = np.repeat(np.arange(images), captions)
    texts = pictures[owner] + noise * rng.standard_normal((len(owner), 16))
    others = rng.standard_normal((distractors, 16))
    texts = unit_rows(np.concatenate([texts, others]).astype(np.float32))
    owner = np.concatenate([owner, np.full(distractors, -1)])
    order = rng.permutation(len(owner))
    return pictures, texts[order], owner[order]


def clip_benchmark_recall(scores: Array, positive: Array, k: int) -> float:
    """CLIP_benchmark's rule: torch.topk, then whether any positive is among them; rows without a positive are out."""
    import torch

    chosen = torch.topk(torch.from_numpy(scores), min(k, scores.shape[1]), dim=1)[1].numpy()
    hits = np.take_along_axis(positive, chosen, axis=1).any(axis=1)
    return float(hits[positive.any(axis=1)].mean())


@pytest.mark.parametrize(("images", "captions", "distractors"), [(40, 1, 0), (30, 5, 0), (25, 2, 60), (3, 1, 0)])
def test_retrieval_equals_clip_benchmark(images: int, captions: int, distractors: int) -> None:
    pictures, texts, owner = random_pairs(images, captions, 0.6, images, distractors)
    found = retrieval(pictures, texts, owner)
    positive = owner[None] == np.arange(images)[:, None]
    scores = pictures @ texts.T
    for k in (1, 5, 10):
        assert found[f"i2t_r{k}"] == clip_benchmark_recall(scores, positive, k)
        assert found[f"t2i_r{k}"] == clip_benchmark_recall(scores.T, positive.T, k)
    assert list(found) == ["i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10"]


def test_ties_go_to_the_first_as_in_a_stable_sort() -> None:
    """Whole numbers make the scores exact, and a third of them equal."""
    rng = np.random.default_rng(0)
    pictures, texts = rng.integers(-2, 3, (60, 3)).astype(np.float32), rng.integers(-2, 3, (150, 3)).astype(np.float32)
    owner = rng.integers(-1, 60, 150)
    found = retrieval(pictures, texts, owner)
    scores, positive = pictures @ texts.T, owner[None] == np.arange(60)[:, None]
    assert len(np.unique(scores)) < 50
    for way, table, hit in (("i2t", scores, positive), ("t2i", scores.T, positive.T)):
        order = np.argsort(-table, axis=1, kind="stable")
        for k in (1, 5, 10):
            hits = np.take_along_axis(hit, order[:, :k], axis=1).any(axis=1)[hit.any(axis=1)]
            assert found[f"{way}_r{k}"] == hits.mean()


@pytest.mark.parametrize("captions", [1, 5])
def test_a_collapsed_model_scores_as_chance(captions: int) -> None:
    images = 200
    one = unit_rows(np.ones((1, 16), np.float32))
    owner = np.random.default_rng(0).permutation(np.repeat(np.arange(images), captions))
    found = retrieval(np.repeat(one, images, axis=0), np.repeat(one, images * captions, axis=0), owner)
    for k in (1, 5, 10):
        assert found[f"i2t_r{k}"] <= k / images
        assert found[f"t2i_r{k}"] == pytest.approx(k / images, abs=k / images / 2)
    texts = np.repeat(one, 100, axis=0)
    assert classification(np.repeat(one, images, axis=0), texts, np.arange(images) % 100) == {
        "top1": 0.01,
        "top5": 0.05,
    }


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, texts, owner = random_pairs(50, 3, 0.7, 1, 20)
    whole = retrieval(pictures, texts, owner)
    flips = flip_rate(pictures, texts, pictures[:, ::-1], texts)
    monkeypatch.setattr(drifts, "_SCORES", 400)
    assert retrieval(pictures, texts, owner) == whole
    assert flip_rate(pictures, texts, pictures[:, ::-1], texts) == flips


def test_images_without_a_text_are_candidates_and_no_queries() -> None:
    pictures = np.eye(4, dtype=np.float32)
    texts = np.eye(4, dtype=np.float32)[[0, 3]]
    found = retrieval(pictures, texts, np.array([0, 1]))
    assert found["i2t_r1"] == 0.5  # of images 0 and 1; 2 and 3 have no text
    assert found["t2i_r1"] == 0.5  # image 3, which has no text, beats image 1


def test_one_label_may_stand_for_many_images() -> None:
    pictures = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]]
    i2t, t2i = retrieval_ranks(pictures, np.eye(3, dtype=np.float32), np.array([0, 0, 1, -1]), np.arange(3))
    assert i2t.tolist() == [0, 0, 0]
    assert t2i.tolist() == [0, 0]


def test_classification_equals_argsort() -> None:
    rng = np.random.default_rng(2)
    pictures, texts = rng.standard_normal((70, 8)), rng.standard_normal((12, 8))
    labels = rng.integers(0, 12, 70)
    order = np.argsort(-(pictures @ texts.T), axis=1)
    expected = {f"top{k}": (order[:, :k] == labels[:, None]).any(axis=1).mean() for k in (1, 5)}
    assert classification(pictures, texts, labels) == expected


def test_agreement_and_flips() -> None:
    angles = np.radians([0.0, 60.0])
    reference, other = np.array([[1.0, 0.0], [1.0, 0.0]]), np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert agreement(reference, 3 * other) == pytest.approx({"cosine_mean": 0.75, "cosine_p01": 0.505})
    texts = np.eye(2)
    assert flip_rate(reference, texts, other, texts) == 0.5
    assert flip_rate(reference, texts, np.pad(other, ((0, 0), (0, 3))), np.pad(texts, ((0, 0), (0, 3)))) == 0.5


def test_bootstrap_interval_matches_the_normal_one() -> None:
    hits = np.arange(400) % 4 == 0
    low, high = bootstrap_ci(hits, seed=1)
    half = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert (low, high) == pytest.approx((0.25 - half, 0.25 + half), abs=0.006)
    assert bootstrap_ci(hits, seed=1) == (low, high)
    assert bootstrap_ci(np.ones(10)) == (1.0, 1.0)


def test_what_cannot_be_measured_is_an_error() -> None:
    pictures, texts, owner = random_pairs(4, 1, 0.1, 0)
    broken = pictures.copy()
    broken[2, 3] = np.nan
    with pytest.raises(CorruptInputError, match="not finite") as caught:
        retrieval(broken, texts, owner)
    assert caught.value.exit_code == 4
    with pytest.raises(UsageError, match=r"owner has shape \(3,\) for 4 texts and 4 images"):
        retrieval(pictures, texts, owner[:3])
    with pytest.raises(UsageError, match="owner has shape"):
        retrieval(pictures, texts, owner + 1)
    with pytest.raises(UsageError, match="no text belongs to any of the images"):
        retrieval(pictures, texts, np.full(4, -1))
    with pytest.raises(UsageError, match=r"embeddings of \(16,\) and \(8,\) channels"):
        retrieval(pictures, texts[:, :8], owner)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """24 images of 6 classes, the last class unseen; each with one caption, its label."""
    files: list[tuple[str, bytes]] = []
    for index in range(24):
        label = WORDS[index % 6]
        pixels = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        path = tmp_path / "one.png"
        Image.fromarray(pixels).save(path)
        about = {"label": label, "seen": index % 6 != 5}
        files += [(f"{index:03d}.png", path.read_bytes()), (f"{index:03d}.txt", label.encode())]
        files += [(f"{index:03d}.json", json.dumps(about).encode())]
    with tarfile.open(tmp_path / "test.tar", "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return tmp_path / "test.tar"


def test_the_stage_measures_every_row(make_artifact: Make, shard: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join([*WORDS, "", "red"]))
    artifacts = (
        make_artifact("teacher", make_model(1, dim=20)),
        make_artifact("student"),
        make_artifact("int8", precisions=("int8",)),
    )
    config = DriftConfig(data=DataConfig(test=str(shard), labels=str(labels)))
    job = SimpleNamespace(config=config, gathered=artifacts, draft=SimpleNamespace(path=tmp_path))
    drift(cast(Any, job))
    report = json.loads((tmp_path / "drift.json").read_text())
    assert report["backend"] == "openvino"
    assert [row["row"] for row in report["rows"]] == ["teacher", "student", "int8"]
    teacher, student, int8 = report["rows"]
    assert (teacher["images"], teacher["candidates"], teacher["unseen_images"]) == (20, 6, 4)
    assert teacher["metrics"]["cosine_mean"] == pytest.approx(1)
    assert teacher["metrics"]["flip_rate"] == 0
    assert student["metrics"]["cosine_mean"] is None
    assert student["metrics"]["top1"] == student["metrics"]["i2t_r1"]
    assert student["int8_against_fp32"] is None
    against = int8["int8_against_fp32"]
    assert against["row"] == "student"
    assert 0.99 < against["cosine_mean"] < 1
    assert against["text_cosine_mean"] == pytest.approx(1)
    assert against["r10_drop"] == student["metrics"]["i2t_r10"] - int8["metrics"]["i2t_r10"]
    low, high = student["metrics"]["ci95"]["i2t_r1"]
    assert low <= student["metrics"]["i2t_r1"] <= high

    model, preprocessing = make_model(), artifacts[1].manifest.preprocessing
    assert preprocessing is not None
    from mmcompress.data import batches
    from mmcompress.runtime.preprocess import normalize

    [batch] = batches(str(shard), preprocessing, batch=64)
    texts = model.texts(np.array([[0, 4 + i, 2, 1, 1, 1] for i in range(6)]))
    best = (model.images(normalize(batch.pixels, preprocessing)) @ texts.T).argmax(axis=1)
    right = best == np.arange(24) % 6
    seen = np.arange(24) % 6 != 5
    assert student["metrics"]["top1"] == right[seen].mean()
    assert student["unseen"]["top1"] == right[~seen].mean()


def test_captions_are_the_candidates_without_labels(make_artifact: Make, shard: Path) -> None:
    report = drift_report([make_artifact()], DataConfig(test=str(shard)), backend="onnxruntime")
    [row] = report["rows"]
    assert row["candidates"] == 24
    assert row["metrics"]["top1"] is None
    assert report["backend"] == "onnxruntime"


def test_wrong_labels_and_no_data_are_named(make_artifact: Make, shard: Path, tmp_path: Path) -> None:
    artifact = make_artifact()
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("elephant\n")
    with pytest.raises(UsageError, match=r"no image of .* has a label that is in .*wrong.txt") as caught:
        drift_report([artifact], DataConfig(test=str(shard), labels=str(wrong)))
    assert "'red'" in caught.value.hint
    wrong.write_text("\n \n")
    with pytest.raises(UsageError, match=r"wrong.txt lists no labels"):
        drift_report([artifact], DataConfig(test=str(shard), labels=str(wrong)))
    wrong.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptInputError, match=r"wrong.txt is no text file"):
        drift_report([artifact], DataConfig(test=str(shard), labels=str(wrong)))
    with pytest.raises(UsageError, match=r"absent.txt"):
        drift_report([artifact], DataConfig(test=str(shard), labels=str(tmp_path / "absent.txt")))
    with pytest.raises(UsageError, match=r"data.test is not set"):
        drift_report([artifact], DataConfig())
    with pytest.raises(UsageError, match="there is no artifact"):
        drift_report([], DataConfig(test=str(shard)))
