"""Every way in which a baseline can be broken is told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mmcompress.errors import GateFailedError
from mmcompress.measure.retrieval import Matches, hits
from mmcompress.measure.sanity import above_chance, checks, collapsed, enforce_checks

Rows = NDArray[np.float32]
GROUP = np.arange(64)


def unit(rows: NDArray[Any]) -> Rows:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def sound(seed: int = 0) -> tuple[Rows, Rows]:
    """Images near their texts."""
    rng = np.random.default_rng(seed)
    texts = rng.standard_normal((64, 16))
    return unit(texts + 0.3 * rng.standard_normal((64, 16))), unit(texts)


def failed(images: Rows, texts: Rows, reference: Rows | None = None) -> list[str]:
    known = {"image": images[:8] if reference is None else reference, "text": texts[:8]}
    return [one.check for one in checks(images, texts, GROUP, known, 1e-4) if not one.passed]


def test_a_sound_baseline_passes() -> None:
    assert failed(*sound()) == []


def test_what_is_not_finite_stops_the_others() -> None:
    images, texts = sound()
    images[3, 2] = np.nan
    assert failed(images, texts) == ["finite"]


def test_a_norm_of_two_a_constant_and_another_model_are_told_apart() -> None:
    images, texts = sound()
    assert failed(2 * images, texts) == ["unit norm"]
    assert failed(np.repeat(images[:1], 64, axis=0), texts) == ["not constant", "better than chance"]
    assert failed(images, texts, images[:8] + np.float32(2e-4)) == ["equal to torch"]


def test_captions_beside_the_wrong_images_are_no_better_than_chance() -> None:
    images, texts = sound()
    assert failed(np.roll(images, 7, axis=0), texts) == ["better than chance"]


@pytest.mark.parametrize("seed", range(20))
def test_random_embeddings_are_not_above_chance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    right, limit = above_chance(unit(rng.standard_normal((64, 16))), unit(rng.standard_normal((64, 16))), GROUP)
    assert right <= limit


def test_the_error_names_what_failed_with_its_figures() -> None:
    images, texts = sound()
    known = {"image": images[:8], "text": texts[:8]}
    with pytest.raises(GateFailedError) as caught:
        enforce_checks(checks(2 * images, texts, GROUP, known, 1e-4), "openvino")
    assert "the FP32 baseline on openvino fails its sanity check: unit norm" in caught.value.what
    assert ": 1, the limit is 0.001" in caught.value.what and caught.value.exit_code == 1
    assert "captions of the data belong to its images" in caught.value.hint
    with pytest.raises(GateFailedError) as caught:
        enforce_checks(checks(2 * images, texts, None, known, 1e-4), "openvino")
    assert "unit norm" in caught.value.what and "captions" not in caught.value.hint, "photos have none"


def why(images: Rows, texts: Rows, group: NDArray[np.int64], own: NDArray[np.int64]) -> str | None:
    matches = Matches.of(group, own)
    return collapsed(images, texts, group, matches, hits(images, texts, matches))


def test_a_collapsed_model_is_told_from_a_sound_and_from_an_unknown_one() -> None:
    images, texts = sound()
    one = np.repeat(images[:1], 64, axis=0)
    assert why(images, texts, GROUP, GROUP) is None
    assert why(one, texts, GROUP, GROUP) == "the image tower gives the same answer to everything"
    assert why(images, one, GROUP, GROUP) == "the text tower gives the same answer to everything"
    assert why(np.roll(images, 7, axis=0), texts, GROUP, GROUP) == "its retrieval is no better than chance"
    assert why(np.roll(images, 7, axis=0)[:2], texts[:2], GROUP[:2], GROUP[:2]) is None, "two pairs cannot tell"


@pytest.mark.parametrize("seed", range(10))
def test_chance_knows_of_several_captions_and_of_frequent_classes(seed: int) -> None:
    """Random embeddings by numpy; five captions an image, and classes of which one has most of the images."""
    rng = np.random.default_rng(seed)
    images = unit(rng.standard_normal((60, 16)))
    assert why(images, unit(rng.standard_normal((300, 16))), np.arange(60), np.repeat(np.arange(60), 5)) is not None
    classes = np.where(rng.random(60) < 0.6, 0, rng.integers(0, 8, 60))
    texts = unit(rng.standard_normal((8, 16)))
    leaning = unit(texts[:1] + 0.1 * rng.standard_normal((60, 16)))  # answers the frequent class, whatever it sees
    assert why(leaning, texts, classes, np.arange(8)) == "its retrieval is no better than chance"
