"""How much of each block to keep under a limit: the sizes whose summed error is least.

A choice is a size of a block (heads and MLP units, hidden channels, or none at all) with what it costs and the error
that it alone causes. Errors of different blocks are taken to add up, as in SPDY (Frantar & Alistarh 2022, section 3.1)
and ZipLM (Kurtic et al. 2023). That makes it a knapsack with one choice a block, solved by dynamic programming over
costs that are rounded up to a fine grid, so that the limit always holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

GRID = 8192
"""Steps that the limit above the floor is cut into."""


S = TypeVar("S")


@dataclass(frozen=True)
class Choice(Generic[S]):
    """One size of one block."""

    size: S
    """What is left of the block, in units of its kind; None where the whole block goes."""
    cost: float
    error: float


def floor_cost(blocks: Sequence[Sequence[Choice[S]]]) -> float:
    """The least that any selection costs."""
    return sum(min(choice.cost for choice in choices) for choices in blocks)


def best_choices(blocks: Sequence[Sequence[Choice[S]]], limit: float, grid: int = GRID) -> list[Choice[S]] | None:
    """One choice a block with the least summed error at a summed cost within the limit; None if there is none."""
    best = [min(choices, key=lambda c: (c.error, c.cost)) for choices in blocks]
    if sum(choice.cost for choice in best) <= limit:
        return best
    spare = limit - floor_cost(blocks)
    if spare < 0:
        return None
    step = max(spare / grid, np.finfo(float).tiny)
    fronts = [pareto_front(choices) for choices in blocks]
    errors = np.zeros(grid + 1)  # least error of the blocks so far, by what they may cost above their floor
    taken = []
    for front in fronts:
        extra = [_steps(choice.cost - front[0].cost, step, grid) for choice in front]
        options = np.full((len(front), grid + 1), np.inf)
        for row, choice, steps in zip(options, front, extra, strict=True):
            if steps <= grid:
                row[steps:] = errors[: grid + 1 - steps] + choice.error
        taken.append((options.argmin(axis=0), extra))
        errors = options.min(axis=0)
    left, picked = grid, []
    for front, (chosen, extra) in zip(reversed(fronts), reversed(taken), strict=True):
        index = int(chosen[left])
        picked.append(front[index])
        left -= extra[index]
    return picked[::-1]


def _steps(cost: float, step: float, grid: int) -> int:
    """The cost in steps, rounded up; beyond the grid, one step beyond it."""
    return int(np.ceil(cost / step - 1e-9)) if cost < grid * step * (1 + 1e-9) else grid + 1


def pareto_front(choices: Sequence[Choice[S]]) -> list[Choice[S]]:
    """The choices that no cheaper one beats, by rising cost."""
    front: list[Choice[S]] = []
    for choice in sorted(choices, key=lambda c: (c.cost, c.error)):
        if not front or choice.error < front[-1].error:
            front.append(choice)
    return front
