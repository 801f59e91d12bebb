"""Does the model find what belongs together? Recall both ways and zero-shot accuracy, as CLIP_benchmark counts them.

Everything works on blocks of scores, so that N x M of them never exist at once, and one pass over the images gives all
that is asked of an image's scores: its best text, the margin, the confidence and the hits. A hit at k is a match among
the k best. The score of the best match is compared with all others; only where scores equal to it lie on both sides of
the border does the order of equal ones decide, and then it is torch.topk's own (see ties.py), so the figures equal
CLIP_benchmark's on the same embeddings. One rule is ours: what has no match at all is no query and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.measure.ties import torch_topk

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Bools = NDArray[np.bool_]
KS = (1, 5, 10)
Cut = tuple[int, int]
"""(k, depth): among the first k of the `depth` best. CLIP_benchmark takes its top-1 from a list of the five best,
which on ties is not the list of the one best."""
RECALLS: tuple[Cut, ...] = tuple((k, k) for k in KS)
ACCURACIES: tuple[Cut, ...] = ((1, 5), (5, 5))
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
    if not (owner >= 0).any():
        raise UsageError("no text belongs to any of the images, so there is no retrieval to measure", "see --labels")
    group = np.arange(len(images))
    shares: dict[str, float] = {}
    for way, sides in (("i2t", (images, texts, group, owner)), ("t2i", (texts, images, owner, group))):
        matches = Matches.of(sides[2], sides[3])
        shares |= recalls(way, hits(sides[0], sides[1], matches)[matches.answerable])
    return shares


def recalls(way: str, hit: Bools) -> dict[str, float]:
    """(Q, 3) hits of RECALLS -> {"i2t_r1", "i2t_r5", "i2t_r10"} for the way "i2t"."""
    return {f"{way}_r{k}": float(hit[:, place].mean()) for place, k in enumerate(KS)}


def classification(images: Floats, class_texts: Floats, labels: Ints) -> dict[str, float | None]:
    """(N, D), (C, D), (N,) class of each image -> share whose class is the best one, and among the five best.

    Also the mean of the classes' own shares (sklearn's balanced accuracy), where the best is the first of equal ones.
    Of fewer than five classes there is no top-5, and it is None.
    """
    labels = np.asarray(labels)
    answers = answer(images, class_texts, Matches.of(labels, np.arange(len(class_texts))), cuts_for(len(class_texts)))
    top5 = float(answers.hits[:, -1].mean()) if len(class_texts) >= 5 else None
    per_class = shares_by_class(answers.best == labels, labels)
    return {"top1": float(answers.hits[:, -2].mean()), "top5": top5, "mean_per_class_recall": float(per_class.mean())}


def cuts_for(candidates: int) -> tuple[Cut, ...]:
    """The cuts of accuracy: with fewer than five classes CLIP_benchmark looks for the best one only."""
    return ACCURACIES if candidates >= 5 else ((1, 1), (1, 1))


def shares_by_class(right: Bools, labels: Ints) -> NDArray[np.float64]:
    """(N,), (N,) -> share of right ones in each class that occurs, in the order of the classes."""
    _, place = np.unique(labels, return_inverse=True)
    shares: NDArray[np.float64] = np.bincount(place, weights=right) / np.bincount(place)
    return shares


@dataclass(frozen=True)
class Matches:
    """For each query the candidates that belong to it, one behind the other."""

    starts: Ints
    """(Q + 1,)"""
    columns: Ints
    """Of query q: columns[starts[q] : starts[q + 1]]."""

    @staticmethod
    def of(query_group: Ints, candidate_group: Ints) -> Matches:
        """A query and a candidate match if their groups are equal and not negative."""
        query_group, candidate_group = np.asarray(query_group), np.asarray(candidate_group)
        order = np.argsort(candidate_group, kind="stable")
        ordered = candidate_group[order]
        first, last = np.searchsorted(ordered, query_group, "left"), np.searchsorted(ordered, query_group, "right")
        counts = np.where(query_group >= 0, last - first, 0)
        starts = np.concatenate([[0], np.cumsum(counts)])
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
        return Matches(starts, order[np.repeat(first, counts) + within])

    @property
    def answerable(self) -> Bools:
        """(Q,): whether there is a match."""
        has_match: Bools = np.diff(self.starts) > 0
        return has_match

    def of_query(self, query: int) -> Ints:
        return self.columns[self.starts[query] : self.starts[query + 1]]


@dataclass(frozen=True)
class Answers:
    """What the scores of each of N images say, over all candidates."""

    best: Ints
    """(N,) the best candidate, the first of equal ones"""
    score: Floats
    """(N,) its cosine"""
    margin: Floats
    """(N,) by how much it leads the second best; 0 where there is one candidate only"""
    confidence: Floats
    """(N,) its probability under the softmax; NaN without a logit scale"""
    hits: Bools
    """(N, cuts)"""


def answer(
    images: Floats, texts: Floats, matches: Matches, cuts: tuple[Cut, ...] = RECALLS, logit_scale: float | None = None
) -> Answers:
    """(N, D), (M, D) -> answers, with hits for each cut."""
    parts: list[tuple[Any, ...]] = []
    for rows, scores in score_blocks(images, texts):
        block_hits = _block_hits(scores, rows.start, matches, cuts)
        best = scores.argmax(axis=1)
        every = np.arange(len(scores))
        top = scores[every, best]
        confidence = np.full(len(scores), np.nan)
        if logit_scale is not None:
            confidence = 1 / np.exp(logit_scale * (scores - top[:, None])).sum(axis=1, dtype=np.float64)
        scores[every, best] = -np.inf
        second = scores.max(axis=1) if scores.shape[1] > 1 else top
        parts.append((best, top, top - second, confidence, block_hits))
    return Answers(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def hits(queries: Floats, candidates: Floats, matches: Matches, cuts: tuple[Cut, ...] = RECALLS) -> Bools:
    """(Q, D), (C, D) -> (Q, cuts): whether a match is among the best; False for a query that has none."""
    parts = [np.empty((0, len(cuts)), dtype=np.bool_)]
    parts += [_block_hits(scores, rows.start, matches, cuts) for rows, scores in score_blocks(queries, candidates)]
    return np.concatenate(parts)


def _block_hits(scores: Floats, start: int, matches: Matches, cuts: tuple[Cut, ...]) -> Bools:
    """(q, C) scores of the queries from `start` on -> (q, cuts)."""
    starts = matches.starts[start : start + len(scores) + 1]
    columns, counts = matches.columns[starts[0] : starts[-1]], np.diff(starts)
    rows = np.repeat(np.arange(len(scores)), counts)
    own, some = scores[rows, columns], counts > 0
    best = np.full(len(scores), np.inf, dtype=scores.dtype)
    best[some] = np.maximum.reduceat(own, (starts[:-1] - starts[0])[some]) if len(own) else 0
    above = _row_counts(scores > best[:, None])
    level = _row_counts(scores >= best[:, None])
    all_ours = np.bincount(rows[own == best[rows]], minlength=len(scores)) == level - above
    hit = np.empty((len(scores), len(cuts)), dtype=np.bool_)
    for place, (k, depth) in enumerate(cuts):
        hit[:, place] = some & (above < k)
        for row in np.flatnonzero(hit[:, place] & (level > k) & ~all_ours):
            chosen = torch_topk(scores[row], min(depth, scores.shape[1]))[:k]
            hit[row, place] = np.isin(chosen, matches.of_query(start + row)).any()
    return hit


def _row_counts(mask: Bools) -> Ints:
    """(q, C) -> (q,): how many are true. Row by row, since numpy's own count along an axis is many times slower."""
    return np.array([np.count_nonzero(row) for row in mask], dtype=np.int64)


def score_blocks(queries: Floats, candidates: Floats) -> Iterator[tuple[slice, Floats]]:
    """Scores (q, C) of a block of queries at a time. NaN compares as no better than anything, so it must not get in."""
    if queries.shape[1:] != candidates.shape[1:]:
        raise UsageError(f"embeddings of {queries.shape[1:]} and {candidates.shape[1:]} channels", "use one model")
    for embeddings in (queries, candidates):
        if not np.isfinite(embeddings).all():
            raise CorruptInputError("an embedding is not finite (NaN or infinite)", "the model is broken: check it")
    distinct, place = _distinct(candidates)
    step = max(1, _SCORES // max(1, len(candidates)))
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        scores = queries[rows] @ distinct.T
        yield rows, scores if len(distinct) == len(candidates) else scores[:, place]


def _distinct(candidates: Floats) -> tuple[Floats, Ints]:
    """(C, D) -> its different rows, and for each row which of them it is.

    Equal candidates (a caption that occurs twice) must have equal scores, and a matrix product need not give that: the
    rounding of numpy's BLAS depends on the column, that of torch's does not.
    """
    if not candidates.size:
        return candidates, np.arange(len(candidates))
    whole = np.ascontiguousarray(candidates)
    rows = whole.view(np.dtype((np.void, whole.itemsize * whole.shape[1]))).ravel()
    _, first, place = np.unique(rows, return_index=True, return_inverse=True)
    return (candidates, place) if len(first) == len(candidates) else (candidates[first], place)
