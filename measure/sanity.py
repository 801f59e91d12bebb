"""Is the FP32 baseline worth comparing with? What INT8 is held against must itself be right.

A ratio to a broken baseline says nothing, and the breaks are silent: a graph that a runtime compiled wrongly, weights
that collapsed in training, data whose captions lie beside the wrong images. So its embeddings on the held-out pairs
are looked at before anything is timed, both towers, as the backend computes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mmcompress.embedding import SPREAD, spread
from mmcompress.errors import GateFailedError
from mmcompress.measure.document import SanityCheck
from mmcompress.measure.retrieval import KS, Bools, Floats, Ints, Matches, hits

NORM_ERROR = 1e-3
CHANCE = "better than chance"
FEW_IMAGES = 20
"""A figure over fewer moves by five points with each of them."""
DEVIATIONS = 3.0
"""Of the binomial distribution, by which retrieval has to be better than chance."""


def checks(
    images: Floats,
    texts: Floats,
    image_group: Ints | None,
    reference: Mapping[str, Floats],
    tolerance: float,
    by: str = "torch",
) -> list[SanityCheck]:
    """Embeddings (N, D), (M, D) as the backend gave them; image_group (N,) is each image's text, None of photos that
    nobody captioned: whether the model finds what belongs together is then not known.

    `reference` has the first embeddings of each tower as an independent implementation computes them, which is `by`.
    """
    finite = float(min(np.isfinite(side).mean() for side in (images, texts)))
    finiteness = [_check("finite", finite == 1, finite, 1.0, "share of numbers that are neither NaN nor infinite")]
    if finite < 1:
        return finiteness
    sides = {"image": images, "text": texts}
    norm = max(float(np.abs(np.linalg.norm(side, axis=1) - 1).max()) for side in sides.values())
    narrowest = min(spread(side) for side in sides.values())
    apart = float(np.max([np.abs(sides[name][: len(rows)] - rows).max() for name, rows in reference.items()]))
    found = [
        *finiteness,
        _check("unit norm", norm <= NORM_ERROR, norm, NORM_ERROR, "largest distance of a norm from 1"),
        _check("not constant", narrowest >= SPREAD, narrowest, SPREAD, "1 minus the length of the mean embedding"),
        _check(f"equal to {by}", apart <= tolerance, apart, tolerance, "largest difference of a number"),
    ]
    if image_group is not None:
        right, chance = above_chance(images, texts, image_group)
        says = "share of images whose text is among the best"
        found.append(_check(CHANCE, right > chance, right, chance, says))
    return found


def above_chance(images: Floats, texts: Floats, image_group: Ints) -> tuple[float, float]:
    """Recall of the images at the largest k that leaves out half of the texts, and what chance hardly reaches."""
    matches = Matches.of(image_group, np.arange(len(texts)))
    return _recall_and_chance(hits(images, texts, matches), matches, image_group, len(texts))


def _recall_and_chance(hit: Bools, matches: Matches, image_group: Ints, candidates: int) -> tuple[float, float]:
    """(N, cuts) hits -> the same, where an image may have several texts and a text several images.

    Chance is a random order of the texts, or the same answer for all images, whichever finds more.
    """
    k = max((k for k in KS if 2 * k <= candidates), default=1)
    asked = matches.answerable
    texts, images = np.unique(np.diff(matches.starts)[asked], return_counts=True)
    lucky = [1 - math.comb(candidates - own, k) / math.comb(candidates, k) for own in texts.tolist()]
    popular = np.sort(np.unique(image_group[asked], return_counts=True)[1])[-k:].sum() / images.sum()
    p = max(float(np.average(lucky, weights=images)), float(popular))
    return float(hit[asked, KS.index(k)].mean()), p + DEVIATIONS * math.sqrt(p * (1 - p) / images.sum())


def collapsed(images: Floats, texts: Floats, image_group: Ints, matches: Matches, hit: Bools) -> str | None:
    """Why the retrieval of a model says nothing, in words; None where nothing is wrong, or too few pairs to tell.

    Images (N, D), texts (M, D), image_group (N,), which texts match which image, and the hits (N, cuts).
    """
    for name, side in (("image", images), ("text", texts)):
        if len(side) > 1 and spread(side) < SPREAD:
            return f"the {name} tower gives the same answer to everything"
    if not matches.answerable.any():
        return None
    right, chance = _recall_and_chance(hit, matches, image_group, len(texts))
    return None if right > chance or chance >= 1 else "its retrieval is no better than chance"


def _check(name: str, passed: bool, value: float, limit: float, says: str) -> SanityCheck:
    return SanityCheck(check=name, passed=passed, value=value, limit=limit, says=says)


def enforce_checks(done: Sequence[SanityCheck], backend: str) -> None:
    """Raise GateFailedError with every check that failed."""
    failed = [
        f"{check.check} ({check.says}: {check.value:.4g}, the limit is {check.limit:.4g})"
        for check in done
        if not check.passed
    ]
    if failed:
        captions = ", and that the captions of the data belong to its images"
        raise GateFailedError(
            f"the FP32 baseline on {backend} fails its sanity check: {'; '.join(failed)}",
            "nothing can be compared with it: check the checkpoint with `mmcompress export` and `drift`"
            f"{captions if any(check.check == CHANCE for check in done) else ''}",
        )


def of_few(images: int, texts: int) -> list[str]:
    """What recalls cannot say, of a test set as small as this one."""
    choices = ((texts, "texts"), (images, "images"))
    told = [f"R@10 is 100% of any model that chooses among {n} {what}" for n, what in choices if n <= KS[-1]]
    return [*told, *of_few_images(images)]


def of_few_images(images: int) -> list[str]:
    """What no share can say, of a test set as small as this one."""
    return [f"{images} images say little, whatever their intervals are"] if images < FEW_IMAGES else []
