"""The figures of one row of the drift table: what it finds, and how far it is from another row, each with its interval.

Most figures are means over images, so a figure is a pair of columns here, a value and a weight for each image, and the
mean and its interval come from the same two columns. With captions, a text-to-image recall is such a mean too: an image
brings the hits of all its captions. With classes, its queries are the classes, and they are what is resampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.document import Interval
from mmcompress.measure.agreement import calibration_error, cosines, flip_shares, flipped, ranked_images, unit_ranks
from mmcompress.measure.drift.document import Distance, Metrics, RecallChange, Recalls
from mmcompress.measure.drift.significance import (
    bootstrap_ci,
    interval,
    mcnemar_p,
    paired_change,
    resample_counts,
    resampled_means,
)
from mmcompress.measure.drift.testset import EvaluationSet, Row
from mmcompress.measure.retrieval import (
    KS,
    RECALLS,
    Answers,
    Bools,
    Floats,
    Ints,
    Matches,
    answer,
    cuts_for,
    hits,
    shares_by_class,
)

Columns = Mapping[str, tuple[NDArray[Any], NDArray[Any]]]
"""(N,) sum and (N,) weight of each image, by the name of the figure."""


@dataclass(frozen=True)
class RowAnswers:
    """One row's embeddings of N of the images and of all M texts, and what they answer."""

    images: Floats
    """(N, D)"""
    texts: Floats
    """(M, D)"""
    group: Ints
    """(N,) the group of each image, in which its texts are"""
    i2t: Matches
    t2i: Matches
    classes: bool
    answers: Answers
    text_hits: Bools
    """(M, 3)"""
    right: Bools
    """(N,): the best text, the first of equal ones, belongs to the image"""
    counts: NDArray[np.uint8]
    """(R, N) resamples of the images, the same for every row"""

    @cached_property
    def ranks(self) -> NDArray[np.float32]:
        """(n, M) of some of the images, for the rank correlation."""
        some = ranked_images(len(self.images), len(self.texts))
        return unit_ranks(self.images[some], self.texts)

    @cached_property
    def r10_resampled(self) -> NDArray[np.float64]:
        """(R,) recall at 10 of the images in each resample."""
        answered = self.i2t.answerable[:, None]
        return resampled_means(self.answers.hits[:, 2:3] & answered, self.counts, answered)[:, 0]


def answers_of(pairs: EvaluationSet, row: Row, chosen: Ints, seed: int = 0) -> RowAnswers:
    """Everything about one row that needs no other row, over some of the images: two passes over the scores."""
    images = row.images if len(chosen) == len(row.images) else row.images[chosen]
    group = pairs.image_group[chosen]
    i2t, t2i = Matches.of(group, pairs.text_group), Matches.of(pairs.text_group, group)
    cuts = (*RECALLS, *cuts_for(len(row.texts)))
    answers = answer(images, row.texts, i2t, cuts, row.logit_scale if pairs.classes else None)
    right = (pairs.text_group[answers.best] == group) & i2t.answerable
    text_hits = hits(row.texts, images, t2i)
    counts = resample_counts(len(images), seed)
    return RowAnswers(images, row.texts, group, i2t, t2i, pairs.classes, answers, text_hits, right, counts)


def metrics(row: RowAnswers, reference: RowAnswers) -> Metrics:
    """Every figure of a row, alone and against the reference, with `ci95` of those that have an interval."""
    columns: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
        **_recalls(row, row.answers.hits, row.text_hits),
        "margin_mean": _each(row.answers.margin),
        **_accuracies(row),
    }
    class_means, class_intervals = _class_queries(row, row.text_hits)
    means = {**_means(columns), **class_means}
    per_class = ece = None
    if row.classes and (answered := row.i2t.answerable).any():
        per_class = float(shares_by_class(row.right[answered], row.group[answered]).mean())
        if np.isfinite(row.answers.confidence).all():
            ece = calibration_error(row.answers.confidence[answered], row.right[answered])
    texts = cosines(reference.texts, row.texts) if same_space(row, reference) else None
    moved, moved_intervals = distance(row, reference)
    old, old_intervals = _old_index(row, reference)
    intervals = _intervals(columns, row.counts) | class_intervals | moved_intervals | old_intervals
    return Metrics(
        top1=means.pop("top1", None),
        top5=means.pop("top5", None),
        **means,
        mean_per_class_recall=per_class,
        ece=ece,
        text_cosine_mean=None if texts is None else float(texts.mean()),
        text_cosine_p01=None if texts is None else float(np.quantile(texts, 0.01)),
        **dict(moved),
        old_index=old,
        ci95={name: ends for name, ends in intervals.items() if ends is not None},
    )


def flips_between(before: RowAnswers, after: RowAnswers) -> Bools:
    """(N,): the images whose answer is another one."""
    return flipped(before.images, before.texts, before.answers.best, after.answers.best)


def distance(row: RowAnswers, other: RowAnswers) -> tuple[Distance, dict[str, Interval | None]]:
    """How far a row is from another one, and the intervals of what is a mean over images. Of a row from itself, the
    change has no interval."""
    flips = flip_shares(flips_between(other, row), other.right, row.right)
    columns = {name: _each(values) for name, values in flips.items()}
    shares = _means(columns)
    similarity = cosines(other.images, row.images) if same_space(row, other) else None
    if similarity is not None:
        columns["cosine_mean"] = _each(similarity)
    gained, lost = int(flips["flips_gained"].sum()), int(flips["flips_lost"].sum())
    correlations = (row.ranks * other.ranks).sum(axis=1, dtype=np.float64)
    apart = Distance(
        cosine_mean=None if similarity is None else float(similarity.mean()),
        cosine_p01=None if similarity is None else float(np.quantile(similarity, 0.01)),
        cosine_worst=None if similarity is None else float(similarity.min()),
        **shares,
        mcnemar_p=mcnemar_p(gained, lost),
        rank_correlation=float(correlations.mean()),
        r10_change=None if row is other else r10_change(row, other),
    )
    return apart, {**_intervals(columns, row.counts), "rank_correlation": bootstrap_ci(correlations)}


def r10_change(row: RowAnswers, other: RowAnswers) -> RecallChange:
    """Recall at 10 of the row minus that of the other, over the same resamples."""
    ci95, significant = paired_change(other.r10_resampled, row.r10_resampled)
    return RecallChange(i2t=_r10(row) - _r10(other), ci95=ci95, significant=significant)


def _r10(row: RowAnswers) -> float:
    return float(row.answers.hits[row.i2t.answerable, 2].mean())


def same_space(row: RowAnswers, other: RowAnswers) -> bool:
    """Whether the embeddings of two rows can be compared; a student may have fewer dimensions than its teacher."""
    return bool(row.images.shape[1] == other.images.shape[1])


def _old_index(row: RowAnswers, reference: RowAnswers) -> tuple[Recalls | None, dict[str, Interval | None]]:
    """Recall of the row's queries among the reference's embeddings; None for the reference itself and where the two
    differ in dimension."""
    if row is reference or not same_space(row, reference):
        return None, {}
    images, texts = hits(row.images, reference.texts, row.i2t), hits(row.texts, reference.images, row.t2i)
    columns = _recalls(row, images, texts)
    class_means, class_intervals = _class_queries(row, texts)
    intervals = _intervals(columns, row.counts) | class_intervals
    return Recalls(**_means(columns), **class_means), {
        f"old_index_{name}": bounds for name, bounds in intervals.items()
    }


def _each(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    return values, np.ones(len(values))


def _recalls(row: RowAnswers, image_hits: Bools, text_hits: Bools) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Columns of the recalls; (N, 3 or more), (M, 3)."""
    answered = row.i2t.answerable
    columns: dict[str, tuple[NDArray[Any], NDArray[Any]]]
    columns = {f"i2t_r{k}": (image_hits[:, place] & answered, answered) for place, k in enumerate(KS)}
    if row.classes:
        return columns
    captions = np.diff(row.i2t.starts)
    owner = np.repeat(np.arange(len(captions)), captions)
    for place, k in enumerate(KS):
        sums = np.bincount(owner, weights=text_hits[row.i2t.columns, place], minlength=len(captions))
        columns[f"t2i_r{k}"] = (sums, captions)
    return columns


def _accuracies(row: RowAnswers) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Columns of the zero-shot accuracies; of fewer than five classes there is no top-5."""
    if not row.classes:
        return {}
    answered = row.i2t.answerable
    places = {"top1": 3, "top5": 4} if len(row.texts) >= 5 else {"top1": 3}
    return {name: (row.answers.hits[:, place] & answered, answered) for name, place in places.items()}


def _means(columns: Columns) -> dict[str, float]:
    return {name: float(values.sum() / weights.sum()) for name, (values, weights) in columns.items()}


def _intervals(columns: Columns, counts: NDArray[np.uint8]) -> dict[str, Interval | None]:
    values, weights = (np.stack([column[side] for column in columns.values()], axis=1) for side in (0, 1))
    return dict(zip(columns, map(interval, resampled_means(values, counts, weights).T), strict=True))


def _class_queries(row: RowAnswers, text_hits: Bools) -> tuple[dict[str, float], dict[str, Interval | None]]:
    """Text-to-image recalls and their intervals where the queries are classes; captions are columns of the images."""
    if not row.classes:
        return {}, {}
    asked = {f"t2i_r{k}": text_hits[row.t2i.answerable, place] for place, k in enumerate(KS)}
    return {name: float(column.mean()) for name, column in asked.items()}, {
        name: bootstrap_ci(column) for name, column in asked.items()
    }
