"""Training pairs on the device: pixels and tokens, with the teacher's embedding of the same view and caption.

Which view and which caption a sample shows in an epoch is a function of (seed, epoch, key), so every process and every
resumed run sees the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmcompress.architecture import TextConfig
from mmcompress.artifact import Artifact, Draft
from mmcompress.compress.train.augment import decoded_views, normalized, pixels_of_views
from mmcompress.compress.train.embeddings import Embeddings, load_embeddings
from mmcompress.config import DataConfig
from mmcompress.data.batches import Batch, batches, count, count_up_to, decode, listing
from mmcompress.data.decoding import Kept
from mmcompress.data.fingerprint import fingerprint
from mmcompress.data.imagefile import image_size
from mmcompress.data.reading import Listed
from mmcompress.data.spec import is_stream
from mmcompress.data.views import choices
from mmcompress.distributed import World
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import Preprocessing, hash_file
from mmcompress.progress import say
from mmcompress.ranks import share_of_batch
from mmcompress.reach import reach
from mmcompress.runtime.tokenize import load_tokenizer, tokenize

LOOKED_AT = 64
"""Samples that are held to their embeddings before a stage begins."""


@dataclass(frozen=True)
class TrainingBatch:
    """One batch on the device."""

    keys: Sequence[str]
    """Of its B samples."""
    pixels: Tensor
    """(B, 3, S, S) normalized"""
    tokens: Tensor
    """(B, T)"""
    groups: Tensor
    """(B,) int: equal for pairs that match each other, by label or, without one, by caption"""
    teacher: tuple[Tensor, Tensor] | None
    """The teacher's images (B, D) and texts (B, D), of unit norm"""


@dataclass(frozen=True)
class TrainingPairs:
    count: int
    stream: Callable[[int, int], Iterator[TrainingBatch]]
    """(epoch, batches to skip) -> the rest of the epoch"""


def training_pairs(
    student: Draft | Artifact,
    data: DataConfig,
    *,
    batch: int,
    seed: int,
    here: World,
    embeddings: Embeddings | None,
    views: int = 1,
    augment: str = "none",
    sentences: bool = False,
) -> TrainingPairs:
    """The training data as the student sees it, in batches of `batch` over all ranks.

    With embeddings the views are those that were embedded; without, `views` augmented ones, never the plain image. With
    `sentences` the texts are the user's sentences where the embeddings have any, and not the captions.
    """
    preprocessing, text, model = student.preprocessing, student.tokenizer, student.model
    if data.train is None:
        raise UsageError("this stage needs training data", "set data.train, or give --data")
    assert preprocessing is not None and text is not None and model is not None
    spec, tokenizer = data.train, load_tokenizer(student.path / text.file)
    own_batch = share_of_batch(batch, here.size)
    here.agree("tokenizer", hash_file(student.path / text.file) if here.size > 1 else "")

    kept: Kept | None = {} if embeddings is not None or augment != "photo" else None  # else no view comes again
    if embeddings is None:
        first, number_of_views, view_seed, kind, given = 1, views, seed, augment, None
    else:
        first, number_of_views, view_seed, kind = 0, embeddings.views, embeddings.seed, embeddings.augment
        given = embeddings.given(preprocessing.size)

    def views_of(u: NDArray[np.float32]) -> NDArray[np.int64]:
        return first + (u[:, 0] * number_of_views).astype(np.int64)

    def pairs(decoded: Batch, epoch: int) -> TrainingBatch:
        u = choices(seed, epoch, decoded.keys)
        shown, caption_of = views_of(u), u[:, 1]
        chosen = [int(u * len(own)) for u, own in zip(caption_of, decoded.captions, strict=True)]
        texts = [own[i] for own, i in zip(decoded.captions, chosen, strict=True)]
        pixels, teacher = pixels_of_views(decoded, shown, view_seed, kind, here.device), None
        if embeddings is not None:
            images, captions = embeddings.lookup(decoded.keys, decoded.marks, shown, chosen)
            if sentences and embeddings.sentences:
                texts, captions = embeddings.beside(caption_of)
            teacher = images.to(here.device), captions.to(here.device)
        names = [label or caption for label, caption in zip(decoded.labels, texts, strict=True)]
        return TrainingBatch(
            decoded.keys,
            normalized(pixels, preprocessing),
            torch.from_numpy(trimmed(tokenize(tokenizer, texts, text), model.text)).to(here.device),
            torch.tensor([group_of(name) for name in names], device=here.device),
            teacher,
        )

    def stream(epoch: int, skip: int) -> Iterator[TrainingBatch]:
        decoded = batches(
            spec,
            preprocessing,
            batch=own_batch,
            workers=data.workers,
            max_bad_fraction=data.max_bad_fraction,
            shuffle_seed=seed,
            epoch=epoch,
            skip=skip,
            drop_last=True,
            rank=here.rank,
            world=here.size,
            kept=kept,
            shown=decoded_views(kind, view_seed, 1, lambda key: views_of(choices(seed, epoch, [key])).tolist(), given),
            length=total // batch,
        )
        return (pairs(samples, epoch) for samples in decoded)

    def number() -> int:
        if embeddings is None:
            return count(spec, data.max_bad_fraction)
        return paired(spec, data.max_bad_fraction, embeddings, preprocessing)

    total = here.shared(number() if here.leads else 0)
    return TrainingPairs(total, stream)


def paired(spec: str, max_bad_fraction: float, embeddings: Embeddings, preprocessing: Preprocessing) -> int:
    """How many samples there are to train on, each of which was embedded as it is: `Embeddings.check`.

    The data that was embedded has the fingerprint that was recorded. Other data is looked through here, before the
    first step, by the indices of its shards; a stream can be read once only, and is checked batch by batch.
    """
    if is_stream(spec) or fingerprint(spec) == embeddings.data:
        return len(embeddings)
    return sum(1 for _ in _embedded(listing(spec, max_bad_fraction), embeddings, preprocessing))


def check_first_embedded(spec: str | None, sources: Mapping[str, Artifact]) -> None:
    """As `paired`, of the first samples alone, for before a model is loaded: other data is mostly told by one.

    Raises CorruptInputError, which says what data the embeddings are of.
    """
    artifact = sources["embeddings"]
    preprocessing = sources.get("checkpoint", artifact).preprocessing
    if spec is None or is_stream(spec) or preprocessing is None:
        return
    embeddings = load_embeddings(artifact)
    if fingerprint(spec) == embeddings.data:
        return
    try:
        for _ in islice(_embedded(listing(spec, max_bad_fraction=1.0), embeddings, preprocessing), LOOKED_AT):
            pass
    except CorruptInputError as error:
        data = artifact.manifest.config.get("data")
        theirs = data.get("train") if isinstance(data, dict) else None
        also = f", or leave --data out: {artifact.path} is of {theirs}" if theirs else ""
        raise CorruptInputError(error.what, f"{error.hint} (--teacher makes new embeddings){also}") from error


def _embedded(samples: Iterable[Listed], embeddings: Embeddings, preprocessing: Preprocessing) -> Iterator[Listed]:
    """The samples that are images, each of which is held to its embedding."""
    for sample in samples:
        if embeddings.has(sample.key) or _decodes(sample.stored(), preprocessing):
            embeddings.check(sample.key, sample.mark)
            yield sample


def _decodes(image: bytes, preprocessing: Preprocessing) -> bool:
    """Whether an image is one; of others there is neither an embedding nor a batch."""
    try:
        decode(image, preprocessing)
    except CorruptInputError:
        return False
    return True


def check_fills_a_batch(spec: str | None, batch: int) -> None:
    """Raise UsageError where data has less than one batch; of a stream, which is read once, nothing is known yet."""
    if spec is None or is_stream(spec):
        return
    there = count_up_to(batch, spec)
    if there < batch:
        raise UsageError(
            f"a batch of {batch} pairs was asked for, and there are {there} in {spec}",
            "give a smaller batch, or more data",
        )


def warn_of_enlarged(spec: str | None, side: int) -> None:
    """Say where half of the images have less than half of the pixels that a student takes.

    The first `LOOKED_AT` images tell, by the shorter side in their headers; of a stream, which is read once, nothing.
    """
    if spec is None or is_stream(spec):
        return
    first = islice(listing(spec, max_bad_fraction=1.0), LOOKED_AT)
    sides = sorted(min(image_size(sample.stored())) for sample in first)
    if sides and 2 * (half := sides[(len(sides) - 1) // 2]) ** 2 < side**2:
        said = f"half or more of {spec} has {half} pixels a side or fewer, and the student takes {side}"
        cost = f"enlarged they show no more, at {(side / half) ** 2:.0f} times the work"
        say("", "data", f"warning: {said}: {cost}; give the student a smaller image_size")


def trimmed(tokens: NDArray[np.int32], text: TextConfig) -> NDArray[np.int32]:
    """(B, T) -> (B, T'): without what reaches no embedding of the batch."""
    return tokens[:, : int(reach(tokens, text).max()) + 1]


def group_of(name: str) -> int:
    """The number of what has a label, or without one a caption, of this name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)
