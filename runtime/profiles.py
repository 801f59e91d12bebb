"""Which of an engine's optimization profiles a call runs in.

TensorRT chooses its kernels for the usual shape of a profile. So an engine may have one for batch 1 by itself and one
for larger batches, and a call takes the narrowest that its batch fits in.
"""

from __future__ import annotations

from collections.abc import Sequence

Batches = tuple[int, int, int]
"""Smallest, usual and largest batch of a profile."""


def profile_for(profiles: Sequence[Batches], batch: int) -> int | None:
    """Number of the profile whose range is the narrowest around a batch, of equal ones the nearest in what is usual;
    None where no profile takes it."""
    fitting = [
        (largest - smallest, abs(usual - batch), number)
        for number, (smallest, usual, largest) in enumerate(profiles)
        if smallest <= batch <= largest
    ]
    return min(fitting)[2] if fitting else None
