"""Two calibrations side by side, from the files that `quantize` wrote; without torch, as `compare` runs on devices."""

from __future__ import annotations

import math
from pathlib import Path

from mmcompress.artifact import Artifact
from mmcompress.compress.int8.comparison import CalibrationComparison, RangePair
from mmcompress.int8 import read_ranges
from mmcompress.manifest import Kind


def compare_calibrations(a: Path, b: Path) -> CalibrationComparison:
    """Every range of two quantized checkpoints, those that differ most first."""
    sides = [Artifact.open(path, Kind.CHECKPOINT) for path in (a, b)]
    ranges, methods = [read_ranges(side) for side in sides], [_methods(side) for side in sides]
    pairs = []
    for name in dict.fromkeys((*ranges[0], *ranges[1])):
        before, after = (side.get(name) for side in ranges)
        spans = [side["high"] - side["low"] if side else 0.0 for side in (before, after)]
        ratio = spans[1] / spans[0] if all(spans) else None
        how = (methods[0].get(name), methods[1].get(name))
        pairs.append(RangePair(module=name, a=before, b=after, methods=how, ratio=ratio))
    pairs.sort(key=lambda pair: -math.inf if pair.ratio is None else -abs(math.log(pair.ratio)))
    drifts = [side.manifest.metrics.get("calibration", {}).get("drift") for side in sides]
    return CalibrationComparison(a=str(a), b=str(b), ranges=tuple(pairs), drift=(drifts[0], drifts[1]))


def _methods(quantized: Artifact) -> dict[str, str]:
    """How each Linear's range was found, as far as the run says it."""
    choices = quantized.manifest.facts.get("choices", {})
    return {name: method for tower in choices.values() for name, method in tower.get("ranges", {}).items()}
