"""Each loss against its formula written out, or against torch's own function."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from mmcompress.compress.train.losses import cosine_distance, info_nce, relational


def unit(rows: int, seed: int, width: int = 16) -> torch.Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_cosine_distance_is_half_the_squared_distance() -> None:
    a, b = unit(7, 0), unit(7, 1)
    assert cosine_distance(a, b).item() == pytest.approx(((a - b) ** 2).sum(1).mean().item() / 2, abs=1e-6)
    assert cosine_distance(a, a).item() == pytest.approx(0, abs=1e-6)


def test_relational_matches_the_divergence_written_out() -> None:
    student, teacher, anchors = unit(5, 0), unit(5, 1), unit(9, 2)
    expected = 0.0
    for row_ours, row_theirs in zip(
        (student @ anchors.T / 0.1).tolist(), (teacher @ anchors.T / 0.1).tolist(), strict=True
    ):
        p = [math.exp(v) / sum(map(math.exp, row_theirs)) for v in row_theirs]
        q = [math.exp(v) / sum(map(math.exp, row_ours)) for v in row_ours]
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 5
    assert relational(student, teacher, anchors, 0.1).item() == pytest.approx(expected, rel=1e-4)
    assert relational(teacher, teacher, anchors, 0.1).item() == pytest.approx(0, abs=1e-6)


def test_info_nce_matches_cross_entropy_both_ways() -> None:
    images, texts, scale = unit(6, 0), unit(6, 1), torch.tensor(2.0)
    logits = math.exp(2.0) * images @ texts.T
    target = torch.arange(6)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    same = torch.eye(6, dtype=torch.bool)
    assert info_nce(images, texts, scale, same).item() == pytest.approx(expected.item(), rel=1e-5)
    smooth = (
        F.cross_entropy(logits, target, label_smoothing=0.1) + F.cross_entropy(logits.T, target, label_smoothing=0.1)
    ) / 2
    assert info_nce(images, texts, scale, same, 0.1).item() == pytest.approx(smooth.item(), rel=1e-5)


def test_info_nce_shares_the_target_among_equal_labels() -> None:
    texts = unit(4, 1)
    texts[1] = texts[0]
    images = texts.clone()
    groups = torch.tensor([0, 0, 1, 2])
    apart = info_nce(images, texts, torch.tensor(4.0), torch.eye(4, dtype=torch.bool))
    together = info_nce(images, texts, torch.tensor(4.0), groups[:, None] == groups[None])
    floor = math.log(2) / 2  # two of four rows have an entropy of log 2
    assert together.item() == pytest.approx(apart.item(), abs=1e-4) and together.item() > floor
