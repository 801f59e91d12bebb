"""The sizes of a tower's blocks under a limit: what every size of every block costs, and what it harms.

A few sizes of each sub-block are measured (`harm.py`), those between interpolated. A block's choices are all pairs of
heads and MLP units, with errors and costs that add up, and its whole removal; `allocation.py` selects. Left out:
interactions between blocks, which the walk of `shrink.py` mends in part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mmcompress.architecture import DualEncoderConfig, ImageConfig, TextConfig, TowerConfig
from mmcompress.compress.prune.allocation import Choice, S, best_choices, floor_cost
from mmcompress.compress.prune.shrink import Size, TowerName, sizes_of
from mmcompress.errors import UsageError

LEVELS = 6
"""Sizes of each sub-block that are measured, at most."""
FASTER = 10.0
"""No tower that is left of another one computes so many times as many multiply-accumulates a second."""
Levels = dict[int, float]
"""Kept heads or units -> error."""
BlockErrors = tuple[Levels, Levels, float]
"""Of fewer heads, of fewer MLP units, and of the removal of the whole block."""


Cost = Callable[[Size, int], float]
"""Of a block, by its size and its place in the tower."""


def static_cost(config: DualEncoderConfig, name: TowerName, kind: str) -> tuple[Cost, float, float]:
    """The cost of a block, of all that is no block, and of the whole tower; `kind` is macs or params."""
    tower: ImageConfig | TextConfig = getattr(config, name)
    tokens = tower.tokens if isinstance(tower, ImageConfig) else tower.context

    def cost(size: Size, _: int) -> float:
        if size is None:
            return 0.0
        block = tower.model_copy(update={"heads": size[:1], "mlp": size[1:]})
        return block.block_macs(tokens) if kind == "macs" else block.block_params()

    full = tower.macs(config.embed_dim) if kind == "macs" else tower.params(config.embed_dim)
    return cost, full - sum(cost(size, index) for index, size in enumerate(sizes_of(tower))), full


def sizes_within(blocks: Sequence[Sequence[Choice[S]]], share: float, base: float, full: float, what: str) -> list[S]:
    """The sizes that harm least at `share` of the full cost, of which `base` is no block's.

    Raises UsageError, with the floor, if nothing costs so little.
    """
    chosen = best_choices(blocks, share * full - base)
    if chosen is None:
        raise below_the_floor(what, share, (base + floor_cost(blocks)) / full)
    return [choice.size for choice in chosen]


def check_share(config: DualEncoderConfig, name: TowerName, kind: str, share: float, mlp_multiple: int) -> None:
    """Raise UsageError where even the cheapest block alone, of one head, costs more than the share of a tower."""
    floor = floor_share(config, name, kind, mlp_multiple)
    if share < floor:
        raise below_the_floor(f"the {kind} of the {name} tower", share, floor)


def check_mlp_multiple(name: TowerName, tower: TowerConfig, multiple: int) -> None:
    """Raise UsageError for a multiple that no MLP of a tower has, so that no unit would go."""
    if multiple > (most := max(tower.mlp)):
        raise UsageError(
            f"mlp_multiple {multiple} is more than the {most} units of the largest MLP of the {name} tower",
            "give 8, 16 or 32, which backends like",
        )


def check_latency_share(config: DualEncoderConfig, share: float, mlp_multiple: int) -> None:
    """As `check_share`, of the image tower's latency: what is certainly too little, before anything is measured."""
    check_reachable(share, floor_share(config, "image", "macs", mlp_multiple))


def check_reachable(share: float, floor: float) -> None:
    """Raise UsageError for a latency that a tower with this share of multiply-accumulates certainly does not reach."""
    if share < floor / FASTER:
        raise UsageError(
            f"the latency of the image tower cannot be pruned to {share:g}x: the smallest one does {floor:.3f}x of its"
            " multiply-accumulates",
            f"ask for about {floor:.2f}x or more, or prune a smaller model",
        )


def floor_share(config: DualEncoderConfig, name: TowerName, kind: str, mlp_multiple: int) -> float:
    """The share of a tower that is left with its cheapest block alone, of one head."""
    cost, base, full = static_cost(config, name, kind)
    tower: TowerConfig = getattr(config, name)
    return (base + min(cost((1, min(mlp_multiple, mlp)), index) for index, mlp in enumerate(tower.mlp))) / full


def below_the_floor(what: str, share: float, floor: float) -> UsageError:
    """What says that a share is less than what a tower can be pruned to."""
    return UsageError(
        f"{what} cannot be pruned to {share:g}x: the floor is {floor:.3f}x",
        f"ask for {floor + 0.001:.3f}x or more, or prune a smaller model",
    )


def levels(full: int, multiple: int) -> list[int]:
    """The sizes that are measured: multiples from the smallest to just below the full one, evenly spaced."""
    sizes = list(range(multiple, full, multiple))
    chosen = np.linspace(0, len(sizes) - 1, min(len(sizes), LEVELS)).round().astype(int)
    return [sizes[index] for index in dict.fromkeys(chosen.tolist())]


def block_choices(
    tower: TowerConfig,
    measured: Sequence[BlockErrors],
    mlp_multiple: int,
    cost: Cost,
) -> list[list[Choice[Size]]]:
    """All sizes of each block: `measured` has the errors of heads, of MLP units and of the whole block's removal.

    The block whose removal harms most is never offered for it, so that one remains.
    """
    worst = max(range(tower.depth), key=lambda index: measured[index][2])
    blocks: list[list[Choice[Size]]] = []
    for index, (by_heads, by_units, removed) in enumerate(measured):
        units = [*range(mlp_multiple, tower.mlp[index], mlp_multiple), tower.mlp[index]]
        heads = range(1, tower.heads[index] + 1)
        head_errors, unit_errors = interpolated(by_heads, heads), interpolated(by_units, units)
        choices: list[Choice[Size]] = [
            Choice((h, m), cost((h, m), index), head_error + unit_error)
            for h, head_error in zip(heads, head_errors, strict=True)
            for m, unit_error in zip(units, unit_errors, strict=True)
        ]
        if index != worst:
            choices.append(Choice(None, cost(None, index), removed))
        blocks.append(choices)
    return blocks


def interpolated(measured: Levels, sizes: Sequence[int]) -> list[float]:
    """Errors at all sizes; more kept never counts as worse, whatever the noise of the measurement."""
    known = sorted(measured)
    falling = np.minimum.accumulate([measured[size] for size in known])
    errors: list[float] = np.interp(sizes, known, falling).tolist()
    return errors
