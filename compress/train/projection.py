"""The spaces of a student and a teacher of different width, laid into each other by a rotation.

The cosine and the relations are of P s, the student's embedding seen in the teacher's space, as CLIP-KD projects where
widths differ (Yang et al. 2024, section 3.2). Here P has orthonormal columns, or rows where the student is the wider
one, so it keeps every angle of a narrower student: what is learned through it is how the student answers in its own
space. It is the same for images and texts, and it is fixed: learned, as it is there, it did no better (decision T49).
A new student gets the teacher's principal axes, which keep most of it. One that has a space gets the P that comes
nearest to the teacher on some samples, so that it stays in its space (orthogonal Procrustes, Schoenemann 1966).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmcompress.compress.products import fast_products
from mmcompress.compress.train.objective import Sides
from mmcompress.compress.train.pairs import TrainingBatch
from mmcompress.errors import UsageError
from mmcompress.model import DualEncoder


def nothing_to_project(width: int) -> UsageError:
    said = f"there is nothing to project: student and teacher both embed into {width} dimensions"
    return UsageError(said, "leave project out")


def projected(own: Sides, axes: Tensor) -> Sides:
    """Images and texts (B, d) of a student, seen on its axes (D, d) in the teacher's space: (B, D) of unit norm."""
    images, texts = (F.normalize(F.linear(side, axes), dim=-1) for side in own)
    return images, texts


def principal_axes(teacher: Sides, width: int) -> Tensor:
    """(K, D) images and (K', D) texts -> (D, width): the axes on which their squares sum to most, not centred.

    Images and texts count alike, whatever their numbers.
    """
    images, texts = ((side.double().T @ side.double()) / len(side) for side in teacher)
    axes: Tensor = torch.linalg.eigh(images + texts).eigenvectors.flip(1)[:, :width].float().contiguous()
    return axes


@torch.no_grad()
def nearest_axes(student: DualEncoder, samples: Sequence[TrainingBatch]) -> Tensor:
    """(D, d): the axes on which a student of d dimensions comes nearest to its teacher on some samples."""
    product = torch.zeros(())
    for batch in samples:
        assert batch.teacher is not None
        with fast_products():
            own = student.encode_image(batch.pixels), student.encode_text(batch.tokens)
        for ours, theirs in zip(own, batch.teacher, strict=True):
            product = product + (theirs.double().T @ ours.double()).cpu()
    return nearest(product).float().to(samples[0].pixels.device)


def nearest(product: Tensor) -> Tensor:
    """(D, d), T^T S of a teacher's and a student's embeddings -> the P with orthonormal columns, or rows where D < d,
    for which the sum of t . P s is largest: the polar factor."""
    left, _, right = torch.linalg.svd(product, full_matrices=False)
    polar: Tensor = left @ right
    return polar
