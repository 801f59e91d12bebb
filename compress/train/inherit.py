"""A student out of its teacher: evenly spaced blocks, and what is left of each fitted to what the teacher makes there.

Weight inheritance (Wu et al. 2023, TinyCLIP, section 3.2) takes the heads and MLP units with the largest weights over
as they are. Here go those that the next Linear misses least, and it is fitted again by least squares on some samples
(`prune/shrink.py`); the last Linear before blocks that are left out aims at the stream behind them. So a student starts
where pruning without training ends, and keeps the equal, thick blocks, which are faster than many thin ones at equal
MACs (decision T40).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice

from mmcompress.artifact import Artifact, Draft
from mmcompress.compress.products import fast_products
from mmcompress.compress.prune.importance import magnitudes
from mmcompress.compress.prune.shrink import Size, TowerName, shrunk
from mmcompress.compress.train.embeddings import Embeddings
from mmcompress.compress.train.pairs import TrainingBatch, training_pairs
from mmcompress.compress.train.student import evenly_spaced, inherited_config
from mmcompress.config import DataConfig
from mmcompress.distributed import World
from mmcompress.model import DualEncoder
from mmcompress.progress import track

_BATCH = 64
"""Samples that are computed at once."""


def inherited(
    teacher: DualEncoder, share: float, towers: Collection[TowerName], samples: Sequence[TrainingBatch]
) -> DualEncoder:
    """The teacher with at most `share` of the MACs of each of some towers, fitted on samples.

    Without samples nothing is fitted, and heads and units go by the norms of their weights. Raises UsageError where not
    even one block with one head fits.
    """
    smaller = inherited_config(teacher.config, share)
    scores = {} if samples else magnitudes(teacher)
    student = teacher
    for tower in towers:
        kept, blocks = getattr(smaller, tower), getattr(teacher.config, tower).depth
        sizes: list[Size] = [None] * blocks
        for index, size in zip(evenly_spaced(blocks, kept.depth), zip(kept.heads, kept.mlp, strict=True), strict=True):
            sizes[index] = size
        inputs = [pair.pixels if tower == "image" else pair.tokens for pair in samples]
        with fast_products():
            student = shrunk(student, tower, sizes, inputs, scores, bool(samples))
    return student


def samples_to_fit(
    student: Draft | Artifact,
    data: DataConfig,
    seed: int,
    number: int,
    embeddings: Embeddings,
    here: World,
    batch: int = _BATCH,
) -> list[TrainingBatch]:
    """The first pairs of the first epoch of one process: all ranks fit on the same ones. At most `batch` in one."""
    if not number:
        return []
    batch, alone = min(_BATCH, number, batch), World(0, 1, here.device)
    pairs = training_pairs(student, data, batch=batch, seed=seed, here=alone, embeddings=embeddings, sentences=True)
    steps = max(1, min(number, pairs.count) // batch)
    return list(track(islice(pairs.stream(0, 0), steps), "samples to fit", steps))
