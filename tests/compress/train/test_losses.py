"""Each loss against its formula written out, or against torch's own function."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from mmcompress.compress.train.losses import (
    affinity,
    cosine_distance,
    info_nce,
    interactive,
    relational,
    token_relations,
)
from mmcompress.compress.train.objective import batch_terms, distillation_terms


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


def test_affinity_is_the_cross_entropy_to_the_teacher_less_its_entropy() -> None:
    student, teacher = (unit(6, 0), unit(6, 1)), (unit(6, 2), unit(6, 3))
    ours, theirs = 7.0 * student[0] @ student[1].T, 20.0 * teacher[0] @ teacher[1].T
    expected = sum(
        F.cross_entropy(a, b.softmax(dim=1)) + (b.softmax(dim=1) * b.log_softmax(dim=1)).sum(dim=1).mean()
        for a, b in ((ours, theirs), (ours.T, theirs.T))
    )
    found = affinity(student, teacher, torch.tensor(7.0), 20.0)
    assert found.item() == pytest.approx(expected.item() / 2, rel=1e-4)
    assert affinity(teacher, teacher, torch.tensor(20.0), 20.0).item() == pytest.approx(0, abs=1e-6)


def test_interactive_asks_the_teachers_other_modality() -> None:
    student, teacher, target = (unit(6, 0), unit(6, 1)), (unit(6, 2), unit(6, 3)), torch.arange(6)
    expected = F.cross_entropy(9.0 * student[0] @ teacher[1].T, target)
    expected = expected + F.cross_entropy(9.0 * student[1] @ teacher[0].T, target)
    found = interactive(student, teacher, torch.tensor(math.log(9.0)), torch.eye(6, dtype=torch.bool))
    assert found.item() == pytest.approx(expected.item() / 2, rel=1e-5)
    twice = torch.eye(6, dtype=torch.bool)
    twice[0, 1] = twice[1, 0] = True
    shared = interactive(student, teacher, torch.tensor(math.log(9.0)), twice).item()
    other = (9.0 * student[0] @ teacher[1].T).log_softmax(1), (9.0 * student[1] @ teacher[0].T).log_softmax(1)
    moved = sum((log[0, 0] - log[0, 1] + log[1, 1] - log[1, 0]).item() / 2 for log in other) / 12
    assert shared == pytest.approx(found.item() + moved, rel=1e-4)


def test_affinity_has_the_gradient_of_open_clips_distillation_loss() -> None:
    """Cross entropy to the teacher's softmax both ways, as open_clip's DistillClipLoss writes it."""
    teacher, scale = (unit(6, 2), unit(6, 3)), torch.tensor(12.0, requires_grad=True)
    images = unit(6, 0).requires_grad_()
    texts = unit(6, 1)
    theirs = 100.0 * teacher[0] @ teacher[1].T
    logits = scale * images @ texts.T
    both = [
        -(b.softmax(dim=1) * a.log_softmax(dim=1)).sum(dim=1).mean()
        for a, b in ((logits, theirs), (logits.T, theirs.T))
    ]
    expected = torch.autograd.grad(sum(both) / 2, (images, scale))  # type: ignore[arg-type]
    found = torch.autograd.grad(affinity((images, texts), teacher, scale, 100.0), (images, scale))
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-6, rtol=1e-4)


def test_token_relations_match_the_formula_written_out() -> None:
    """Two relation heads; the student's are three channels wide, the teacher's four."""
    student, teacher = (torch.randn(2, 5, c, generator=torch.Generator().manual_seed(c)) for c in (6, 8))
    expected, rows = 0.0, 0
    for b in range(2):
        for h in range(2):
            p, q = (
                torch.softmax(v[b, :, h * d : (h + 1) * d] @ v[b, :, h * d : (h + 1) * d].T / math.sqrt(d), dim=1)
                for v, d in ((teacher, 4), (student, 3))
            )
            for t in range(5):
                expected += sum(float(x * (x / y).log()) for x, y in zip(p[t], q[t], strict=True))
                rows += 1
    assert token_relations(student, teacher, 2).item() == pytest.approx(expected / rows, rel=1e-4)
    assert token_relations(teacher, teacher, 2).item() == pytest.approx(0, abs=1e-6)


def test_terms_are_the_losses_times_their_weights_and_those_of_weight_0_are_left_out() -> None:
    student, teacher = (unit(6, 0), unit(6, 1)), (unit(6, 2), unit(6, 3))
    scale, same = torch.tensor(2.0), torch.eye(6, dtype=torch.bool)
    assert batch_terms(student, teacher, same, scale, 30.0) == {}
    terms = batch_terms(student, teacher, same, scale, 30.0, 2.0, 3.0, 4.0)
    expected = {
        "contrastive": 2 * info_nce(*student, scale, same),
        "affinity": 3 * affinity(student, teacher, scale.exp(), 30.0),
        "interactive": 4 * interactive(student, teacher, scale, same),
    }
    assert terms == expected and [*distillation_terms(student, teacher, teacher, 1.0, 0.0)] == ["cosine"]


def test_a_kept_tower_has_nothing_to_learn_and_is_left_out() -> None:
    images, teacher, anchors = unit(6, 0).requires_grad_(), (unit(6, 2), unit(6, 3)), (unit(9, 4), unit(8, 5))
    found = distillation_terms((images, teacher[1]), teacher, anchors, 2.0, 3.0, 0.1)
    expected = {
        "cosine": 2 * cosine_distance(images, teacher[0]),
        "relational": 3 * relational(images, teacher[0], anchors[1], 0.1),
    }
    assert found == expected
    both = distillation_terms((images, teacher[1].clone()), teacher, anchors, 2.0, 3.0, 0.1)
    gradients = (torch.autograd.grad(sum(terms.values()), images)[0] for terms in (found, both))
    assert torch.equal(*gradients)
