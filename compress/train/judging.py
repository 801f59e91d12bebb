"""What a model in training finds on some samples: top-1 among classes by prompts, or R@10 of captions.

The samples are decoded once and kept as bytes, as they are measured again and again. A class is the mean of the
embeddings of its prompts, normalized again (Radford et al. 2021, section 3.1.4), as in the drift table.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mmcompress.artifact import Artifact, Draft
from mmcompress.compress.train.augment import normalized
from mmcompress.compress.train.pairs import trimmed
from mmcompress.config import DataConfig
from mmcompress.data.batches import Batch, batches
from mmcompress.data.layout import class_names, own_templates, prompts, read_labels, read_templates
from mmcompress.errors import UsageError
from mmcompress.measure.retrieval import Floats, classification, retrieval
from mmcompress.measure.sanity import of_few, of_few_images
from mmcompress.metrics import Figure
from mmcompress.model import DualEncoder
from mmcompress.runtime.tokenize import load_tokenizer, tokenize


@dataclass(frozen=True)
class Classes:
    """What an image is chosen among."""

    names: tuple[str, ...]
    templates: tuple[str, ...]
    """Prompts around them."""


@dataclass(frozen=True)
class Judge:
    """A figure of a model as it is."""

    figure: Figure
    measure: Callable[[], float]
    doubts: tuple[str, ...]
    """What it cannot say of so few samples."""


def classes_of(spec: str, labels: str | None = None, templates: str | None = None) -> Classes | None:
    """The classes of a set, its own or those of a file, with the templates of a file or its own; None without any."""
    names = read_labels(labels) if labels is not None else class_names(spec)
    if names is None:
        return None
    around = read_templates(templates) if templates is not None else own_templates(spec)
    return Classes(tuple(names), tuple(around) or ("{}",))


def check_told_apart(student: Draft | Artifact, classes: Classes) -> None:
    """Raise UsageError for two classes whose prompts are the same tokens: a tokenizer that ignores case has one."""
    tokens = _tokens(student, prompts(classes.names, classes.templates)).reshape(len(classes.names), -1)
    seen: dict[bytes, str] = {}
    for name, row in zip(classes.names, tokens, strict=True):
        if (other := seen.setdefault(row.tobytes(), name)) != name:
            raise UsageError(
                f"the classes {other!r} and {name!r} are the same tokens for this model, and nothing tells them apart",
                "give them one name, or others: capitals may not count, nor what is behind the last token read",
            )


@torch.no_grad()
def class_embeddings(
    model: DualEncoder, student: Draft | Artifact, classes: Classes, batch: int, device: torch.device
) -> Tensor:
    """(C, D) of unit norm."""
    texts = _texts(model, student, prompts(classes.names, classes.templates), batch, device)
    return F.normalize(texts.unflatten(0, (len(classes.names), -1)).mean(dim=1), dim=-1)


def judge_of(
    model: DualEncoder,
    student: Draft | Artifact,
    data: DataConfig,
    spec: str,
    classes: Classes | None,
    most: int,
    batch: int,
    device: torch.device,
    text_kept: bool = False,
) -> Judge:
    """Of the first `most` plain samples of a set. Where the text tower is kept, texts are embedded once.

    Raises UsageError where none of the samples is of one of the classes.
    """
    preprocessing = student.preprocessing
    assert preprocessing is not None
    decoded: list[Batch] = []
    keyed: list[str] = []
    captions: list[tuple[str, ...]] = []
    stream = batches(spec, preprocessing, batch=batch, workers=data.workers, max_bad_fraction=data.max_bad_fraction)
    for some in islice(stream, -(-most // batch)):
        decoded.append(some)
        keyed += [label or "" for label in some.labels]
        captions += some.captions
    place = {name: number for number, name in enumerate(classes.names)} if classes is not None else {}
    labels = np.array([place.get(label, -1) for label in keyed][:most])
    if classes is not None and (labels < 0).all():
        raise UsageError(
            f"none of the {len(labels)} samples of {spec} that judge is of one of the {len(classes.names)} classes, "
            f"{classes.names[0]!r} say; the first is of {keyed[0]!r}",
            "give samples of these classes, or --by captions",
        )

    def images() -> Tensor:
        parts = []
        for some in decoded:
            pixels = torch.from_numpy(some.pixels).to(device).permute(0, 3, 1, 2).float() / 255
            parts.append(model.encode_image(normalized(pixels, preprocessing)).cpu())
        return torch.cat(parts)[:most]

    said = captions[:most]

    def texts() -> Floats:
        if classes is not None:
            return class_embeddings(model, student, classes, batch, device).cpu().numpy()
        return _texts(model, student, [text for own in said for text in own], batch, device).cpu().numpy()

    candidates = functools.cache(texts) if text_kept else texts

    def top1() -> float:
        known = labels >= 0
        share = classification(images().numpy()[known], candidates(), labels[known])["top1"]
        assert share is not None
        return share

    def r10() -> float:
        owner = np.repeat(np.arange(len(said)), [len(own) for own in said])
        shares = retrieval(images().numpy(), candidates(), owner)
        return (shares["i2t_r10"] + shares["t2i_r10"]) / 2

    if classes is None:
        return Judge("r10", torch.no_grad()(r10), tuple(of_few(len(labels), sum(map(len, said)))))
    return Judge("top1", torch.no_grad()(top1), tuple(of_few_images(int((labels >= 0).sum()))))


@torch.no_grad()
def _texts(model: DualEncoder, student: Draft | Artifact, texts: list[str], batch: int, device: torch.device) -> Tensor:
    """M texts -> (M, D) of unit norm."""
    tokens = trimmed(_tokens(student, texts), model.config.text)
    return torch.cat([model.encode_text(part.to(device)) for part in torch.from_numpy(tokens).split(batch)])


def _tokens(student: Draft | Artifact, texts: list[str]) -> NDArray[np.int32]:
    """M texts -> (M, L)"""
    text = student.tokenizer
    assert text is not None
    return tokenize(load_tokenizer(student.path / text.file), texts, text)
