"""The losses, as pure functions of unit embeddings, and one of what a block makes of its tokens.

B is the batch, K the number of anchors, D the width of the shared space, T the tokens of a sequence.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cos over the batch, for unit (B, D) and (B, D): half of the squared distance."""
    return 1 - (student * teacher).sum(dim=-1).mean()


def relational(student: Tensor, teacher: Tensor, anchors: Tensor, temperature: float) -> Tensor:
    """Mean KL(teacher || student) of the similarities to K anchors, as distributions.

    For unit (B, D), (B, D) and (K, D). The anchors are teacher embeddings of the other modality: an image is placed
    among texts, a text among images. This is affinity mimicking (Wu et al. 2023, TinyCLIP, equations 2 to 4) with the
    teacher's own anchors, as in CLIP-KD's interactive learning (Yang et al. 2024, equation 9); a batch has too few.
    """
    target = (teacher @ anchors.T / temperature).log_softmax(dim=-1)
    ours = (student @ anchors.T / temperature).log_softmax(dim=-1)
    return F.kl_div(ours, target, reduction="batchmean", log_target=True)


def info_nce(images: Tensor, texts: Tensor, logit_scale: Tensor, same: Tensor, smoothing: float = 0.0) -> Tensor:
    """Symmetric InfoNCE (Radford et al. 2021, figure 3) for unit (B, D) and (B, D).

    `same` (B, B) bool marks pairs that match although they are not on the diagonal (two images of one caption); the
    target is uniform over the matches, as in UniCL (Yang et al. 2022, equation 3), which is InfoNCE where all differ.
    """
    logits = logit_scale.exp() * images @ texts.T
    target = same.to(logits.dtype)
    target = target / target.sum(dim=1, keepdim=True)
    target = (1 - smoothing) * target + smoothing / len(target)
    by_image = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    by_text = -(target.T * logits.log_softmax(dim=0).T).sum(dim=1).mean()
    return (by_image + by_text) / 2


def affinity(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], student_scale: Tensor, teacher_scale: float
) -> Tensor:
    """Mean KL(teacher || student) of the batch's similarities, images to texts and texts to images.

    Each side is unit images (B, D) and texts (B, D) with its own factor on the similarities. It is affinity mimicking
    (Wu et al. 2023, TinyCLIP, equations 2 to 4) and contrastive relational distillation (Yang et al. 2024, CLIP-KD,
    equation 5), and differs from the cross entropy to the teacher's logits, which open_clip distils with, by the
    teacher's entropy, a constant. An offset on all logits, as SigLIP has one, changes no softmax.
    """
    ours = student_scale * student[0] @ student[1].T
    theirs = teacher_scale * teacher[0] @ teacher[1].T
    both = ((ours, theirs), (ours.T, theirs.T))
    first, second = (
        F.kl_div(own.log_softmax(dim=1), target.log_softmax(dim=1), reduction="batchmean", log_target=True)
        for own, target in both
    )
    return (first + second) / 2


def interactive(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], logit_scale: Tensor, same: Tensor
) -> Tensor:
    """InfoNCE between the student's images and the teacher's texts, and the other way round.

    Each side is unit images (B, D) and texts (B, D); `same` as in `info_nce`. Of each InfoNCE only the direction counts
    in which the student asks and the teacher's batch answers (Yang et al. 2024, CLIP-KD, equations 9 and 10).
    """
    target = same.to(student[0].dtype)
    target = target / target.sum(dim=1, keepdim=True)
    asked = (
        (logit_scale.exp() * ours @ theirs.T).log_softmax(dim=1)
        for ours, theirs in zip(student, reversed(teacher), strict=True)
    )
    by_image, by_text = (-(target * logits).sum(dim=1).mean() for logits in asked)
    return (by_image + by_text) / 2


def token_relations(student: Tensor, teacher: Tensor, heads: int) -> Tensor:
    """Mean KL(teacher || student) of how the tokens of a sequence attend to each other, for (B, T, C) and (B, T, C').

    The vectors of all attention heads, say the values of a block, are cut into as many relation heads of d channels on
    either side; a relation is softmax(v v^T / sqrt(d)) of each, and the mean goes over heads, tokens and batch (Wang et
    al. 2021, MiniLMv2, equations 4 to 6). So the widths may differ; `heads` divides both.
    """
    ours, theirs = (
        vectors.unflatten(-1, (heads, -1)).transpose(1, 2) * (vectors.shape[-1] // heads) ** -0.25
        for vectors in (student, teacher)
    )
    own, target = ((v @ v.mT).log_softmax(dim=-1).flatten(0, 2) for v in (ours, theirs))
    return F.kl_div(own, target, reduction="batchmean", log_target=True)
