"""Pruning to a latency: what was asked against what the exported files take, on OpenVINO at batch 1.

python benchmarks/latency_target.py [CHECKPOINT] [--targets 0.7 0.5 0.3] [--backend openvino]

Each target is `mmcompress prune CHECKPOINT --target-latency T`; the result is exported and raced against the export of
the checkpoint by `mmcompress compare`, after the search and apart from it, so that what the search found by luck does
not count. Without a checkpoint: the demo's student, as `make demo` leaves it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from mmcompress.measure.compare import compare
from mmcompress.pipeline import standalone
from mmcompress.pipeline.recipe import parse_assignments


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=Path("runs/demo/distill"))
    parser.add_argument("--targets", nargs="+", default=["0.7", "0.5", "0.3"])
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--set", action="append", default=[], help="of prune: mlp_multiple=16")
    asked = parser.parse_args()
    if not asked.checkpoint.is_dir():
        print(f"not measured: there is no {asked.checkpoint}; run `make demo`, or give a checkpoint")
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dense = standalone.export(str(asked.checkpoint), folder / "dense", {"precisions": ("fp32",)}).path
        for target in asked.targets:
            pruned = folder / f"pruned-{target}"
            given = {
                "target_latency": target,
                "backend": asked.backend,
                "precision": "fp32",
                **parse_assignments(asked.set),
            }
            made = standalone.prune(asked.checkpoint, pruned, given)
            files = standalone.export(str(pruned), folder / f"files-{target}", {"precisions": ("fp32",)}).path
            found = compare(dense, files, backend=asked.backend, precision="fp32").comparisons[0]
            searched = made.manifest.metrics["towers"]["image"]["measured"]
            low, high = (1 / bound for bound in reversed(found.ci95))
            rows.append((float(target), searched, 1 / found.speedup, low, high, made.manifest.facts["macs_share"]))
    print(f"{'asked':>6} {'search':>7} {'files':>7} {'95% interval':>16} {'off by':>7} {'MACs':>6}")
    for target, searched, share, low, high, macs in rows:
        interval = f"[{low:.3f}, {high:.3f}]"
        print(f"{target:6.2f} {searched:7.3f} {share:7.3f} {interval:>16} {share / target - 1:+7.1%} {macs:6.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
