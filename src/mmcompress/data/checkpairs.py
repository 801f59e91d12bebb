"""Sixteen drawings that ship, each with captions: does a model know what belongs together at all?

Random weights, a wrong preprocessing or the tokenizer of another model give embeddings that look like any others. What
they do not do is put an image beside its own caption. The drawings are 3D emoji of the demo's test set, of everyday
things, so a model of natural images knows them; a model of X-rays need not, so all that follows from this is a warning.

The statistic is T = sum_i c_ii, where c_ij is the cosine of image i with the captions of thing j (their mean), centred
over rows and columns, so that a text that is near every image counts for nothing. The null hypothesis is that images
and texts have nothing to do with each other: then every one of the N! pairings is as likely as the true one, and the
p-value is the share of random pairings whose T is at least as large, exactly uniform whatever the embeddings look like
(a permutation test, Good 2005, chapter 3). English and Chinese captions are tried in turn, each at half of the level.
"""

from __future__ import annotations

import functools
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.data.batches import decode
from mmcompress.data.spec import expand
from mmcompress.embedding import SPREAD, spread
from mmcompress.manifest import Preprocessing

THINGS: dict[str, tuple[str, str, str, str]] = {
    # codepoint: two captions in English, two in Chinese
    "1f34e": ("a red apple", "a picture of an apple, a fruit", "一个红苹果", "苹果，一种水果"),
    "1f415": ("a dog", "a picture of a brown dog, a pet animal", "一只狗", "小狗，一种宠物"),
    "1f355": ("a slice of pizza", "a picture of pizza with cheese", "一片披萨", "芝士比萨饼"),
    "1f697": ("a red car", "a picture of an automobile, a vehicle", "一辆红色的汽车", "汽车，轿车"),
    "1f6b2": ("a bicycle", "a picture of a bike with two wheels", "一辆自行车", "自行车，单车"),
    "2708": ("an airplane", "a picture of a plane, flying", "一架飞机", "飞机，飞行"),
    "1f3e0": ("a house", "a picture of a home, a building", "一座房子", "房屋，建筑"),
    "1f33b": ("a sunflower", "a picture of a yellow flower, a plant", "一朵向日葵", "向日葵，黄色的花"),
    "1f41f": ("a blue fish", "a picture of a fish, an animal of the sea", "一条蓝色的鱼", "鱼，水里的动物"),
    "1f3b8": ("a guitar", "a picture of a guitar, an instrument for music", "一把吉他", "吉他，乐器"),
    "2602": ("a purple umbrella", "a picture of an umbrella against the rain", "一把紫色的雨伞", "雨伞，下雨"),
    "1f34c": ("a banana", "a picture of a yellow banana, a fruit", "一根香蕉", "香蕉，黄色的水果"),
    "2603": ("a snowman", "a picture of a snowman in cold snow", "一个雪人", "雪人，冬天的雪"),
    "1f511": ("a golden key", "a picture of a key for a lock", "一把金色的钥匙", "钥匙，开锁"),
    "1f418": ("an elephant", "a picture of a grey elephant, an animal", "一头大象", "大象，灰色的动物"),
    "1f334": ("a palm tree", "a picture of a tropical palm, a tree on a beach", "一棵棕榈树", "棕榈，热带的树"),
}
CAPTIONS_EACH = 2
LEVEL = 0.01
"""How often a model whose answers are by chance passes."""
_PAIRINGS = 9999


@dataclass(frozen=True)
class Ranking:
    """How well a model tells the drawings apart by the captions of one language."""

    right: int
    """Drawings whose own captions are the nearest."""
    p: float
    """Share of random pairings that fit as well."""


def check_captions(language: int = 0) -> list[str]:
    """The captions in English (0) or Chinese (1), those of one thing in a row."""
    first = CAPTIONS_EACH * language
    return [caption for captions in THINGS.values() for caption in captions[first : first + CAPTIONS_EACH]]


def check_images(preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The drawings, prepared as the model wants them: (N, S, S, 3)."""
    return np.stack([decode(image, preprocessing) for image in _drawings()])


@functools.cache
def _drawings() -> tuple[bytes, ...]:
    with tarfile.open(expand("demo:test")[0]) as shard:
        files = [shard.extractfile(f"{codepoint}-fluent3d.webp") for codepoint in THINGS]
        return tuple(file.read() for file in files if file is not None)


def ranking(images: NDArray[np.floating[Any]], texts: NDArray[np.floating[Any]]) -> Ranking:
    """(N, D), (N * CAPTIONS_EACH, D) of unit norm, in the order of `THINGS`."""
    count = len(images)
    means = texts.astype(np.float64).reshape(count, CAPTIONS_EACH, -1).mean(axis=1)
    cosines = images.astype(np.float64) @ means.T
    centred = cosines - cosines.mean(axis=0) - cosines.mean(axis=1, keepdims=True) + cosines.mean()
    rows = np.arange(count)
    pairings = np.random.default_rng(0).permuted(np.tile(rows, (_PAIRINGS, 1)), axis=1)
    as_good = np.count_nonzero(centred[rows, pairings].sum(axis=1) >= np.trace(centred))
    right = int(np.count_nonzero(cosines.argmax(axis=1) == rows))
    return Ranking(right, (1 + as_good) / (1 + _PAIRINGS))


def judged(
    images: NDArray[np.floating[Any]], embed: Callable[[Sequence[str]], NDArray[np.floating[Any]]]
) -> str | None:
    """What is wrong with a model, in words: its `check_images` (N, D), and how it embeds texts; None for nothing."""
    found: list[Ranking] = []
    for language in (0, 1):
        texts = embed(check_captions(language))
        for tower, side in (("image", images), ("text", texts)):
            if spread(side) < SPREAD:
                return f"the {tower} tower gives the same answer to everything: the model has collapsed"
        found.append(ranking(images, texts))
        if found[-1].p <= LEVEL / 2:
            return None
    best = min(found, key=lambda one: one.p)
    return (
        f"it gives {best.right} of {len(images)} drawings of everyday things their own captions, which is chance "
        f"(p = {min(1.0, 2 * best.p):.2g}): its weights are random or damaged, its images or texts are prepared "
        "wrongly, or it knows other images or another language"
    )
