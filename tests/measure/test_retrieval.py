"""Recall and accuracy against CLIP_benchmark's functions, on torch, ties included."""

from __future__ import annotations

from typing import Any

import clip_benchmark_reference as clip_benchmark
import numpy as np
import pytest
from toy_model import unit_rows

from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.measure import retrieval as retrievals
from mmcompress.measure.drift import drift
from mmcompress.measure.retrieval import Matches, answer, classification, hits, retrieval

Array = np.ndarray[Any, Any]
EXACT = {"rel": None, "abs": 1e-6}


def random_pairs(images: int, captions: int, noise: float, seed: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    pictures = unit_rows(rng.standard_normal((images, 16)).astype(np.float32))
    owner = rng.permutation(np.repeat(np.arange(images), captions))
    texts = unit_rows((pictures[owner] + noise * rng.standard_normal((len(owner), 16))).astype(np.float32))
    return pictures, texts, owner


@pytest.mark.parametrize(("images", "captions"), [(40, 1), (30, 5), (700, 2), (10, 3)])
def test_retrieval_equals_clip_benchmark(images: int, captions: int) -> None:
    pictures, texts, owner = random_pairs(images, captions, 0.6, images)
    found = retrieval(pictures, texts, owner)
    assert found == pytest.approx(clip_benchmark.retrieval(pictures, texts, owner), **EXACT)
    assert list(found) == ["i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10"]
    assert drift.retrieval is retrieval


@pytest.mark.parametrize("values", [1, 2, 4, 12])
@pytest.mark.parametrize(("images", "captions"), [(11, 1), (60, 5), (150, 2), (700, 1)])
def test_ties_fall_as_in_clip_benchmark(images: int, captions: int, values: int) -> None:
    """Whole numbers make the scores exact, and most of them equal; uneven captions, images without one are none."""
    rng = np.random.default_rng(images + values)
    owner = rng.permutation(np.concatenate([np.arange(images), rng.integers(0, images, images * (captions - 1))]))
    pictures = rng.integers(-values, values + 1, (images, 3)).astype(np.float32)
    texts = rng.integers(-values, values + 1, (len(owner), 3)).astype(np.float32)
    expected = clip_benchmark.retrieval(pictures, texts, owner)
    assert retrieval(pictures, texts, owner) == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize("images", [80, 700])
def test_equal_embeddings_are_ties_in_both(images: int) -> None:
    """Half of the images and of the captions occur twice; a matrix product may round their scores apart."""
    pictures, texts, owner = random_pairs(images, 2, 0.4, 3)
    half = images // 2
    pictures[half : 2 * half] = pictures[:half]
    texts[1::2] = texts[::2]
    expected = clip_benchmark.retrieval(pictures, texts, owner)
    assert retrieval(pictures, texts, owner) == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize("classes", [2, 4, 5, 12, 400])
@pytest.mark.parametrize("values", [1, 3, 1000])
def test_classification_equals_clip_benchmark(classes: int, values: int) -> None:
    rng = np.random.default_rng(classes * values)
    pictures = rng.integers(-values, values + 1, (300, 4)).astype(np.float32)
    texts = rng.integers(-values, values + 1, (classes, 4)).astype(np.float32)
    labels = rng.integers(0, classes, 300)
    expected = clip_benchmark.classification(pictures, texts, labels)
    assert classification(pictures, texts, labels) == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize("captions", [1, 5])
def test_a_collapsed_model_scores_as_chance(captions: int) -> None:
    images = 200
    one = unit_rows(np.ones((1, 16), np.float32))
    owner = np.random.default_rng(0).permutation(np.repeat(np.arange(images), captions))
    found = retrieval(np.repeat(one, images, axis=0), np.repeat(one, images * captions, axis=0), owner)
    for k in (1, 5, 10):
        assert found[f"i2t_r{k}"] <= k / images
        assert found[f"t2i_r{k}"] == pytest.approx(k / images, abs=k / images / 2)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, texts, owner = random_pairs(50, 3, 0.7, 1)
    matches = Matches.of(np.arange(50), owner)
    whole, answers = retrieval(pictures, texts, owner), answer(pictures, texts, matches, logit_scale=20.0)
    monkeypatch.setattr(retrievals, "_SCORES", 400)
    assert retrieval(pictures, texts, owner) == whole
    parts = answer(pictures, texts, matches, logit_scale=20.0)
    for name in ("best", "score", "margin", "confidence", "hits"):
        np.testing.assert_allclose(getattr(parts, name), getattr(answers, name), rtol=1e-5, err_msg=name)


def test_answers_equal_the_whole_table() -> None:
    pictures, texts, owner = random_pairs(30, 2, 0.7, 5)
    scores = pictures.astype(np.float64) @ texts.T.astype(np.float64)
    found = answer(pictures, texts, Matches.of(np.arange(30), owner), logit_scale=10.0)
    ordered = np.sort(scores, axis=1)
    exponentials = np.exp(10 * scores)
    assert found.best.tolist() == scores.argmax(axis=1).tolist()
    np.testing.assert_allclose(found.score, ordered[:, -1], rtol=1e-5)
    np.testing.assert_allclose(found.margin, ordered[:, -1] - ordered[:, -2], atol=1e-6)
    np.testing.assert_allclose(found.confidence, exponentials.max(axis=1) / exponentials.sum(axis=1), rtol=1e-4)


def test_images_without_a_text_are_candidates_and_no_queries() -> None:
    pictures = np.eye(4, dtype=np.float32)
    texts = np.eye(4, dtype=np.float32)[[0, 3]]
    found = retrieval(pictures, texts, np.array([0, 1]))
    assert found["i2t_r1"] == 0.5  # of images 0 and 1; 2 and 3 have no text
    assert found["t2i_r1"] == 0.5  # image 3, which has no text, beats image 1


def test_one_label_may_stand_for_many_images() -> None:
    pictures = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]]
    group = np.array([0, 0, 1, -1])
    texts = np.eye(3, dtype=np.float32)
    i2t, t2i = Matches.of(group, np.arange(3)), Matches.of(np.arange(3), group)
    assert hits(pictures, texts, i2t)[:, 0].tolist() == [True, True, True, False]
    assert hits(texts, pictures, t2i)[:, 0].tolist() == [True, True, False]
    assert t2i.answerable.tolist() == [True, True, False]
    assert [t2i.of_query(label).tolist() for label in range(3)] == [[0, 1], [2], []]


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
