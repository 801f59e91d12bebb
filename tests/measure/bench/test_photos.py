"""The input pipeline: its files are real photos' size and format, and its parts add up."""

from __future__ import annotations

import io
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mmcompress.data.preprocess import normalize, to_array
from mmcompress.manifest import Preprocessing
from mmcompress.measure.bench.photos import encoded_photos, pipeline_figures, prepared

PREPROCESSING = Preprocessing(size=32, resize=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def test_photos_have_the_size_and_weight_of_photos() -> None:
    files = encoded_photos(640, 480)
    opened = [Image.open(io.BytesIO(file)) for file in files]
    assert [image.format for image in opened] == ["JPEG", "WEBP"] * 4
    assert {image.size for image in opened} == {(640, 480)}
    bits_per_pixel = [8 * len(file) / (640 * 480) for file in files]
    assert min(bits_per_pixel) > 0.5 and max(bits_per_pixel) < 5
    assert len(set(files)) == len(files)


def test_preparing_equals_pillow_and_the_products_own_preprocessing() -> None:
    files = encoded_photos(64, 48)
    found = prepared(files, 10, PREPROCESSING)
    assert found.shape == (10, 3, 32, 32)
    expected = normalize(to_array(Image.open(io.BytesIO(files[1])), PREPROCESSING)[None], PREPROCESSING)
    np.testing.assert_array_equal(found[1], expected[0])
    np.testing.assert_array_equal(found[9], found[1])


def test_figures_of_a_false_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(time, "perf_counter", lambda: now.s)
    monkeypatch.setattr(time, "monotonic", lambda: now.s)
    monkeypatch.setattr(time, "sleep", lambda _: None)

    def prepare() -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        now.s += 0.03
        return np.zeros(1, np.float32)

    def infer(_: object) -> None:
        now.s += 0.01

    found = pipeline_figures(prepare, infer, batch=8, seconds=0.2)
    assert dict(found) == pytest.approx({"input_ms": 30, "together_ms": 40, "throughput_ips": 200})
