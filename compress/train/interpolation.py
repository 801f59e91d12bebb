"""Weights between a start and what was fine-tuned from it (WiSE-FT, Wortsman et al. 2022).

The weights (1 - a) theta_0 + a theta_1 (equation 1) lie on a line, and on it accuracy on the new data and on what the
model could before are traded. The rule here: the point with the largest sum of both figures, so that on the samples of
the choice no end of the line is better in both; without other data to hold it against, the largest figure on the new
data alone. Where it is said how much the old figure may lose, the largest new one among the points that lose no more.
Of equal points the one nearest to the start is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mmcompress.frozen import Config

STEPS = 10
"""Parts of the line whose ends are tried."""


class Point(Config):
    """A point on the line, with shares of 0 to 1 that were measured there."""

    alpha: float
    """How much of the fine-tuned weights is in it; 0 is the start."""
    validation: float
    original: float | None
    """None where no original data is given."""


@torch.no_grad()
def interpolate(
    target: Mapping[str, Tensor], start: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float
) -> None:
    """Put (1 - a) theta_0 + a theta_1 into the target's tensors; at 0 and 1 these are the ends, to the bit."""
    for name, tensor in target.items():
        tensor.copy_(start[name] if alpha == 0 else tuned[name] if alpha == 1 else start[name].lerp(tuned[name], alpha))


def line(
    put: Callable[[float], None],
    validation: Callable[[], float],
    original: Callable[[], float] | None,
    fixed: float | None = None,
) -> list[Point]:
    """The measured points, in order; with a `fixed` one only that and the ends. `put` makes the model one of them."""
    alphas = sorted({0.0, 1.0, fixed}) if fixed is not None else [step / STEPS for step in range(STEPS + 1)]
    points = []
    for alpha in alphas:
        put(alpha)
        points.append(Point(alpha=alpha, validation=validation(), original=None if original is None else original()))
    return points


def chosen(points: Sequence[Point], max_drop: float | None = None) -> Point:
    """The point that the rule above takes; with `max_drop`, of a share of 1, points lose no more of `original`."""
    if max_drop is None:
        return max(points, key=lambda point: (point.validation + (point.original or 0.0), -point.alpha))
    start = next(point.original for point in points if point.alpha == 0)
    assert start is not None
    kept = [point for point in points if point.original is not None and start - point.original <= max_drop + 1e-9]
    return max(kept, key=lambda point: (point.validation, -point.alpha))
