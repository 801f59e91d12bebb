"""What does fine-tuning on one vendor's drawings bring, and what does it cost on the others?

    python benchmarks/finetune.py [STUDENT] [--seeds 3]      # what the demo's recipe distilled, runs/demo/distill

The vendor is the demo's test set, fluent3d, in which the student has seen nothing: eight tenths are learned, a tenth
chooses, a tenth is only measured. The others are noto and twemoji: a tenth of demo:train is what the choice holds
against, demo:val is only measured. Each seed is trained once, with `alpha = 1`; the interpolated model is made of its
ends by the stage's own functions (a test holds that the stage makes the same). Prints a table in Markdown, R@10 as the
mean of both ways, in percent.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev

import torch

from mmcompress.artifact import Artifact
from mmcompress.compress.train.interpolation import chosen, interpolate, line
from mmcompress.compress.train.judging import judge_of
from mmcompress.config import DataConfig
from mmcompress.huggingface import dual_encoder_from_checkpoint
from mmcompress.pipeline import standalone

VALIDATION, ORIGINAL = "part:1-1/10:demo:test", "part:0-0/10:demo:train"
MEASURED = {"vendor": "part:0-0/10:demo:test", "others": "demo:val"}
GIVEN = {
    "data.train": "part:2-9/10:demo:test",
    "data.validation": VALIDATION,
    "data.original": ORIGINAL,
    "by": "captions",
    "text": "keep",
    "augment": "drawing",
    "alpha": 1.0,
    "optimizer.batch": 64,
    "optimizer.epochs": 8,
    "optimizer.lr": 1e-3,
}
LIMITS = (0.01, 0.005)
Figures = dict[str, float]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("student", type=Path, nargs="?", default=Path("runs/demo/distill"))
    asked.add_argument("--seeds", type=int, default=3)
    options = asked.parse_args()
    begun = Artifact.open(options.student)
    model = dual_encoder_from_checkpoint(begun.path, begun.model)
    now = {name: p.detach() for name, p in model.named_parameters()}
    first = {name: tensor.clone() for name, tensor in now.items()}

    def judge(spec: str) -> Callable[[], float]:
        return judge_of(model, begun, DataConfig(), spec, None, 10_000, 64, torch.device("cpu"), text_kept=True).measure

    validation, original = judge(VALIDATION), judge(ORIGINAL)
    measured = {where: judge(spec) for where, spec in MEASURED.items()}
    start = {where: measure() for where, measure in measured.items()}
    print("| model | alpha | vendor R@10 | change | others R@10 | change |")
    print("|---|--:|--:|--:|--:|--:|")
    print(f"| start | 0 | {100 * start['vendor']:.1f} | | {100 * start['others']:.1f} | |", flush=True)
    found: dict[str, list[tuple[float, Figures]]] = {}
    with tempfile.TemporaryDirectory() as work:
        for seed in range(options.seeds):
            made = standalone.finetune(options.student, Path(work) / str(seed), {**GIVEN, "seed": seed})
            last = dict(dual_encoder_from_checkpoint(made.path, made.model).named_parameters())
            points = line(lambda alpha: interpolate(now, first, last, alpha), validation, original)  # noqa: B023
            ways = {"fine-tuned": 1.0, "interpolated": chosen(points).alpha}
            ways |= {f"--max-drop {limit}": chosen(points, limit).alpha for limit in LIMITS}
            for way, alpha in ways.items():
                interpolate(now, first, last, alpha)
                figures = {where: measure() for where, measure in measured.items()}
                found.setdefault(way, []).append((alpha, figures))
                print(row(f"{way}, seed {seed}", f"{alpha:g}", start, [figures]), flush=True)
    for way, some in found.items():
        alpha = f"{fmean(alpha for alpha, _ in some):.2f}"
        print(row(f"{way}, mean ± sd", alpha, start, [figures for _, figures in some]), flush=True)


def row(name: str, alpha: str, start: Figures, some: list[Figures]) -> str:
    cells = []
    for where in MEASURED:
        values = [100 * figures[where] for figures in some]
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        cells += [f"{fmean(values):.1f}{spread}", f"{fmean(values) - 100 * start[where]:+.1f}{spread}"]
    return f"| {name} | {alpha} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
