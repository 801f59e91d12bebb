"""Pruning to a latency: sizes from a table of measured block costs, and then measured themselves.

The table assumes that costs add up, which is nearly so; of a convolutional tower it has what a multiply-accumulate of
each stage costs. So the solution is raced against the dense tower, as `compare`
does it, and where it misses the target by more than the tolerance the limit is moved by what it missed, between those
that were found too small and too large, and solved again. Sizes are timed with random weights, since time depends on
sizes only: nothing is fitted before the sizes stand.

The table is an artifact in the user's cache, keyed by device, backend, its version, threads and the tower's sizes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from mmcompress.architecture import AnyImageConfig, DualEncoderConfig, ImageConfig
from mmcompress.artifact import Artifact
from mmcompress.compress.prune.allocation import floor_cost
from mmcompress.compress.prune.hidden import (
    check_hidden_latency,
    hidden_choices,
    hidden_cost,
    hidden_of_blocks,
    narrower,
    resized_hidden,
    stages_of,
    unmeasured,
)
from mmcompress.compress.prune.shrink import Size, resized
from mmcompress.compress.prune.sizes import (
    BlockErrors,
    below_the_floor,
    block_choices,
    check_latency_share,
    levels,
    sizes_within,
)
from mmcompress.config import Backend, Precision, PruneConfig
from mmcompress.convnet import ConvConfig
from mmcompress.export.sized import write_probes
from mmcompress.manifest import Kind, environment, hash_json
from mmcompress.measure.bench.blockcosts import BlockCosts, shares_of_first, table_from_shares
from mmcompress.measure.compare import race
from mmcompress.measure.estimate import Ratio
from mmcompress.measure.subjects import Subject
from mmcompress.places import cache_folder
from mmcompress.progress import say
from mmcompress.runtime.machine import cpu_model, usable_cores
from mmcompress.runtime.scheduling import realtime
from mmcompress.strictjson import read_json, write_json

TOLERANCE = 0.02
"""How far the measured latency may be from the target, as a share of it."""
ATTEMPTS = 8
COSTS = "costs.json"
LATENCY = "the latency of the image tower"
UNLIKELY = 8.0
"""No multiply-accumulate of a stage costs so many times more, or less, than the mean of its tower."""
Sizes = TypeVar("Sizes", bound=Hashable)
RACE_S = 10.0
"""Longest measured time of each side of a race."""
FLOOR_S = 0.6
"""The same of a race that only says what cannot be reached."""
FLOOR_RACES = 2
"""Of which the one that reaches further counts: noise only adds, and what it says is remembered."""


@dataclass(frozen=True)
class Timing:
    """How a latency is measured."""

    backend: Backend
    precision: Precision
    threads: int


def sizes_at_latency(
    model: DualEncoderConfig, errors: Sequence[BlockErrors], share: float, config: PruneConfig
) -> tuple[list[Size], dict[str, Any]]:
    """The sizes of the image blocks that harm least at `share` of the tower's latency, and what was measured."""
    tower = model.transformer_image("pruning to a latency")
    table = block_costs(model, config.mlp_multiple, timing_of(config))

    def cost(size: Size, index: int) -> float:
        return 0.0 if size is None else table.cost(*size, last=index == tower.depth - 1)

    blocks = block_choices(tower, errors, config.mlp_multiple, cost)

    def solve(limit: float) -> tuple[Size, ...]:
        return tuple(sizes_within(blocks, limit, table.base, 1.0, LATENCY))

    found = search(model, share, config, table.base + floor_cost(blocks), solve, lambda sizes: resized(tower, sizes))
    return list(found[0]), {**found[1], "costs": asdict(table)}


def check_latency(model: DualEncoderConfig, config: PruneConfig) -> None:
    """Raise UsageError for a latency that the smallest image tower of all does not have.

    First by multiply-accumulates, which costs nothing, and then by a short race, once a machine.
    """
    share, timing = config.target_latency or 1.0, timing_of(config)
    if isinstance(model.image, ConvConfig):
        check_hidden_latency(model, model.image, share, config.channel_multiple)
    else:
        check_latency_share(model, share, config.mlp_multiple)
    least = smallest(model, config)

    def measure() -> dict[str, Any]:
        say("prune", "latency", f"timing the smallest image tower that could be left, on {timing.backend}")
        ratio = max((measured_speedup(model, least, timing, FLOOR_S) for _ in range(FLOOR_RACES)), key=lambda r: r.high)
        return {"floor": 1 / ratio.speedup, "low": 1 / ratio.high}

    found = remembered("smallest", model, timing, {"least": least.model_dump(mode="json")}, measure)
    if share < found["low"] * (1 - TOLERANCE):
        raise below_the_floor(LATENCY, share, found["floor"])


def smallest(model: DualEncoderConfig, config: PruneConfig) -> AnyImageConfig:
    """The least that pruning could leave of an image tower: one block of one head, or the narrowest, smallest one."""
    tower = model.image
    if isinstance(tower, ConvConfig):
        *_, narrow = narrower(tower).values()
        cost, _, _ = hidden_cost(model, narrow, "macs")
        blocks = hidden_choices(narrow, unmeasured(narrow), config.channel_multiple, cost)
        return resized_hidden(narrow, {i: min(choices, key=lambda c: c.cost).size for i, choices in blocks.items()})
    least = min(range(tower.depth), key=lambda index: tower.mlp[index])
    size = (1, min(config.mlp_multiple, tower.mlp[least]))
    return resized(tower, [size if index == least else None for index in range(tower.depth)])


def search(
    model: DualEncoderConfig,
    share: float,
    config: PruneConfig,
    floor: float,
    solve: Callable[[float], Sizes],
    sized: Callable[[Sizes], AnyImageConfig],
) -> tuple[Sizes, dict[str, Any]]:
    """The sizes whose measured latency is nearest to `share`: `solve` gives those within a limit, from `floor` on."""
    timing = timing_of(config)
    tried: dict[Sizes, Ratio] = {}
    below, above = floor, 1.0  # limits that were too small and too large
    limit = share
    for _ in range(ATTEMPTS):
        sizes = solve(limit)
        if sizes in tried:
            break
        tried[sizes] = measured_speedup(model, sized(sizes), timing)
        measured = 1 / tried[sizes].speedup
        say("prune", "latency", f"asked {share:.3f}x, measured {measured:.3f}x")
        if abs(measured / share - 1) <= TOLERANCE:
            break
        below, above = (limit, above) if measured < share else (below, limit)
        moved = limit + share - measured
        limit = moved if below < moved < above else (below + above) / 2
    best = min(tried, key=lambda sizes: abs(1 / tried[sizes].speedup - share))
    best_ratio = tried[best]
    return best, {
        "asked": share,
        "measured": 1 / best_ratio.speedup,
        "ci95": [1 / best_ratio.high, 1 / best_ratio.low],
        **asdict(timing),
        "attempts": [1 / ratio.speedup for ratio in tried.values()],
    }


def timing_of(config: PruneConfig) -> Timing:
    return Timing(config.backend, config.precision, config.threads or usable_cores())


def measured_speedup(
    model: DualEncoderConfig, smaller: AnyImageConfig, timing: Timing, seconds: float | None = None
) -> Ratio:
    """How many times as fast as the dense image tower the smaller one is, each timed for so long at most."""
    with tempfile.TemporaryDirectory() as folder:
        probes = write_probes(model, [model.image, smaller], Path(folder) / "probes", timing.precision)
        dense, pruned = (Subject(probes, graph, timing.backend, timing.threads) for graph in probes.manifest.graphs)
        with realtime(timing.threads <= usable_cores()):
            return race(dense, pruned, 1, seconds or RACE_S)[1]


def stage_rates(model: DualEncoderConfig, tower: ConvConfig, multiple: int, timing: Timing) -> list[float]:
    """What a multiply-accumulate of each stage costs, as a share of the tower's latency, measured here or remembered.

    Of each stage one tower is timed whose bottlenecks there have half of their hidden channels. A rate that noise has
    moved beyond `UNLIKELY` times the tower's mean is held there.
    """
    halves, macs = [], []
    hidden = hidden_of_blocks(tower)
    by_macs, _, full = hidden_cost(model, tower, "macs")
    stages = stages_of(tower)
    for number in range(len(tower.stages)):
        fewer = {
            index: max(min(multiple, channels), channels // 2 // multiple * multiple)
            for index, channels in hidden.items()
            if stages[index] == number
        }
        halves.append(resized_hidden(tower, fewer))
        macs.append(sum(by_macs(index, hidden[index]) - by_macs(index, size) for index, size in fewer.items()))
    timed = [number for number, saved in enumerate(macs) if saved > 0]

    def measure() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            towers = [tower, *(halves[number] for number in timed)]
            probes = write_probes(model, towers, Path(folder) / "probes", timing.precision)
            shares, dense_ms = shares_of_first(probes, timing.backend, timing.threads)
        return {"shares": shares[1:], "dense_ms": dense_ms}

    found = remembered("stage-rates", model, timing, {"multiple": multiple}, measure)
    rates, mean = [1 / full] * len(tower.stages), 1 / full
    for number, left in zip(timed, found["shares"], strict=True):
        rates[number] = min(UNLIKELY * mean, max(mean / UNLIKELY, (1 - left) / macs[number]))
    return rates


def narrow_latencies(model: DualEncoderConfig, towers: Sequence[ConvConfig], timing: Timing) -> list[float]:
    """The latency of towers as shares of the model's own, measured here or remembered."""

    def measure() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            probes = write_probes(model, [model.image, *towers], Path(folder) / "probes", timing.precision)
            shares, dense_ms = shares_of_first(probes, timing.backend, timing.threads)
        return {"shares": shares[1:], "dense_ms": dense_ms}

    about = {"towers": [tower.model_dump(mode="json") for tower in towers]}
    found: list[float] = remembered("narrow-latencies", model, timing, about, measure)["shares"]
    return found


def remembered(
    what: str, model: DualEncoderConfig, timing: Timing, about: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What was measured of an image tower on this machine: from the user's cache, or now."""
    keyed = {
        "device": cpu_model(),
        "version": environment().get(timing.backend),
        **asdict(timing),
        "tower": model.image.model_dump(mode="json"),
        **about,
    }
    place = cache_folder() / what / hash_json(keyed)[:16]
    if not (place / "manifest.json").is_file():
        costs = measure()
        with Artifact.create(place, kind=Kind.REPORT, stage=what, key=hash_json(keyed), config=keyed) as draft:
            write_json(draft.path / COSTS, costs)
    kept: dict[str, Any] = read_json(
        Artifact.open(place, Kind.REPORT).file(COSTS), f"delete {place}: it is measured again"
    )
    return kept


def block_costs(model: DualEncoderConfig, mlp_multiple: int, timing: Timing) -> BlockCosts:
    """The table of block costs for the widest block of this image tower, measured here or taken from the cache."""
    tower = model.transformer_image("pruning to a latency")
    head_levels, mlp_levels = levels(max(tower.heads), 1), levels(max(tower.mlp), mlp_multiple)
    full, deep = (max(tower.heads), max(tower.mlp)), max(2, tower.depth)
    towers = [_uniform(tower, full, depth) for depth in (deep, deep // 2)]
    towers += [_uniform(tower, (fewer, full[1]), deep) for fewer in head_levels]
    towers += [_uniform(tower, (full[0], fewer), deep) for fewer in mlp_levels]
    for last in ((min([*head_levels, full[0]]), full[1]), (full[0], min([*mlp_levels, full[1]]))):
        towers.append(resized(towers[0], [full] * (deep - 1) + [last]))

    def measure() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            probes = write_probes(model, towers, Path(folder) / "probes", timing.precision)
            shares, dense_ms = shares_of_first(probes, timing.backend, timing.threads)
        return asdict(table_from_shares(shares, dense_ms, (deep, deep // 2), full, head_levels, mlp_levels))

    costs = remembered("block-costs", model, timing, {"levels": [head_levels, mlp_levels]}, measure)
    for sizes in ("heads", "mlp"):
        costs[sizes] = {int(size): saved for size, saved in costs[sizes].items()}
    return BlockCosts(**{**costs, "last": tuple(costs["last"])})


def _uniform(tower: ImageConfig, size: tuple[int, int], depth: int) -> ImageConfig:
    return tower.model_copy(update={"heads": size[:1] * depth, "mlp": size[1:] * depth})
