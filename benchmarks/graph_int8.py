"""INT8 of any architecture through its ONNX graphs: drift and speed-up over FP32 on OpenVINO and ONNX Runtime.

For teachers of open_clip, `RN50`, `MobileCLIP-S1`, with random weights unless NAME/TAG says otherwise: speed does not
depend on weights, and drift of random ones is only told for its order of magnitude. Every candidate of a verdict is
raced in one interleaved run at batch 1.

    python benchmarks/graph_int8.py RN50 MobileCLIP-S1 --data PAIRS --out DIR
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmcompress.artifact import Artifact
from mmcompress.config import DataConfig, QuantizeGraphsConfig, TeacherConfig, TraceConfig, VerdictConfig
from mmcompress.measure.verdict import contest
from mmcompress.measure.verdict.contestants import Contestant, float_contestants, tried_candidates, written
from mmcompress.measure.verdict.heldout import held_out
from mmcompress.measure.verdict.origins import origin_of
from mmcompress.measure.verdict.verdict import embedded
from mmcompress.pipeline.run import run_stage
from mmcompress.runtime.backends import CPU_BACKENDS
from mmcompress.stages import STAGES


def quantized(name: str, out: Path, data: str, how: dict[str, Any]) -> Artifact:
    """Trace a teacher and quantize it, and say how long that took."""
    config = TraceConfig(teacher=TeacherConfig(source=f"open_clip:{name}"))
    traced = run_stage(STAGES["trace"], config, {}, (), out / "traced")
    start = time.monotonic()
    fit = QuantizeGraphsConfig(data=DataConfig(train=data), max_drop=None, max_flips=None, **how)
    artifact = run_stage(STAGES["quantize-graphs"], fit, {"graphs": traced}, (), out / "quantized")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name}: quantized in {(time.monotonic() - start) / 60:.1f} minutes, peak {peak:.1f} GiB")
    return artifact


def raced(name: str, artifact: Artifact, out: Path, data: str) -> None:
    """Every candidate on every CPU runtime, against FP32 on the same one."""
    config = VerdictConfig(data=DataConfig(validation=data), samples=96)
    held, origin = held_out(artifact, config), origin_of(artifact)
    for backend in CPU_BACKENDS:

        def write(*arguments: object, folder: Path = out / backend) -> Contestant:
            return written(origin, folder, config, *arguments)  # type: ignore[arg-type]

        fp32 = float_contestants(write, backend)[0][0]
        tried = [
            one.contestant for one in tried_candidates(write, backend, origin.candidates(backend)) if one.contestant
        ]
        records = contest.timed_contestants([fp32, *tried], contest.TOWERS, 1, (6, 6), 0)
        reference = embedded(artifact, held, fp32)
        for one in tried:
            moved = contest.drift_between(reference, embedded(artifact, held, one), held.image_group)
            ratios = [contest.speedup(records, one, fp32, tower) for tower in contest.TOWERS]
            times = [1e3 * float(np.median(records[fp32, tower].calls)) for tower in contest.TOWERS]
            print(
                f"{name:16} {backend:12} {one.name:13} image {ratios[0].speedup:.2f} (FP32 {times[0]:.1f} ms) "
                f"text {ratios[1].speedup:.2f} (FP32 {times[1]:.1f} ms) p01 {moved.cosine_p01:.4f} "
                f"text p01 {moved.text_cosine_p01:.4f} flips {moved.flip_rate:.1%}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--rounding", default="auto")
    asked = parser.parse_args()
    how = {"samples": asked.samples, "method": asked.method, "rounding": asked.rounding}
    torch.manual_seed(0)
    for name in asked.names:
        out = asked.out / name.replace("/", "-")
        raced(name, quantized(name, out, asked.data, how), out, asked.data)


if __name__ == "__main__":
    main()
