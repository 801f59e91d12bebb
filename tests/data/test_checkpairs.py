"""The statistic against its definition, and how often chance passes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from mmcompress.data import checkpairs
from mmcompress.data.checkpairs import CAPTIONS_EACH, THINGS, check_captions, check_images, judged, ranking
from mmcompress.manifest import Preprocessing

RULE = Preprocessing(size=64, resize=64, mean=(0.5,) * 3, std=(0.5,) * 3)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_sixteen_different_drawings_and_captions() -> None:
    images = check_images(RULE)
    assert images.shape == (len(THINGS), 64, 64, 3) and len(np.unique(images.reshape(16, -1), axis=0)) == 16
    english, chinese = check_captions(0), check_captions(1)
    assert len({*english, *chinese}) == 2 * CAPTIONS_EACH * len(THINGS)
    assert all(text.isascii() for text in english) and not any(text.isascii() for text in chinese)


def test_the_p_value_is_the_share_of_pairings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four images all 24 pairings can be counted."""
    rng = np.random.default_rng(5)
    images, texts = unit(rng.standard_normal((4, 8))), unit(rng.standard_normal((8, 8)))
    images[:2] = unit(images[:2] + texts[[0, 2]])
    scores = images @ texts.reshape(4, 2, -1).mean(axis=1).T
    sums = [scores[range(4), order].sum() for order in itertools.permutations(range(4))]
    exact = np.mean([one >= sums[0] - 1e-12 for one in sums])  # centring adds the same to every pairing
    assert ranking(images, texts).p == pytest.approx(exact, abs=0.02)


def test_what_is_by_chance_passes_as_often_as_the_level_says() -> None:
    rng = np.random.default_rng(0)
    texts, offset = rng.standard_normal((32, 24)), 5 * rng.standard_normal(24)
    p = [ranking(unit(rng.standard_normal((16, 24)) + offset), unit(texts + offset)).p for _ in range(200)]
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.06)
    assert np.mean(p) == pytest.approx(0.5, abs=0.06)


def test_a_model_that_knows_one_language_is_enough() -> None:
    rng = np.random.default_rng(1)
    images = unit(rng.standard_normal((16, 24)))
    chinese = check_captions(1)

    def embed(texts: object) -> NDArray[np.float64]:
        known = np.repeat(images, CAPTIONS_EACH, axis=0) if texts == chinese else 0
        return unit(known + rng.standard_normal((32, 24)) / 5)

    assert judged(images, embed) is None
    said = judged(images, lambda _: unit(rng.standard_normal((32, 24))))
    assert said is not None and "which is chance" in said and "random" in said


def test_one_answer_to_everything_is_said_to_be_one() -> None:
    rng = np.random.default_rng(1)
    rows = unit(rng.standard_normal((32, 24)))
    assert "image tower gives the same answer" in str(judged(np.tile(rows[:1], (16, 1)), lambda _: rows))
    assert checkpairs.LEVEL == 0.01
