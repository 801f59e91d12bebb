"""The losses, as pure functions of unit embeddings.

B is the batch, K the number of anchors, D the width of the shared space.
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
