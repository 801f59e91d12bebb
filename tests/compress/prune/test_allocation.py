"""The solver against brute force over all selections."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mmcompress.compress.prune.allocation import Choice, best_choices, floor_cost, pareto_front


def random_blocks(seed: int) -> list[list[Choice]]:
    """Four blocks of five sizes, costs in whole numbers from 1 to 20, one of them dropped at no cost."""
    rng = np.random.default_rng(seed)
    return [
        [Choice((h, 8), float(rng.integers(1, 21)), float(rng.random())) for h in range(1, 5)]
        + [Choice(None, 0.0, 1 + float(rng.random()))]
        for _ in range(4)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_the_best_choices_are_those_of_brute_force(seed: int) -> None:
    blocks = random_blocks(seed)
    for budget in (0, 7, 23, 41, 80):
        found = best_choices(blocks, budget, grid=max(1, budget))
        fitting = [c for c in itertools.product(*blocks) if sum(choice.cost for choice in c) <= budget]
        best = min(sum(choice.error for choice in c) for c in fitting)
        assert found is not None
        assert sum(choice.cost for choice in found) <= budget
        assert sum(choice.error for choice in found) == pytest.approx(best)


def test_costs_off_the_grid_never_pass_the_budget() -> None:
    rng = np.random.default_rng(0)
    blocks = [[Choice((1, 8), c, 1 / c) for c in rng.random(30)] for _ in range(6)]
    for budget in np.linspace(floor_cost(blocks), 6, 9):
        found = best_choices(blocks, float(budget), grid=100)
        assert found is not None and sum(choice.cost for choice in found) <= budget + 1e-12


def test_below_the_floor_there_is_nothing() -> None:
    blocks = [[Choice((1, 8), 2.0, 0.5), Choice((2, 8), 3.0, 0.0)]] * 2
    assert floor_cost(blocks) == 4
    assert best_choices(blocks, 3.99) is None
    assert best_choices(blocks, 4.0) == [blocks[0][0]] * 2


def test_the_front_drops_what_a_cheaper_choice_beats() -> None:
    cheap, worse, dear = Choice((1, 8), 1, 0.5), Choice((1, 16), 2, 0.6), Choice((2, 16), 3, 0.1)
    assert pareto_front([dear, worse, cheap]) == [cheap, dear]
