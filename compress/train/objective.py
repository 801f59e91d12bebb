"""What a student is trained for: a weighted sum of named terms.

Terms of a sample, `distillation_terms`, are means over the batch: the cosine distance of each tower to the teacher's
embedding of the same view (feature distillation, which CLIP-KD, Yang et al. 2024, finds the strongest single loss), and
the relations to the teacher's anchors. Several processes need no more than averaged gradients. Terms of a batch,
`batch_terms`, compare each image with each text of it, so they are of the batch of all processes. What others distil
with is a choice of weights: CLIP-KD's FD + ICL + CRD is cosine, interactive and affinity beside contrastive;
open_clip's is contrastive and affinity; TinyCLIP's affinity alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmcompress.compress.train.losses import affinity, cosine_distance, info_nce, interactive, relational

Sides = tuple[Tensor, Tensor]
"""Unit images (B, D) and texts (B, D)."""


def distillation_terms(
    student: Sides,
    teacher: Sides,
    anchors: Sides,
    cosine: float = 1.0,
    relation: float = 1.0,
    temperature: float = 0.05,
) -> dict[str, Tensor]:
    """The weighted terms of samples by name, without those of weight 0. The anchors are (K, D) and (K', D).

    A side that is the teacher's own tensor, as of a tower that is kept, has nothing to learn and is left out.
    """
    terms: dict[str, Tensor] = {}
    for ours, theirs, others in zip(student, teacher, reversed(anchors), strict=True):
        if ours is theirs:
            continue
        if cosine:
            terms["cosine"] = terms.get("cosine", 0) + cosine * cosine_distance(ours, theirs)
        if relation:
            terms["relational"] = terms.get("relational", 0) + relation * relational(ours, theirs, others, temperature)
    return terms


def distillation_loss(student: Sides, teacher: Sides, anchors: Sides) -> Tensor:
    """The sum of the terms of samples, each of weight 1."""
    return torch.stack([*distillation_terms(student, teacher, anchors).values()]).sum()


def batch_terms(
    student: Sides,
    teacher: Sides,
    same: Tensor,
    logit_scale: Tensor,
    teacher_scale: float,
    contrasting: float = 0.0,
    mimicking: float = 0.0,
    interacting: float = 0.0,
    seen: Sides | None = None,
) -> dict[str, Tensor]:
    """The weighted terms of a whole batch by name, without those of weight 0.

    `same` (B, B) bool marks what belongs together, `logit_scale` is the logarithm of the student's factor on
    similarities, `teacher_scale` the teacher's own factor; `seen` is the student in the teacher's space, where that is
    another one.
    """
    terms: dict[str, Tensor] = {}
    if contrasting:
        terms["contrastive"] = contrasting * info_nce(*student, logit_scale, same)
    if mimicking:
        terms["affinity"] = mimicking * affinity(student, teacher, logit_scale.exp(), teacher_scale)
    if interacting:
        terms["interactive"] = interacting * interactive(student if seen is None else seen, teacher, logit_scale, same)
    return terms
