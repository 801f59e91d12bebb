"""What does fine-tuning on one vendor's drawings bring, and what does it cost on the others?

    python benchmarks/finetune.py STUDENT [--seeds 3]      # STUDENT: a checkpoint that the demo's recipe distilled

The vendor is the demo's test set, fluent3d, in which the student has seen nothing: eight tenths are learned, a tenth
chooses, a tenth is only measured. The others are noto and twemoji: demo:train is what the choice holds against
(`--original`), demo:val is only measured. Prints a table in Markdown, R@10 as the mean of both ways, in percent.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev

import torch

from mmcompress.artifact import Artifact
from mmcompress.compress.train.judging import judge_of
from mmcompress.config import DataConfig
from mmcompress.huggingface import dual_encoder_from_checkpoint
from mmcompress.pipeline import standalone

VENDOR = {"data.train": "part:2-9/10:demo:test", "data.validation": "part:1-1/10:demo:test"}
MEASURED = {"vendor": "part:0-0/10:demo:test", "others": "demo:val"}
GIVEN = {
    **VENDOR,
    "data.original": "part:0-1/10:demo:train",
    "by": "captions",
    "text": "keep",
    "augment": "drawing",
    "optimizer.batch": 64,
    "optimizer.epochs": 8,
    "optimizer.lr": 1e-3,
}
WAYS: Mapping[str, float | None] = {"fine-tuned, all of it": 1.0, "interpolated": None}


def figures(checkpoint: Artifact) -> dict[str, float]:
    """R@10 on what nothing was learned from or chosen by."""
    model = dual_encoder_from_checkpoint(checkpoint.path, checkpoint.model)
    cpu = torch.device("cpu")
    return {
        where: judge_of(model, checkpoint, DataConfig(), spec, None, 10_000, 64, cpu).measure()
        for where, spec in MEASURED.items()
    }


def shown(values: list[float]) -> str:
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{spread}"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("student", type=Path)
    asked.add_argument("--seeds", type=int, default=3)
    options = asked.parse_args()
    start = figures(Artifact.open(options.student))
    print("| model | alpha | vendor R@10 | change | others R@10 | change |")
    print("|---|--:|--:|--:|--:|--:|")
    print(f"| start | 0 | {100 * start['vendor']:.1f} | | {100 * start['others']:.1f} | |", flush=True)
    found: dict[str, list[tuple[float, dict[str, float]]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as work:
        for seed in range(options.seeds):
            for way, alpha in WAYS.items():
                place = Path(work) / f"{seed}-{math.isfinite(alpha or math.nan)}"
                made = standalone.finetune(options.student, place, {**GIVEN, "seed": seed, "alpha": alpha})
                taken = made.manifest.metrics["interpolation"]["alpha"]
                found[way].append((taken, figures(made)))
                one = found[way][-1][1]
                shares = " | ".join(
                    f"{100 * one[where]:.1f} | {100 * (one[where] - start[where]):+.1f}" for where in MEASURED
                )
                print(f"| {way}, seed {seed} | {taken:g} | {shares} |", flush=True)
    for way, some in found.items():
        cells = []
        for where in MEASURED:
            values = [one[where] for _, one in some]
            cells.append(f"{shown(values)} | {shown([value - start[where] for value in values])}")
        alphas = f"{fmean(taken for taken, _ in some):.2f}"
        print(f"| {way}, mean ± sd | {alphas} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
