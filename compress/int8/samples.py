"""The pairs that integers are fitted to and judged on: plain images, each with one of its captions.

What judges is no image that was fitted to, nor a copy of one: see `seen.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from mmcompress.artifact import Artifact
from mmcompress.budget import Budget
from mmcompress.compress.int8.simulate import Batches, Feeds
from mmcompress.compress.train.augment import normalized
from mmcompress.compress.train.pairs import trimmed
from mmcompress.config import FitConfig, QatConfig, QuantizeConfig
from mmcompress.data.batches import batches
from mmcompress.data.layout import read_labels
from mmcompress.data.sample import image_of
from mmcompress.manifest import TextProcessing
from mmcompress.measure.retrieval import KS
from mmcompress.progress import say, track
from mmcompress.runtime.tokenize import load_tokenizer, tokenize
from mmcompress.seen import JudgedOn

ENOUGH = 64
"""Different images that can tell what INT8 costs."""
ENOUGH_TEXTS = 2 * max(KS)
"""Different texts that can: among fewer, a hit at 10 is hardly ever lost."""
SHUFFLED = 4096
"""Encoded samples that are held for shuffling."""


@dataclass(frozen=True)
class Captioned:
    """One batch of plain images, each with one of its captions."""

    pixels: Tensor
    """(B, 3, S, S) normalized"""
    tokens: Tensor
    """(B, T)"""
    images: tuple[bytes, ...] = ()
    """What `image_of` tells of each image file; none where that is not known."""

    def rows(self, chosen: Sequence[int]) -> Captioned:
        """Some of the pairs."""
        return Captioned(self.pixels[chosen], self.tokens[chosen], tuple(self.images[row] for row in chosen))


class Told(Protocol):
    """A batch that tells which image files it is of."""

    @property
    def images(self) -> tuple[bytes, ...]: ...

    def rows(self, chosen: Sequence[int]) -> Self: ...


B = TypeVar("B", bound=Told)


def images_in(batches: Iterable[Told]) -> set[bytes]:
    return {image for batch in batches for image in batch.images}


def unseen(batches: Iterable[B], seen: Collection[bytes]) -> list[B]:
    """What is left of the batches without the images that were seen."""
    left = []
    for batch in batches:
        chosen = [row for row, image in enumerate(batch.images) if image not in seen]
        if len(chosen) == len(batch.images):
            left.append(batch)
        elif chosen:
            left.append(batch.rows(chosen))
    return left


def noting(batches: Iterable[B], seen: set[bytes]) -> Iterator[B]:
    """The batches, their images added to `seen` on the way."""
    for batch in batches:
        seen.update(batch.images)
        yield batch


def fitting_and_judging(held: Sequence[B]) -> tuple[list[B], list[B], JudgedOn]:
    """Every second batch fits; the others judge, without copies of what fits; where nothing is left all judge."""
    fitting = list(held[::2])
    judging = unseen(held[1::2], images_in(fitting))
    return (fitting, judging, "unfitted") if judging else (fitting, list(held), "seen")


def validating(given: Sequence[B], seen: Collection[bytes], spec: str) -> tuple[list[B], JudgedOn]:
    """Validation pairs without the images that were seen, which is said; where nothing is left, all of them."""
    left = unseen(given, seen)
    there, others = (sum(len(batch.images) for batch in batches) for batches in (given, left))
    if not left:
        say("", "data", f"warning: all {there} images of {spec} that judge were calibrated on, or are copies of such")
        return list(given), "seen"
    if others < there:
        say("", "data", f"{there - others} of {there} images of {spec} were calibrated on, or are copies: left out")
    return left, "validation"


def possible_answers(source: Artifact, config: QuantizeConfig, held: Sequence[Captioned]) -> Batches:
    """Tokens of the labels where there are any, as drift offers them, else of the captions of held samples."""
    if config.data.labels is None:
        return feeds(held).text
    text = source.tokenizer
    assert text is not None
    tokens: Tensor = torch.from_numpy(
        tokenize(load_tokenizer(source.file(text.file)), read_labels(config.data.labels), text)
    )
    return list(tokens.split(config.batch))


def feeds(pairs: Sequence[Captioned]) -> Feeds:
    return Feeds([pair.pixels for pair in pairs], [pair.tokens for pair in pairs])


def filled_up(pairs: Sequence[Captioned], text: TextProcessing) -> Iterator[NDArray[Any]]:
    """The tokens of each batch (B, context), with the padding that nothing is computed on."""
    for pair in pairs:
        short = text.context - pair.tokens.shape[1]
        yield torch.nn.functional.pad(pair.tokens, (0, short), value=text.pad_token_id).numpy()


def held_pairs(source: Artifact, spec: str, config: QuantizeConfig) -> list[Captioned]:
    """The first batches, which are held in memory."""
    return list(islice(plain_pairs(source, spec, config), -(-min(config.held, config.samples) // config.batch)))


def warn_of_few(config: FitConfig, judging: Iterable[NDArray[Any]], texts: Iterable[NDArray[Any]]) -> None:
    """Say so where few different images (B, ...) judge, or few texts (B, T), all of one length, are fitted to."""
    images = _different(judging)
    if images < (needed := max(ENOUGH, Budget.of(config, images).fewest)):
        why = f"so what it costs is hardly known; {needed} are needed"
        say("", "data", f"warning: {images} different images judge INT8, {why}")
    if (captions := _different(texts)) < ENOUGH_TEXTS:
        why = f"so R@10 and flips mean nothing; {ENOUGH_TEXTS} are needed"
        say("", "data", f"warning: {captions} different texts calibrate the text tower, {why}")


def _different(parts: Iterable[NDArray[Any]]) -> int:
    return len({row.tobytes() for part in parts for row in part})


def plain_pairs(
    source: Artifact, spec: str, config: QuantizeConfig | QatConfig, what: str | None = None
) -> Iterator[Captioned]:
    """`config.samples` plain images, each with one of its captions in turn, shuffled over the shards."""
    preprocessing, text = source.preprocessing, source.tokenizer
    assert preprocessing is not None and text is not None
    tokenizer = load_tokenizer(source.file(text.file))
    stream = batches(
        spec,
        preprocessing,
        batch=config.batch,
        workers=config.data.workers,
        max_bad_fraction=config.data.max_bad_fraction,
        shuffle_seed=config.seed,
        buffer=SHUFFLED,
    )
    steps = -(-config.samples // config.batch)
    shown = islice(stream, steps)
    for batch in track(shown, what, steps) if what else shown:
        pixels = torch.from_numpy(batch.pixels).permute(0, 3, 1, 2).float() / 255
        texts = [captions[index % len(captions)] for index, captions in enumerate(batch.captions)]
        tokens = trimmed(tokenize(tokenizer, texts, text), source.model.text)
        images = tuple(map(image_of, batch.marks))
        yield Captioned(normalized(pixels, preprocessing), torch.from_numpy(tokens), images)
