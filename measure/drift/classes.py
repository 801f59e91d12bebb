"""First answers by class: precision, recall, F1, support, and which classes are taken for which.

The definitions are scikit-learn's (`classification_report`), so that the figures can be held against others. What is
0 / 0 is null of a class, and counts as 0 in a mean, as there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmcompress.measure.drift.document import ClassFigures, Classification, Confusion
from mmcompress.measure.retrieval import Ints

CONFUSIONS = 20


def classification(truth: Ints, answers: Ints, names: Sequence[str]) -> Classification | None:
    """(N,), (N,) numbers of classes, by which `names` are in order -> figures; None where there is no image."""
    if not len(truth):
        return None
    count = len(names)
    support, answered = np.bincount(truth, minlength=count), np.bincount(answers, minlength=count)
    right = np.bincount(truth[truth == answers], minlength=count)
    f1 = 2 * right / np.maximum(support + answered, 1)
    there = np.flatnonzero(support + answered)
    order = there[np.lexsort((there, -support[there], f1[there]))]
    figures = [
        ClassFigures(
            label=names[c],
            support=int(support[c]),
            answered=int(answered[c]),
            precision=float(right[c] / answered[c]) if answered[c] else None,
            recall=float(right[c] / support[c]) if support[c] else None,
            f1=float(f1[c]),
        )
        for c in order
    ]
    return Classification(
        precision=float(np.mean([one.precision or 0.0 for one in figures])),
        recall=float(np.mean([one.recall or 0.0 for one in figures])),
        f1=float(np.mean([one.f1 for one in figures])),
        classes=tuple(figures),
        confusions=tuple(_confusions(truth, answers, names, support)),
    )


def _confusions(truth: Ints, answers: Ints, names: Sequence[str], support: Ints) -> list[Confusion]:
    """Those of most images first; of equal ones, those that are a larger share of their class."""
    wrong = truth != answers
    pairs, images = np.unique(np.stack([truth[wrong], answers[wrong]], axis=1), axis=0, return_counts=True)
    shares = images / np.maximum(support[pairs[:, 0]], 1)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -shares, -images))[:CONFUSIONS]
    return [
        Confusion(
            label=names[pairs[at, 0]], answer=names[pairs[at, 1]], images=int(images[at]), share=float(shares[at])
        )
        for at in order
    ]
