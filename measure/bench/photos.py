"""The input pipeline: what it takes to make a batch out of image files, apart from the inference and with it.

On a device, decoding a photo often takes longer than a small model does. The photos are made here, at a typical size
and in the formats that cameras and the web use, half JPEG and half WebP: smooth areas, edges and grain, so that they
compress about as photos do. They are decoded, resized, cropped and normalized by the code that the product uses, in one
thread, and then inferred: one after the other, as a request would see it. Overlapping both is left to the application.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmcompress.data.decoding import decode_whole
from mmcompress.data.preprocess import normalize
from mmcompress.manifest import Preprocessing
from mmcompress.measure.document import Pipeline
from mmcompress.measure.interleave import REST
from mmcompress.runtime.session import Session

PHOTOS = 8
QUALITY = 88


@lru_cache(maxsize=2)
def encoded_photos(width: int, height: int) -> tuple[bytes, ...]:
    """Files of synthetic photos, JPEG and WebP in turns."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(PHOTOS):
        small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
        edges = 40 * (np.indices((height, width)).sum(axis=0)[..., None] % (97 + number) < 30)
        grain = rng.normal(0, 6, (height, width, 1))
        pixels = np.clip(smooth + edges + grain, 0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "WEBP" if number % 2 else "JPEG", quality=QUALITY)
        files.append(stream.getvalue())
    return tuple(files)


def prepared(files: tuple[bytes, ...], batch: int, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """(batch, 3, S, S): the files in turns, decoded, resized, cropped and normalized."""
    from mmcompress.data.batches import decode

    return normalize(np.stack([decode(files[i % len(files)], preprocessing) for i in range(batch)]), preprocessing)


def decoded(files: tuple[bytes, ...], batch: int) -> NDArray[np.uint8]:
    """(batch, H, W, 3): the files in turns, decoded only, for graphs that prepare images."""
    return np.stack([decode_whole(files[i % len(files)]) for i in range(batch)])


def timed_pipeline(
    session: Session, preprocessing: Preprocessing, batch: int, photo: tuple[int, int], seconds: float
) -> Pipeline:
    """Medians of preparing a batch and of preparing and inferring it; images a second at the latter.

    A graph that prepares images is given decoded ones, of its own size where it has one.
    """
    spec = session.inputs[0]
    inside = spec.dtype == "uint8"
    width, height = photo
    if inside:
        height, width = spec.shape[1] or height, spec.shape[2] or width
    files = encoded_photos(width, height)

    def prepare() -> NDArray[Any]:
        if inside:
            return decoded(files, batch)
        return prepared(files, batch, preprocessing).astype(spec.dtype, copy=False)

    return pipeline_figures(prepare, lambda pixels: session.run({spec.name: pixels}), batch, seconds)


def pipeline_figures(
    prepare: Callable[[], NDArray[Any]], infer: Callable[[NDArray[Any]], object], batch: int, seconds: float
) -> Pipeline:
    times: list[tuple[float, float]] = []
    end = time.monotonic() + seconds
    infer(prepare())
    while not times or time.monotonic() < end:
        start = time.perf_counter()
        pixels = prepare()
        ready = time.perf_counter()
        infer(pixels)
        times.append((1000 * (ready - start), 1000 * (time.perf_counter() - start)))
        time.sleep(REST * times[-1][1] / 1000)
    input_ms, together_ms = np.median(times, axis=0)
    return Pipeline(
        input_ms=float(input_ms),
        together_ms=float(together_ms),
        throughput_ips=1000 * batch / float(together_ms),
    )
