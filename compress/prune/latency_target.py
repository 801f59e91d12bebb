"""Pruning to a latency: sizes from a table of measured block costs, and then measured themselves.

The table assumes that costs add up, which is nearly so. So the solution is raced against the dense tower, as `compare`
does it, and where it misses the target by more than the tolerance the limit is moved by what it missed, between those
that were found too small and too large, and solved again. Sizes are timed with random weights, since time depends on
sizes only: nothing is fitted before the sizes stand.

The table is an artifact in the user's cache, keyed by device, backend, its version, threads and the tower's sizes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmcompress.architecture import DualEncoderConfig, ImageConfig
from mmcompress.artifact import Artifact
from mmcompress.compress.prune.allocation import floor_cost
from mmcompress.compress.prune.shrink import Size, resized
from mmcompress.compress.prune.sizes import BlockErrors, block_choices, levels, sizes_within
from mmcompress.config import Backend, Precision, PruneConfig
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
RACE_S = 10.0
"""Longest measured time of each side of a race."""


def sizes_at_latency(
    model: DualEncoderConfig, errors: Sequence[BlockErrors], share: float, config: PruneConfig
) -> tuple[list[Size], dict[str, Any]]:
    """The sizes of the image blocks that harm least at `share` of the tower's latency, and what was measured."""
    tower, threads = model.transformer_image("pruning to a latency"), config.threads or usable_cores()
    table = block_costs(model, config.mlp_multiple, config.backend, config.precision, threads)

    def cost(size: Size, index: int) -> float:
        return 0.0 if size is None else table.cost(*size, last=index == tower.depth - 1)

    blocks = block_choices(tower, errors, config.mlp_multiple, cost)
    floor = table.base + floor_cost(blocks)
    tried: dict[tuple[Size, ...], Ratio] = {}
    below, above = floor, 1.0  # limits that were too small and too large
    limit = share
    for _ in range(ATTEMPTS):
        sizes = tuple(sizes_within(blocks, limit, table.base, 1.0, "the latency of the image tower"))
        if sizes in tried:
            break
        tried[sizes] = measured_speedup(model, sizes, config.backend, config.precision, threads)
        measured = 1 / tried[sizes].speedup
        say("prune", "latency", f"asked {share:.3f}x, measured {measured:.3f}x")
        if abs(measured / share - 1) <= TOLERANCE:
            break
        below, above = (limit, above) if measured < share else (below, limit)
        moved = limit + share - measured
        limit = moved if below < moved < above else (below + above) / 2
    best = min(tried, key=lambda sizes: abs(1 / tried[sizes].speedup - share))
    best_ratio = tried[best]
    return list(best), {
        "asked": share,
        "measured": 1 / best_ratio.speedup,
        "ci95": [1 / best_ratio.high, 1 / best_ratio.low],
        "backend": config.backend,
        "precision": config.precision,
        "threads": threads,
        "attempts": [1 / ratio.speedup for ratio in tried.values()],
        "costs": asdict(table),
    }


def measured_speedup(
    model: DualEncoderConfig, sizes: Sequence[Size], backend: Backend, precision: Precision, threads: int
) -> Ratio:
    """How many times as fast as the dense image tower the one of these sizes is."""
    tower = model.transformer_image("pruning to a latency")
    with tempfile.TemporaryDirectory() as folder:
        probes = write_probes(model, [tower, resized(tower, sizes)], Path(folder) / "probes", precision)
        dense, pruned = (Subject(probes, graph, backend, threads) for graph in probes.manifest.graphs)
        with realtime(threads <= usable_cores()):
            return race(dense, pruned, 1, RACE_S)[1]


def block_costs(
    model: DualEncoderConfig, mlp_multiple: int, backend: Backend, precision: Precision, threads: int
) -> BlockCosts:
    """The table of block costs for the widest block of this image tower, measured here or taken from the cache."""
    tower = model.transformer_image("pruning to a latency")
    head_levels, mlp_levels = levels(max(tower.heads), 1), levels(max(tower.mlp), mlp_multiple)
    about = {
        "device": cpu_model(),
        "backend": backend,
        "version": environment().get(backend),
        "precision": precision,
        "threads": threads,
        "tower": tower.model_dump(mode="json"),
        "levels": [head_levels, mlp_levels],
    }
    place = cache_folder() / "block-costs" / hash_json(about)[:16]
    if (place / "manifest.json").is_file():
        return _costs_from(Artifact.open(place, Kind.REPORT))
    full, deep = (max(tower.heads), max(tower.mlp)), max(2, tower.depth)
    towers = [_uniform(tower, full, depth) for depth in (deep, deep // 2)]
    towers += [_uniform(tower, (fewer, full[1]), deep) for fewer in head_levels]
    towers += [_uniform(tower, (full[0], fewer), deep) for fewer in mlp_levels]
    for last in ((min([*head_levels, full[0]]), full[1]), (full[0], min([*mlp_levels, full[1]]))):
        towers.append(resized(towers[0], [full] * (deep - 1) + [last]))
    with tempfile.TemporaryDirectory() as folder:
        shares, dense_ms = shares_of_first(
            write_probes(model, towers, Path(folder) / "probes", precision), backend, threads
        )
    table = table_from_shares(shares, dense_ms, (deep, deep // 2), full, head_levels, mlp_levels)
    with Artifact.create(place, kind=Kind.REPORT, stage="block-costs", key=hash_json(about), config=about) as draft:
        write_json(draft.path / "costs.json", asdict(table))
    return table


def _costs_from(artifact: Artifact) -> BlockCosts:
    costs = read_json(artifact.file("costs.json"), f"delete {artifact.path}: it is measured again")
    for sizes in ("heads", "mlp"):
        costs[sizes] = {int(size): saved for size, saved in costs[sizes].items()}
    return BlockCosts(**{**costs, "last": tuple(costs["last"])})


def _uniform(tower: ImageConfig, size: tuple[int, int], depth: int) -> ImageConfig:
    return tower.model_copy(update={"heads": size[:1] * depth, "mlp": size[1:] * depth})
