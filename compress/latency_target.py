"""Pruning to a latency: sizes from a table of measured block costs, and then measured themselves.

The table assumes that costs add up, which is nearly so. So the solution is timed against the dense tower, and where
it misses the target by more than the tolerance the budget is moved by what it missed, between those that were found too
small and too large, and solved again; a hit is measured twice. Sizes are timed with random weights, since time depends
on sizes only: nothing is fitted before the sizes stand.

The table is an artifact in the user's cache, keyed by device, backend, its version, threads and the tower's sizes.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmcompress.architecture import DualEncoderConfig, ImageConfig
from mmcompress.artifact import Artifact, Kind, environment, hash_json
from mmcompress.compress.budget import floor_cost
from mmcompress.compress.shrink import Size, resized, sizes_of
from mmcompress.compress.sizes import BlockErrors, block_choices, levels, sizes_within
from mmcompress.config import Backend, PruneConfig
from mmcompress.export.probe import write_probes
from mmcompress.progress import say
from mmcompress.runtime.blockcosts import TURNS, BlockCosts, shares_of_first, table_from_times, times_in_turns
from mmcompress.runtime.machine import cpu_model, usable_cores

TOLERANCE = 0.03
"""How far the measured latency may be from the target, as a share of it."""
ATTEMPTS = 8


def sizes_at_latency(
    model: DualEncoderConfig, errors: Sequence[BlockErrors], share: float, config: PruneConfig
) -> tuple[list[Size], dict[str, Any]]:
    """The sizes of the image blocks that harm least at `share` of the tower's latency, and what was measured."""
    tower, threads = model.image, config.threads or usable_cores()
    table = block_costs(model, config.mlp_multiple, config.backend, threads)

    def cost(size: Size) -> float:
        return 0.0 if size is None else table.cost(*size)

    blocks = block_choices(tower, errors, config.mlp_multiple, cost)
    full = table.base + sum(map(cost, sizes_of(tower)))
    floor = (table.base + floor_cost(blocks)) / full
    tried: dict[tuple[Size, ...], float] = {}
    below, above = floor, 1.0  # budgets that were too small and too large
    budget = share
    for _ in range(ATTEMPTS):
        sizes = tuple(sizes_within(blocks, budget, table.base, full, "the latency of the image tower"))
        if sizes in tried:
            break
        tried[sizes] = measured_share(model, sizes, config.backend, threads)
        if abs(tried[sizes] / share - 1) <= TOLERANCE:  # which may be luck
            tried[sizes] = (tried[sizes] + measured_share(model, sizes, config.backend, threads)) / 2
        say("prune", "latency", f"asked {share:.3f}x, measured {tried[sizes]:.3f}x")
        if abs(tried[sizes] / share - 1) <= TOLERANCE:
            break
        below, above = (budget, above) if tried[sizes] < share else (below, budget)
        moved = budget + share - tried[sizes]
        budget = moved if below < moved < above else (below + above) / 2
    best = min(tried, key=lambda sizes: abs(tried[sizes] - share))
    facts = {"asked": share, "measured": tried[best], "backend": config.backend, "threads": threads}
    return list(best), {**facts, "attempts": list(tried.values()), "costs": asdict(table)}


def measured_share(model: DualEncoderConfig, sizes: Sequence[Size], backend: Backend, threads: int) -> float:
    """The latency of the image tower at these sizes over that of the dense one, timed in turns."""
    with tempfile.TemporaryDirectory() as folder:
        towers = [model.image, resized(model.image, sizes)]
        times = times_in_turns(write_probes(model, towers, Path(folder) / "probes"), backend, threads, 2 * TURNS)
    return float(shares_of_first(times)[1])


def block_costs(model: DualEncoderConfig, mlp_multiple: int, backend: Backend, threads: int) -> BlockCosts:
    """The table of block costs for the widest block of this image tower, measured here or taken from the cache."""
    tower = model.image
    head_levels, mlp_levels = levels(max(tower.heads), 1), levels(max(tower.mlp), mlp_multiple)
    about = {
        "device": cpu_model(),
        "backend": backend,
        "version": environment().get(backend),
        "threads": threads,
        "tower": tower.model_dump(mode="json"),
        "levels": [head_levels, mlp_levels],
    }
    place = cache_folder() / "block-costs" / hash_json(about)[:16]
    if (place / "manifest.json").is_file():
        return _costs_from(Artifact.open(place, Kind.REPORT))
    heads, mlp, deep = max(tower.heads), max(tower.mlp), max(2, tower.depth)
    towers = [_uniform(tower, heads, mlp, depth) for depth in (deep, deep // 2)]
    towers += [_uniform(tower, fewer, mlp, deep) for fewer in head_levels]
    towers += [_uniform(tower, heads, fewer, deep) for fewer in mlp_levels]
    with tempfile.TemporaryDirectory() as folder:
        times = times_in_turns(write_probes(model, towers, Path(folder) / "probes"), backend, threads)
    table = table_from_times(times, (deep, deep // 2), (heads, mlp), head_levels, mlp_levels)
    with Artifact.create(place, kind=Kind.REPORT, stage="block-costs", key=hash_json(about), config=about) as draft:
        (draft.path / "costs.json").write_text(json.dumps(asdict(table), indent=1), encoding="utf-8")
    return table


def _costs_from(artifact: Artifact) -> BlockCosts:
    found = json.loads(artifact.file("costs.json").read_text(encoding="utf-8"))
    for sizes in ("heads", "mlp"):
        found[sizes] = {int(size): saved for size, saved in found[sizes].items()}
    return BlockCosts(**found)


def _uniform(tower: ImageConfig, heads: int, mlp: int, depth: int) -> ImageConfig:
    return tower.model_copy(update={"heads": (heads,) * depth, "mlp": (mlp,) * depth})


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/mmcompress`, or `~/.cache/mmcompress`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmcompress"
