"""What both sides of a bisection are fed: real pairs, and which tokens of a text count."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.artifact import Artifact
from mmcompress.config import BisectConfig
from mmcompress.data.preprocess import normalize
from mmcompress.progress import track
from mmcompress.reach import reach
from mmcompress.runtime.tokenize import load_tokenizer, text_processing, tokenize


def samples_of(
    reference: Artifact, config: BisectConfig
) -> Iterator[tuple[NDArray[np.float32], NDArray[Any], NDArray[np.bool_]]]:
    """Pixels (B, 3, S, S), tokens (B, T) of the first caption of each image, and which of them count (B, T)."""
    from mmcompress.data.batches import batches

    preprocessing, text = reference.image_processing, text_processing(reference)
    assert config.data.test is not None
    tokenizer = load_tokenizer(reference.file(text.file))
    stream = batches(
        config.data.test,
        preprocessing,
        batch=config.batch,
        workers=config.data.workers,
        max_bad_fraction=config.data.max_bad_fraction,
        shuffle_seed=config.seed,
    )
    steps = -(-config.samples // config.batch)
    for batch in track(islice(stream, steps), "bisect", steps):
        tokens = tokenize(tokenizer, [captions[0] for captions in batch.captions], text)
        counts = np.arange(tokens.shape[1]) <= reach(tokens, reference.model.text)[:, None]
        yield normalize(batch.pixels, preprocessing), tokens, counts
