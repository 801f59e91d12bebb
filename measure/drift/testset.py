"""The evaluated images, their candidate texts, and what an artifact makes of both.

There are three kinds of sets. Pairs: the captions of all images are the candidates, each belongs to its image. Classes:
the candidates are labels, from a file (`data.labels`) or from the data itself where it has classes, and an image
belongs to the one that it is labelled with. Prompt templates stand around labels: a label is then the mean of the
embeddings of all its prompts, normalized again (Radford et al. 2021, section 3.1.4), so a row costs as many texts as
there are labels times templates. Photos: nobody said what is right, so right is what the first row answers, among the
labels or the sentences that ship, and every figure of another row says how often it answers the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmcompress.artifact import Artifact
from mmcompress.config import EIGHT_BITS, Backend, DataConfig, Precision
from mmcompress.data.sample import image_of
from mmcompress.data.spec import is_photos
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import hash_json
from mmcompress.measure.agreement import best
from mmcompress.measure.retrieval import Bools, Floats, Ints
from mmcompress.runtime.backends import graph_for
from mmcompress.runtime.encoder import Encoder, unit
from mmcompress.runtime.tokenize import text_processing
from mmcompress.runtime.trimmed import warn_of_lost_letters

_PROMPTS = 512
"""Prompts that are embedded at once."""


@dataclass(frozen=True)
class EvaluationSet:
    """The evaluated images and the candidate texts."""

    keys: list[str]
    seen: Bools
    """(N,)"""
    texts: list[str]
    templates: tuple[str, ...]
    """Prompts around the texts; none are the texts themselves."""
    image_group: Ints
    """(N,) an image and a text of the same group match; -1 matches nothing"""
    text_group: Ints
    """(M,)"""
    classes: bool
    """The candidates are labels, so there is a top-1 accuracy."""
    image_files: tuple[bytes, ...] = ()
    """What `image_of` tells of each image's file."""


@dataclass(frozen=True)
class Row:
    """One artifact's embeddings of the pairs."""

    name: str
    precision: Precision
    logit_scale: float | None
    images: Floats
    """(N, D)"""
    texts: Floats
    """(M, D)"""
    text_tower: str = ""
    """Equal for rows that embed texts alike, to the bit."""


def embed_row(
    artifact: Artifact,
    data: DataConfig,
    backend: Backend | None,
    batch: int,
    pairs: EvaluationSet | None,
    before: Row | None = None,
) -> tuple[EvaluationSet, Row]:
    """Run both towers over the test set; the first row also says which pairs there are.

    Where only images were distilled or pruned, the text tower is the one of the row before, and so are its embeddings.
    """
    from mmcompress.data.batches import batches

    assert data.test is not None
    keys: list[str] = []
    seen: list[bool] = []
    labels: list[str | None] = []
    captions: list[tuple[str, ...]] = []
    images: list[Floats] = []
    files: list[bytes] = []
    first = pairs is None
    with Encoder.open(artifact, backend) as encoder:
        encoder.warn_by_chance()
        stream = batches(
            data.test,
            encoder.preprocessing,
            batch=batch,
            workers=data.workers,
            max_bad_fraction=data.max_bad_fraction,
        )
        for part in stream:
            keys += part.keys
            seen += part.seen
            labels += part.labels
            captions += part.captions
            files += map(image_of, part.marks)
            images.append(encoder.pixels(part.pixels))
        if pairs is None:
            pairs = replace(_pairs(keys, seen, labels, captions, data), image_files=tuple(files))
            _check_can_differ(pairs, data.test)
        elif pairs.keys != keys:
            raise CorruptInputError(f"{data.test} changed while it was read", "run drift again")
        text_tower = _text_tower(encoder)
        if before is not None and before.text_tower == text_tower:
            texts = before.texts
        else:
            warn_of_lost_letters(artifact, pairs.texts)
            texts = prompt_embeddings(encoder, pairs.texts, pairs.templates)
    if first and is_photos(data.test):
        pairs = replace(pairs, image_group=best(np.concatenate(images), texts))
    scale = artifact.manifest.facts.get("logit_scale")
    scale = float(scale) if isinstance(scale, (int, float)) else None
    own = encoder.precisions.values()
    precision = next((p for p in EIGHT_BITS if p in own), encoder.precisions["image"])
    return pairs, Row(artifact.path.name, precision, scale, np.concatenate(images), texts, text_tower)


def _check_can_differ(pairs: EvaluationSet, test: str) -> None:
    """Raise UsageError for a test set that any model answers alike, since there is nothing to choose between."""
    for what, there in (("images", pairs.image_files), ("texts", pairs.texts)):
        if len({*there}) < 2:
            raise UsageError(
                f"{test} has {len(there)} {what}, and less than two different ones: any model answers them alike",
                "give a test set of different images with different captions, or photos; 100 images tell something",
            )


def _text_tower(encoder: Encoder) -> str:
    """Hash of what texts go through: the tokenizer, the graph with its weights, and the backend."""
    artifact, text = encoder.artifact, text_processing(encoder.artifact)
    graph = graph_for(artifact, "text", encoder.backend, encoder.precisions["text"])
    names = [name for name in artifact.manifest.files if name == text.file or name.startswith(graph.file)]
    files = {name: artifact.manifest.files[name].sha256 for name in names}
    return hash_json([encoder.backend, graph.model_dump(mode="json"), text.model_dump(mode="json"), files])


def prompt_embeddings(encoder: Encoder, texts: Sequence[str], templates: Sequence[str] = ()) -> Floats:
    """M texts -> (M, D): each text's own embedding, or the normalized mean of its prompts'."""
    from mmcompress.data.layout import prompts

    if not templates:
        return encoder.texts(texts)
    step = max(1, _PROMPTS // len(templates))
    parts = []
    for start in range(0, len(texts), step):
        some = texts[start : start + step]
        embedded = encoder.texts(prompts(some, templates))
        parts.append(unit(embedded.reshape(len(some), len(templates), -1).mean(axis=1)))
    return np.concatenate(parts)


def _pairs(
    keys: list[str], seen: list[bool], labels: list[str | None], captions: list[tuple[str, ...]], data: DataConfig
) -> EvaluationSet:
    from mmcompress.data.layout import class_names, own_templates, read_labels, read_templates
    from mmcompress.data.sentences import sentences

    assert data.test is not None
    photos = is_photos(data.test)
    natural = class_names(data.test)
    if data.labels is None and natural is None and data.templates is not None:
        has = "photos" if photos else "captions"
        raise UsageError(
            f"data.templates is {data.templates}, and {data.test} has {has}, not classes",
            "give --labels with the names of the classes, or leave the templates out",
        )
    if photos:
        texts = read_labels(data.labels) if data.labels is not None else list(sentences())
        around = read_templates(data.templates) if data.templates is not None else []
        return EvaluationSet(
            keys, np.array(seen), texts, tuple(around), np.full(len(keys), -1), np.arange(len(texts)), classes=False
        )
    if data.labels is None and natural is None:
        owner = [index for index, texts in enumerate(captions) for _ in texts]
        texts = [text for group in captions for text in group]
        return EvaluationSet(keys, np.array(seen), texts, (), np.arange(len(keys)), np.array(owner), classes=False)
    texts = read_labels(data.labels) if data.labels is not None else list(natural or ())
    templates = read_templates(data.templates) if data.templates is not None else own_templates(data.test)
    place = {text: index for index, text in enumerate(texts)}
    groups = np.array([place.get(label or "", -1) for label in labels])
    if (groups < 0).all():
        raise UsageError(
            f"no image of {data.test} has a label that is in {data.labels}",
            f'labels are a sample\'s class, or the "label" of its json; the first image has {labels[0]!r}',
        )
    return EvaluationSet(keys, np.array(seen), texts, tuple(templates), groups, np.arange(len(texts)), classes=True)
