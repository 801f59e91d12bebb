"""What embeddings must be, wherever they come from: different for different inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPREAD = 1e-4
"""Smallest mean of 1 - cosine between an embedding and the mean of all: below it the answers are one answer."""


def spread(side: NDArray[np.floating[Any]]) -> float:
    """(N, D) of unit norm -> 1 minus the length of their mean: 0 where all answers are one answer."""
    return 1 - float(np.linalg.norm(side.astype(np.float64).mean(axis=0)))


def always_the_same(towers: Sequence[str]) -> str:
    """What an export records of towers that answer random inputs alike, in words."""
    return f"the {' and the '.join(towers)} tower gives the same answer to everything: the model has collapsed"
