"""Precision, recall and F1 by class, against scikit-learn's figures and a count of every pair by itself."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mmcompress.measure.drift.classes import classification

NAMES = ["cat", "dog", "cow", "fox", "hen"]
TRUTH = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 3])
ANSWERS = np.array([0, 0, 1, 1, 1, 1, 0, 4, 2, 1])
"""As the documentation of scikit-learn does it: classification_report(TRUTH, ANSWERS, zero_division=0) of 1.9.1 prints

           precision  recall  f1-score  support
        0     0.6667  0.5000    0.5714        4
        1     0.4000  0.6667    0.5000        3
        2     1.0000  0.5000    0.6667        2
        3     0.0000  0.0000    0.0000        1
        4     0.0000  0.0000    0.0000        0
macro avg     0.4133  0.3333    0.3476       10
"""


def test_the_figures_are_scikit_learns() -> None:
    found = classification(TRUTH, ANSWERS, NAMES)
    assert found is not None
    by_name = {one.label: one for one in found.classes}
    expected = {
        "cat": (2 / 3, 2 / 4, 4 / 7, 4, 3),
        "dog": (2 / 5, 2 / 3, 4 / 8, 3, 5),
        "cow": (1.0, 1 / 2, 2 / 3, 2, 1),
        "fox": (None, 0.0, 0.0, 1, 0),
        "hen": (0.0, None, 0.0, 0, 1),
    }
    for name, (precision, recall, f1, support, answered) in expected.items():
        one = by_name[name]
        assert (one.precision, one.recall) == (pytest.approx(precision), pytest.approx(recall)), name
        assert (one.f1, one.support, one.answered) == (pytest.approx(f1), support, answered), name
    assert found.precision == pytest.approx(0.4133, abs=5e-5)
    assert found.recall == pytest.approx(0.3333, abs=5e-5)
    assert found.f1 == pytest.approx(0.3476, abs=5e-5)
    assert [one.label for one in found.classes] == ["fox", "hen", "dog", "cat", "cow"]


def test_confusions_are_counted_pair_by_pair() -> None:
    found = classification(TRUTH, ANSWERS, NAMES)
    assert found is not None
    pairs = [(one.label, one.answer, one.images, one.share) for one in found.confusions]
    assert pairs[0] == ("cat", "dog", 2, 0.5) and pairs[1] == ("fox", "dog", 1, 1.0)
    counted = Counter((NAMES[t], NAMES[a]) for t, a in zip(TRUTH, ANSWERS, strict=True) if t != a)
    assert {(label, answer): images for label, answer, images, _ in pairs} == dict(counted)


def test_random_answers_agree_with_the_definitions_one_class_at_a_time() -> None:
    generator = np.random.default_rng(0)
    truth, answers = generator.integers(0, 40, 300), generator.integers(0, 40, 300)
    names = [f"class {number:02d}" for number in range(50)]
    found = classification(truth, answers, names)
    assert found is not None and len(found.confusions) == 20
    for one in found.classes:
        number = names.index(one.label)
        hits = sum(t == a == number for t, a in zip(truth, answers, strict=True))
        assert one.recall == pytest.approx(hits / one.support) and one.support == list(truth).count(number)
        assert one.precision == pytest.approx(hits / one.answered) and one.answered == list(answers).count(number)
        both = one.precision + one.recall
        assert one.f1 == pytest.approx(2 * one.precision * one.recall / both if both else 0)
    assert {one.label for one in found.classes} == {names[n] for n in {*truth.tolist(), *answers.tolist()}}
    assert sorted(one.f1 for one in found.classes) == [one.f1 for one in found.classes]


def test_nothing_wrong_and_nothing_at_all() -> None:
    right = classification(np.array([1, 1]), np.array([1, 1]), NAMES)
    assert right is not None and right.f1 == 1.0 and right.confusions == () and len(right.classes) == 1
    assert classification(np.array([], dtype=int), np.array([], dtype=int), NAMES) is None
