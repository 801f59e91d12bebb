"""Pruned to a latency and recovered, against a uniform prune of the same measured latency and the same recovery.

python benchmarks/recovered.py [CHECKPOINT] [--target 0.6] [--data demo:test] [--seeds 0 1 2]

Ours is `mmcompress prune --target-latency`. The uniform prune keeps the same heads and MLP units in every block, with
our refit, at no less latency than ours: for each number of heads the fewest units that take as long as ours are looked
up in the table of block costs and raced, and units are added until they do; of these the one that is best before
training is recovered. Recovery is `mmcompress distill --from` for as many steps, with the demo's settings.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mmcompress.artifact import Artifact
from mmcompress.compress.prune.latency_target import Timing, block_costs, measured_speedup
from mmcompress.compress.prune.shrink import resized
from mmcompress.config import Backend
from mmcompress.pipeline import standalone
from mmcompress.runtime.machine import usable_cores

RECOVERY = {"text": "keep", "optimizer.batch": 64, "optimizer.lr": 1.2e-3, "optimizer.ema": 0.99}
SHORT = 0.985
"""A uniform tower may be this much faster than ours by one race, which is within its interval."""


def r10(checkpoints: Sequence[Path], data: str, folder: Path) -> list[float]:
    """Image to text R@10 of each, by `mmcompress drift` on its FP32 export."""
    files = [
        standalone.export(str(path), folder / f"{path.name}-files", {"precisions": ("fp32",)}).path
        for path in checkpoints
    ]
    made = standalone.drift(files, folder / f"drift-{checkpoints[0].name}", {"data.test": data})
    rows = json.loads(made.file("drift.json").read_text(encoding="utf-8"))["rows"]
    return [row["metrics"]["i2t_r10"] for row in rows]


def uniform_sizes(
    checkpoint: Path, share: float, backend: Backend, multiple: int, threads: int
) -> list[tuple[float, int, int]]:
    """(measured share, heads, MLP units) for each number of heads that can take as long as `share` of the dense."""
    model = Artifact.open(checkpoint).model
    tower = model.image
    timing = Timing(backend, "fp32", threads)
    table = block_costs(model, multiple, timing)
    full = [*range(multiple, max(tower.mlp), multiple), max(tower.mlp)]
    found = []
    for heads in range(1, max(tower.heads) + 1):
        last = tower.depth - 1
        for mlp in full:
            costs = (table.cost(heads, mlp, last=index == last) for index in range(tower.depth))
            if table.base + sum(costs) < 0.95 * share:
                continue
            measured = 1 / measured_speedup(model, resized(tower, [(heads, mlp)] * tower.depth), timing).speedup
            if measured >= SHORT * share:
                found.append((measured, heads, mlp))
                break
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=Path("runs/demo/distill"))
    parser.add_argument("--target", default="0.6")
    parser.add_argument("--data", default="demo:test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=7.0)
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--multiple", type=int, default=16)
    asked = parser.parse_args()
    if not asked.checkpoint.is_dir():
        print(f"not measured: there is no {asked.checkpoint}; run `make demo`, or give a checkpoint")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        common = {"mlp_multiple": asked.multiple, "towers": ("image",)}
        target = {"target_latency": asked.target, "backend": asked.backend, "precision": "fp32"}
        ours = standalone.prune(asked.checkpoint, folder / "ours", {**common, **target})
        image = ours.manifest.metrics["towers"]["image"]
        sizes = uniform_sizes(asked.checkpoint, image["measured"], asked.backend, asked.multiple, image["threads"])
        tower = Artifact.open(asked.checkpoint).model.image
        uniform = {}
        for measured, heads, mlp in sizes:
            shares = {"heads": heads / max(tower.heads), "mlp": mlp / max(tower.mlp)}
            place = folder / f"uniform-{heads}-{mlp}"
            uniform[standalone.prune(asked.checkpoint, place, {**common, **shares}).path] = measured
        before = r10([ours.path, *uniform], asked.data, folder)
        best, untrained = max(zip(uniform, before[1:], strict=True), key=lambda pair: pair[1])
        chosen = {"ours": (ours.path, image["measured"], before[0]), "uniform": (best, uniform[best], untrained)}
        after: dict[str, list[float]] = {name: [] for name in chosen}
        for seed in asked.seeds:
            recovered = [
                standalone.distill(
                    folder / f"{name}-recovered-{seed}",
                    {**RECOVERY, "optimizer.epochs": asked.epochs, "seed": seed},
                    embeddings=embeddings_of(asked.checkpoint),
                    checkpoint=path,
                ).path
                for name, (path, *_) in chosen.items()
            ]
            for name, found in zip(chosen, r10(recovered, asked.data, folder), strict=True):
                after[name].append(found)
    print(f"{asked.target}x asked, {asked.data}, {asked.epochs:g} epochs, {usable_cores()} threads on {asked.backend}")
    print(f"{'':16} {'latency':>8} {'untrained':>10} {'recovered':>10}  by seed")
    for name, (path, share, untrained) in chosen.items():
        label = name if name == "ours" else path.name
        by_seed = " ".join(f"{value:.4f}" for value in after[name])
        print(f"{label:16} {share:8.3f} {untrained:10.4f} {statistics.mean(after[name]):10.4f}  {by_seed}")
    return 0


def embeddings_of(checkpoint: Path) -> Path:
    """The teacher's embeddings beside a checkpoint of a run folder."""
    return next(path for path in (checkpoint.parent / "embed", Path(f"{checkpoint}-embeddings")) if path.is_dir())


if __name__ == "__main__":
    sys.exit(main())
