"""What a step cost: accuracy on the test pairs, and distance from the teacher, on the files that are delivered.

Three kinds of figures, since each hides what another shows. Recall says how well the model retrieves. Cosine to a
reference says how far the embeddings moved, before any answer changes. The flip rate says how many answers changed,
right or wrong: two models of equal recall can disagree on every tenth image.

The metrics are pure functions of unit embeddings and work in blocks, so that N x M scores never exist at once. Ties go
to the candidate that comes first in the list, as in a stable sort: it is deterministic, and a collapsed model, whose
scores are all equal, gets what chance gets and not 1.0. CLIP_benchmark takes torch.topk, which agrees wherever scores
differ and whose choice among equal ones is arbitrary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.artifact import Artifact, Kind
from mmcompress.config import Backend, DataConfig, DriftConfig
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.progress import track
from mmcompress.runtime.encoder import Encoder
from mmcompress.runtime.session import default_backend

if TYPE_CHECKING:
    from mmcompress.pipeline import Job

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
KS = (1, 5, 10)
_SCORES = 1 << 22
"""Scores that exist at once: 16 MiB in float32."""


def retrieval(images: Floats, texts: Floats, owner: Ints) -> dict[str, float]:
    """(N, D), (M, D), (M,) -> {"i2t_r1" … "t2i_r10"} for unit embeddings.

    owner[j] is the image that text j describes; -1 is a text that belongs to no image of the set, which is a candidate
    for every image and no query. i2t_rk: share of the images for which at least one of its texts is among the k best;
    images without a text cannot be answered and are left out of it. t2i_rk: share of the texts whose image is among the
    k best of all images.
    """
    owner = np.asarray(owner)
    if owner.shape != (len(texts),) or (len(owner) and not -1 <= owner.min() <= owner.max() < len(images)):
        raise UsageError(
            f"owner has shape {owner.shape} for {len(texts)} texts and {len(images)} images",
            "give for each text the index of its image, or -1",
        )
    return recalls(*retrieval_ranks(images, texts, np.arange(len(images)), owner))


def retrieval_ranks(images: Floats, texts: Floats, image_group: Ints, text_group: Ints) -> tuple[Ints, Ints]:
    """Ranks of the best match, of each image among the texts and of each text among the images; 0 is best.

    An image and a text match if their groups are equal and not negative; what has no match is no query and is left out.
    So one label may stand for many images, and one image may have many captions.
    """
    queries = np.isin(image_group, text_group) & (image_group >= 0)
    i2t = match_ranks(images[queries], texts, image_group[queries], text_group)
    queries = np.isin(text_group, image_group) & (text_group >= 0)
    t2i = match_ranks(texts[queries], images, text_group[queries], image_group)
    return i2t, t2i


def recalls(i2t: Ints, t2i: Ints) -> dict[str, float]:
    """Ranks of both directions -> recall at 1, 5 and 10."""
    if not len(i2t):
        raise UsageError("no text belongs to any of the images, so there is no retrieval to measure", "see --labels")
    ranks = {"i2t": i2t, "t2i": t2i}
    return {f"{way}_r{k}": float((ranks[way] < k).mean()) for way in ranks for k in KS}


def classification(images: Floats, class_texts: Floats, labels: Ints) -> dict[str, float]:
    """(N, D), (C, D), (N,) class of each image -> share whose class is the best one, and among the five best."""
    ranks = match_ranks(images, class_texts, np.asarray(labels), np.arange(len(class_texts)))
    return {f"top{k}": float((ranks < k).mean()) for k in (1, 5)}


def match_ranks(queries: Floats, candidates: Floats, query_group: Ints, candidate_group: Ints) -> Ints:
    """(Q, D), (C, D) -> (Q,): how many candidates come before the best one of the query's group."""
    ranks = [np.empty(0, dtype=np.int64)]
    for rows, scores in _blocks(queries, candidates):
        matching = query_group[rows, None] == candidate_group[None]
        if not matching.any(axis=1).all():
            raise UsageError("a query has no match among the candidates", "leave out what cannot be answered")
        ours = np.where(matching, scores, -np.inf)
        place = ours.argmax(axis=1)[:, None]
        best = np.take_along_axis(ours, place, axis=1)
        earlier = np.arange(len(candidates))[None] < place
        ranks.append((scores > best).sum(axis=1) + ((scores == best) & earlier).sum(axis=1))
    return np.concatenate(ranks)


def best_matches(queries: Floats, candidates: Floats) -> Ints:
    """(Q, D), (C, D) -> (Q,): index of the best candidate, the first of equal ones."""
    found = [scores.argmax(axis=1) for _, scores in _blocks(queries, candidates)]
    return np.concatenate([np.empty(0, dtype=np.int64), *found])


def _blocks(queries: Floats, candidates: Floats) -> Iterator[tuple[slice, Floats]]:
    """Scores (q, C) of a block of queries at a time. NaN compares as no better than anything, so it must not get in."""
    if queries.shape[1:] != candidates.shape[1:]:
        raise UsageError(f"embeddings of {queries.shape[1:]} and {candidates.shape[1:]} channels", "use one model")
    for embeddings in (queries, candidates):
        if not np.isfinite(embeddings).all():
            raise CorruptInputError("an embedding is not finite (NaN or infinite)", "the model is broken: check it")
    step = max(1, _SCORES // max(1, len(candidates)))
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        yield rows, queries[rows] @ candidates.T


def cosines(reference: Floats, other: Floats) -> NDArray[np.float64]:
    """(N, D), (N, D) -> (N,), row by row; computed in float64, since INT8 differs from FP32 in the fourth digit."""
    a, b = reference.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    result: NDArray[np.float64] = (a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return result


def agreement(reference: Floats, other: Floats) -> dict[str, float]:
    """(N, D), (N, D) -> mean cosine, and the first percentile: the worst images are what a mean hides."""
    rows = cosines(reference, other)
    return {"cosine_mean": float(rows.mean()), "cosine_p01": float(np.quantile(rows, 0.01))}


def flips(reference_images: Floats, reference_texts: Floats, images: Floats, texts: Floats) -> NDArray[np.bool_]:
    """(N,): whether the best text of an image is another than in the reference. The two may differ in dimension."""
    changed: NDArray[np.bool_] = best_matches(reference_images, reference_texts) != best_matches(images, texts)
    return changed


def flip_rate(reference_images: Floats, reference_texts: Floats, images: Floats, texts: Floats) -> float:
    """Share of the images whose top-1 text differs from the reference's."""
    return float(flips(reference_images, reference_texts, images, texts).mean())


def bootstrap_ci(hits: NDArray[Any], seed: int = 0, resamples: int = 1000) -> tuple[float, float]:
    """(N,) one value a sample -> 95% percentile interval of the mean (Efron 1979).

    The samples must be independent: one a image. Captions of one image are not.
    """
    values, draw = np.asarray(hits, dtype=np.float64), np.random.default_rng(seed)
    means = [values[draw.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Pairs:
    """The evaluated images and the candidate texts."""

    keys: list[str]
    seen: NDArray[np.bool_]
    """(N,)"""
    texts: list[str]
    image_group: Ints
    """(N,) an image and a text of the same group match; -1 matches nothing"""
    text_group: Ints
    """(M,)"""
    classes: bool
    """The candidates are labels, so there is a top-1 accuracy."""


@dataclass(frozen=True)
class Row:
    """One artifact's embeddings of the pairs."""

    name: str
    precision: str
    images: Floats
    """(N, D)"""
    texts: Floats
    """(M, D)"""


def drift(job: Job[DriftConfig]) -> None:
    """Stage: write drift.json over every gathered ONNX artifact; the first is the teacher."""
    config = job.config
    report = drift_report(job.gathered, config.data, backend=config.backend, batch=config.batch, seed=config.seed)
    (job.draft.path / "drift.json").write_text(json.dumps(report, indent=1, allow_nan=False), encoding="utf-8")


def drift_report(
    artifacts: Sequence[Artifact], data: DataConfig, *, backend: Backend | None = None, batch: int = 32, seed: int = 0
) -> dict[str, Any]:
    """Embed the test pairs with every artifact, compare each with the first, and INT8 with the FP32 row before it."""
    if not artifacts or data.test is None:
        raise UsageError(
            "there is no artifact to measure" if not artifacts else "there are no test pairs: data.test is not set",
            "put `baseline` or `export` before `drift`" if not artifacts else "set [data] test, or give --data",
        )
    backend = backend or (default_backend() if any(a.manifest.kind is Kind.ONNX for a in artifacts) else None)
    pairs: Pairs | None = None
    teacher: Row | None = None
    fp32: Row | None = None
    rows: list[dict[str, Any]] = []
    for artifact in track(artifacts, "drift", total=len(artifacts)):
        pairs, row = embed_row(artifact, data, backend if artifact.manifest.kind is Kind.ONNX else None, batch, pairs)
        teacher = teacher or row
        rows.append(_table_row(pairs, row, teacher, fp32 if row.precision == "int8" else None, seed))
        fp32 = row if row.precision == "fp32" else fp32
    return {"backend": backend, "test": data.test, "rows": rows}


def embed_row(
    artifact: Artifact, data: DataConfig, backend: Backend | None, batch: int, pairs: Pairs | None
) -> tuple[Pairs, Row]:
    """Run both towers over the test pairs; the first row also says which pairs there are."""
    from mmcompress.data import batches

    assert data.test is not None
    keys: list[str] = []
    seen: list[bool] = []
    labels: list[str | None] = []
    captions: list[tuple[str, ...]] = []
    images: list[Floats] = []
    with Encoder.open(artifact, backend) as encoder:
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
            images.append(encoder.pixels(part.pixels))
        if pairs is None:
            pairs = _pairs(keys, seen, labels, captions, data)
        elif pairs.keys != keys:
            raise CorruptInputError(f"{data.test} changed while it was read", "run drift again")
        row = Row(artifact.path.name, encoder.precisions["image"], np.concatenate(images), encoder.texts(pairs.texts))
    return pairs, row


def _pairs(
    keys: list[str], seen: list[bool], labels: list[str | None], captions: list[tuple[str, ...]], data: DataConfig
) -> Pairs:
    if data.labels is None:
        owner = [index for index, texts in enumerate(captions) for _ in texts]
        texts = [text for group in captions for text in group]
        return Pairs(keys, np.array(seen), texts, np.arange(len(keys)), np.array(owner), classes=False)
    texts = read_labels(data.labels)
    place = {text: index for index, text in enumerate(texts)}
    groups = np.array([place.get(label or "", -1) for label in labels])
    if (groups < 0).all():
        raise UsageError(
            f"no image of {data.test} has a label that is in {data.labels}",
            f'labels come from the "label" of a sample\'s json; the first image has {labels[0]!r}',
        )
    return Pairs(keys, np.array(seen), texts, groups, np.arange(len(texts)), classes=True)


def read_labels(spec: str) -> list[str]:
    """Candidate texts, one a line, each once; `demo:names` are those that ship."""
    from mmcompress.data import expand

    path = Path(expand(spec)[0])
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise CorruptInputError(
            f"{path} is no text file: {error}", "give a UTF-8 file with one label a line"
        ) from error
    labels = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not labels:
        raise UsageError(f"{path} lists no labels", "give one label a line")
    return labels


def _table_row(pairs: Pairs, row: Row, teacher: Row, fp32: Row | None, seed: int) -> dict[str, Any]:
    main, unseen = np.flatnonzero(pairs.seen), np.flatnonzero(~pairs.seen)
    if not len(main):
        main, unseen = unseen, main
    answerable = np.isin(pairs.image_group[unseen], pairs.text_group).any()
    metrics = _metrics(pairs, row, teacher, main, seed)
    against = None
    if fp32 is not None:
        full = _metrics(pairs, fp32, teacher, main, seed)
        against = {
            "row": fp32.name,
            **agreement(fp32.images[main], row.images[main]),
            "text_cosine_mean": agreement(fp32.texts, row.texts)["cosine_mean"],
            "flip_rate": flip_rate(fp32.images[main], fp32.texts, row.images[main], row.texts),
            "r10_drop": full["i2t_r10"] - metrics["i2t_r10"],
        }
    return {
        "row": row.name,
        "precision": row.precision,
        "images": len(main),
        "candidates": len(pairs.texts),
        "metrics": metrics,
        "against": teacher.name,
        "unseen_images": len(unseen),
        "unseen": _metrics(pairs, row, teacher, unseen, seed) if answerable else None,
        "int8_against_fp32": against,
    }


def _metrics(pairs: Pairs, row: Row, teacher: Row, chosen: Ints, seed: int) -> dict[str, Any]:
    """All figures over the chosen images, against all candidates."""
    images, group = row.images[chosen], pairs.image_group[chosen]
    i2t, t2i = retrieval_ranks(images, row.texts, group, pairs.text_group)
    same_space = row.images.shape[1] == teacher.images.shape[1]
    flipped = flips(teacher.images[chosen], teacher.texts, images, row.texts)
    found: dict[str, Any] = recalls(i2t, t2i)
    found["top1"] = found["i2t_r1"] if pairs.classes else None
    found |= agreement(teacher.images[chosen], images) if same_space else {"cosine_mean": None, "cosine_p01": None}
    found["text_cosine_mean"] = agreement(teacher.texts, row.texts)["cosine_mean"] if same_space else None
    found["flip_rate"] = float(flipped.mean())
    found["ci95"] = {f"i2t_r{k}": bootstrap_ci(i2t < k, seed) for k in KS} | {"flip_rate": bootstrap_ci(flipped, seed)}
    return found
