"""Calibrations that outlive their run: ranges given to another checkpoint, and two calibrations side by side.

Ranges belong to a model with certain blocks and to a strength of SmoothQuant, which is folded into its LayerNorms. So
they are given to a checkpoint as it is, a quantized one that is rounded anew or one that was trained on a little, and
are refused where the gains of its LayerNorms are others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors import safe_open

from mmcompress.architecture import WEIGHTS, DualEncoderConfig
from mmcompress.artifact import Artifact
from mmcompress.compress.int8.comparison import CalibrationComparison, RangePair
from mmcompress.errors import UsageError, suggestion
from mmcompress.int8 import Range, attention_operands, linear_modules, read_ranges
from mmcompress.manifest import Kind

SAME = 0.1
"""Median difference of a LayerNorm's gains, as a share, from which on it is another one."""


def given_ranges(given: Artifact, checkpoint: Artifact) -> dict[str, Range]:
    """The ranges of a quantized checkpoint, for another one with the same blocks."""
    ranges = check_same_blocks(given, checkpoint.model)
    _check_gains(given, checkpoint)
    return ranges


def check_keep(model: DualEncoderConfig, names: Iterable[str]) -> None:
    """Raise UsageError for a name of no Linear that is quantized in a model."""
    known = linear_modules(model)
    for name in names:
        if name not in known:
            raise UsageError(f"quantize.keep: there is no Linear {name!r} in this model", suggestion(name, known))


def check_same_blocks(given: Artifact, model: DualEncoderConfig) -> dict[str, Range]:
    """The ranges of a quantized checkpoint. Raises UsageError unless they are of what a model has."""
    ranges = read_ranges(given)
    wanted = {*linear_modules(model), *attention_operands(model)}
    for name in sorted(wanted ^ set(ranges)):
        if name in ranges:
            raise UsageError(
                f"{given.path} has a range of {name}, which this model has not",
                "give --ranges of a checkpoint with the same blocks",
            )
        if name in given.manifest.facts.get("kept", ()):
            raise UsageError(
                f"{given.path} has no range of {name}, since it stays in float there",
                "quantize that one without its budgets: --set max_drop=null --set max_flips=null",
            )
        raise UsageError(f"{given.path} has no range of {name}", "give --ranges of a checkpoint with the same blocks")
    return ranges


def _check_gains(given: Artifact, checkpoint: Artifact) -> None:
    with safe_open(given.file(WEIGHTS), "numpy") as a, safe_open(checkpoint.file(WEIGHTS), "numpy") as b:
        for name in (name for name in a.keys() if re.search(r"layer_norm\d\.weight$", name)):  # noqa: SIM118
            gains, own = a.get_tensor(name), b.get_tensor(name)
            if gains.shape != own.shape:
                raise UsageError(
                    f"{given.path} is {len(gains)} channels wide at {name}, and {checkpoint.path} {len(own)}",
                    "give --ranges of a checkpoint with the same blocks",
                )
            moved = float(np.median(np.abs(own - gains) / (np.abs(gains) + 1e-6)))
            if moved > SAME:
                raise UsageError(
                    f"the ranges of {given.path} are of other activations: {name} differs from that of "
                    f"{checkpoint.path} by {moved:.0%}",
                    "SmoothQuant is folded into those weights: give ranges that were found with --set smooth=[], or "
                    f"quantize {given.path} itself again",
                )


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
