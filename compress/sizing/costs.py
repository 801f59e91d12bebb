"""What the work of image towers costs on this machine: whole towers are timed, and their times taken apart by kind.

Towers of random weights and many sizes are timed in one interleaved run, as the graphs that would be delivered, INT8
included. For each family the time of a unit of each kind of work (`work.py`) is then the non-negative least squares
solution of relative errors (Lawson & Hanson 1974, chapter 23). What a tower that was not timed would take is composed
of these; how well is told by towers left out one by one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmcompress.architecture import AnyImageConfig, DualEncoderConfig, TextConfig
from mmcompress.artifact import Artifact
from mmcompress.compress.sizing.candidates import Candidate, probes_of, tower_of
from mmcompress.compress.sizing.document import COSTS, CostsDocument, FamilyCosts, TimedTower
from mmcompress.compress.sizing.work import Family, family_of, work_of
from mmcompress.config import Backend, BlockCostsConfig, Precision
from mmcompress.export.sized import write_probes
from mmcompress.measure.bench.blockcosts import quietest_ms
from mmcompress.measure.early import runnable
from mmcompress.runtime.machine import machine, usable_cores
from mmcompress.stages import Job

EMBED_DIM = 512
"""Of the space that probes embed into; the projection is a thousandth of a tower."""
PASSES = 20_000


def block_costs(job: Job[BlockCostsConfig]) -> None:
    """Stage: time towers of both families here, and say what each kind of their work costs."""
    config = job.config
    costs = measured_costs(config.backend, config.precision, config.threads or usable_cores(), config.image_size)
    costs.write(job.draft.path / COSTS)


def check_block_costs(config: BlockCostsConfig, _: Mapping[str, Artifact]) -> None:
    runnable(config.backend)


def measured_costs(backend: Backend, precision: Precision, threads: int, image_size: int) -> CostsDocument:
    """The costs of both families, from towers about this image size."""
    probes = probes_of(image_size)
    towers = [tower_of(probe) for probe in probes]
    times = timed(towers, backend, precision, threads)
    families: dict[Family, FamilyCosts] = {}
    for family in ("transformer", "convolutional"):
        own = [index for index, tower in enumerate(towers) if family_of(tower) == family]
        families[family] = family_costs([probes[i] for i in own], [towers[i] for i in own], [times[i] for i in own])
    return CostsDocument(
        backend=backend,
        precision=precision,
        threads=threads,
        image_size=image_size,
        environment=machine(),
        families=families,
    )


def timed(towers: Sequence[AnyImageConfig], backend: Backend, precision: Precision, threads: int) -> list[float]:
    """Milliseconds of each tower at batch 1, all in one interleaved run, by its fastest visit."""
    with tempfile.TemporaryDirectory() as folder:
        graphs = write_probes(around(towers[0]), towers, Path(folder) / "probes", precision)
        return quietest_ms(graphs, backend, threads)


def around(tower: AnyImageConfig) -> DualEncoderConfig:
    """A dual encoder with this image tower, and a text tower that nobody times."""
    text = TextConfig(width=64, head_dim=64, heads=(1,), mlp=(64,), vocab=8, context=8, eos_token_id=7, pooling="end")
    return DualEncoderConfig(embed_dim=EMBED_DIM, image=tower, text=text)


def family_costs(probes: Sequence[Candidate], towers: Sequence[AnyImageConfig], times: Sequence[float]) -> FamilyCosts:
    """What a unit of each kind of work costs in one family, and how well towers that were not timed are told."""
    works = [work_of(tower, EMBED_DIM) for tower in towers]
    kinds = sorted({kind for work in works for kind in work})
    amounts = np.array([[work.get(kind, 0.0) for kind in kinds] for work in works])
    wanted = np.array(times)
    ms = nonnegative(amounts / wanted[:, None], np.ones(len(wanted)))
    left_out = []
    for index in range(len(times)):
        others = np.arange(len(times)) != index
        fitted = nonnegative(amounts[others] / wanted[others, None], np.ones(int(others.sum())))
        left_out.append(float(amounts[index] @ fitted))
    rows = tuple(
        TimedTower(tower=probe.name, measured_ms=time, predicted_ms=predicted)
        for probe, time, predicted in zip(probes, times, left_out, strict=True)
    )
    return FamilyCosts(ns_of=dict(zip(kinds, (1e6 * ms).tolist(), strict=True)), towers=rows)


def predicted_ms(costs: CostsDocument, tower: AnyImageConfig) -> float:
    """Milliseconds of a tower at batch 1, composed of its work."""
    ns_of = costs.families[family_of(tower)].ns_of
    return 1e-6 * sum(ns_of.get(kind, 0.0) * amount for kind, amount in work_of(tower, EMBED_DIM).items())


def nonnegative(amounts: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """x >= 0 of least |amounts x - wanted|, a coordinate at a time (Franc et al. 2005, algorithm 1)."""
    scale = np.linalg.norm(amounts, axis=0)
    scaled = amounts / scale
    gram, gradient = scaled.T @ scaled, -(scaled.T @ wanted)
    x = np.zeros(len(scale))
    for _ in range(PASSES):
        moved = 0.0
        for k in range(len(x)):
            new = max(0.0, x[k] - gradient[k] / gram[k, k])
            if new != x[k]:
                gradient += (new - x[k]) * gram[:, k]
                moved, x[k] = max(moved, abs(new - x[k])), new
        if moved < 1e-12:
            break
    found: NDArray[np.float64] = x / scale
    return found
