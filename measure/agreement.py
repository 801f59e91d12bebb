"""How far a model moved from another one: in the space itself, in the order of answers, and in the answers.

Three kinds of figures, since each hides what another shows. The cosine between two embeddings of one image says how
far it moved, before any answer changes. The rank correlation says whether its candidates keep their order. Flips say
which answers changed, split into those that became right and those that became wrong: two models of equal accuracy can
disagree on every tenth image. Calibration is apart: it asks whether the model knows how often it is right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmcompress.measure.drift.document import ClassChange, CosineHistogram
from mmcompress.measure.retrieval import KS, Bools, Floats, Ints, Matches, hits, shares_by_class

_ROWS = 4096
"""Rows that are float64 at once."""
_RANKED = 1 << 21
"""Scores of the images that ranks are compared on."""
ALIKE = 1e-6
"""Cosines that differ by less are the same answer."""
BINS = 15
"""Of the calibration error, as in Guo et al. 2017."""


def cosines(reference: Floats, other: Floats) -> NDArray[np.float64]:
    """(N, D), (N, D) -> (N,), row by row; computed in float64, since INT8 differs from FP32 in the fourth digit."""
    similarity = np.empty(len(reference))
    for start in range(0, len(reference), _ROWS):
        rows = slice(start, start + _ROWS)
        a, b = reference[rows].astype(np.float64), other[rows].astype(np.float64)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        similarity[rows] = (a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return similarity


def histogram(similarity: NDArray[np.float64], bins: int = 40) -> CosineHistogram:
    """(N,) cosines -> counts in equal bins from the smallest to 1."""
    low = min(float(similarity.min()), 1 - 1e-6)
    counts, edges = np.histogram(np.clip(similarity, low, 1.0), bins=bins, range=(low, 1.0))
    return CosineHistogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def ranked_images(images: int, candidates: int) -> Ints:
    """Which images ranks are compared on: evenly spread, and few where each has many candidates to sort."""
    wanted = min(images, max(64, _RANKED // max(1, candidates)))
    return np.unique(np.linspace(0, images - 1, wanted).round().astype(np.int64)) if images else np.empty(0, np.int64)


def unit_ranks(images: Floats, texts: Floats) -> NDArray[np.float32]:
    """(N, D), (M, D) -> (N, M): ranks of each image's scores, centred and of unit norm; equal scores share a rank.

    The product of two such rows is Spearman's rank correlation (Spearman 1904). Where all scores are equal there is no
    order, and the row is 0.
    """
    scores = images @ texts.T
    order = np.argsort(scores, axis=1)
    ordered = np.take_along_axis(scores, order, axis=1)
    place = np.arange(scores.shape[1])
    starts = np.ones(scores.shape, dtype=np.bool_)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    ends = np.ones(scores.shape, dtype=np.bool_)
    ends[:, :-1] = starts[:, 1:]
    first = np.maximum.accumulate(np.where(starts, place, 0), axis=1)
    last = np.minimum.accumulate(np.where(ends, place, len(place))[:, ::-1], axis=1)[:, ::-1]
    ranks = np.empty(scores.shape, dtype=np.float32)
    np.put_along_axis(ranks, order, ((first + last) / 2 - (len(place) - 1) / 2).astype(np.float32), axis=1)
    norms = np.linalg.norm(ranks, axis=1, keepdims=True)
    normed: NDArray[np.float32] = ranks / np.maximum(norms, 1)
    return normed


def flip_shares(flips: Bools, was_right: Bools, is_right: Bools) -> dict[str, Bools]:
    """(N,) flips and whether answers are right -> which answers changed, became right, became wrong."""
    return {
        "flip_rate": flips,
        "flips_gained": ~was_right & is_right,
        "flips_lost": was_right & ~is_right,
    }


def best(queries: Floats, candidates: Floats) -> Ints:
    """(N, D), (M, D) -> (N,): the best candidate of each query, the first of equal ones."""
    answers: Ints = (queries @ candidates.T).argmax(axis=1)
    return answers


def flipped(queries: Floats, candidates: Floats, before: Ints, after: Ints) -> Bools:
    """(N, D) and (M, D) of the model before, (N,) its best candidates and those after -> (N,): a flip.

    The one definition of a flip, for figures and for budgets. A candidate that was as good as the best before, to
    within `ALIKE`, is no other answer: the same caption twice, or two classes of one name.
    """
    changed = np.flatnonzero(before != after)
    lead = ((candidates[before[changed]] - candidates[after[changed]]) * queries[changed]).sum(axis=1)
    flips = np.zeros(len(before), dtype=np.bool_)
    flips[changed] = lead > ALIKE
    return flips


def lost_matches(
    before: tuple[Floats, Floats], after: tuple[Floats, Floats], image_group: Ints, text_group: Ints
) -> float:
    """Images (N, D) and texts (M, D), before and after -> share of the queries that lost their hit at 10.

    Queries are images and texts alike, and what is gained elsewhere does not offset a loss.
    """
    ways = ((0, 1, Matches.of(image_group, text_group)), (1, 0, Matches.of(text_group, image_group)))
    r10 = KS.index(10)
    lost = [hits(before[q], before[c], m)[:, r10] & ~hits(after[q], after[c], m)[:, r10] for q, c, m in ways]
    return float(np.concatenate(lost).mean())


def calibration_error(confidence: Floats, right: Bools, bins: int = BINS) -> float:
    """(N,), (N,) -> expected calibration error, Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3.

    Mean over equal bins (m/M, (m + 1)/M] of |share of right answers - mean confidence|, weighted by their sizes.
    """
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def class_changes(
    labels: Ints, names: Sequence[str], was_right: Bools, is_right: Bools, most: int = 20, fewest: int = 1
) -> list[ClassChange]:
    """(N,) class of each image -> the classes of `fewest` images or more whose share of right answers fell most."""
    classes, images = np.unique(labels, return_counts=True)
    before, after = shares_by_class(was_right, labels), shares_by_class(is_right, labels)
    order = np.lexsort((classes, -images, after - before))
    worst = [place for place in order if after[place] < before[place] and images[place] >= fewest]
    return [
        ClassChange(
            label=names[classes[place]],
            images=int(images[place]),
            before=float(before[place]),
            after=float(after[place]),
        )
        for place in worst[:most]
    ]
