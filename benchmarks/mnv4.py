"""MobileNetV4 against ViT presets: trained for equal processor time, and how a training step likes its memory laid out.

    python benchmarks/mnv4.py layout [--threads 1]
    python benchmarks/mnv4.py train --work DIR [--students mnv4-s-64 vit-m8-64,image_size=48,depth=0.5] [--seeds 0 1]
                                             [--seconds 80 | --steps 146 87] [--data drawings photos]

`layout` times forward and backward passes of the towers in turn, contiguous (NCHW) against channels-last, and prints
the median of the ratios with its quartiles. `train` distils from scratch into the space of the teacher that ships, on
the demo's drawings or on photos: the same cached embeddings of four views, the teacher's text tower kept, batch 64, an
average of 0.99. A student is a preset, with sizes behind it or not. It has as many steps as take `--seconds` of the
processor, decoding included, by a run of 8 and one of 24 steps before. What is measured is said in `training.py`. Runs
are kept in DIR, and those there are not done again.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor
from training import DATA, SCORES, Runs, Scorer, model_of, prepared, steps_within

from mmcompress.artifact import Artifact
from mmcompress.compress.train.mobilenetv4 import mobilenetv4
from mmcompress.convtower import ConvTower, initialize_convolutions
from mmcompress.pipeline import standalone

RATES = {"mnv4": 2.4e-3, "vit": 1.2e-3}
TRAINED = {"optimizer.batch": 64, "optimizer.ema": 0.99, "text": "keep"}
LAYOUTS = (("conv-s", 64, 1, 64), ("conv-m", 224, 2, 8), ("hybrid-m", 224, 2, 8))
"""Tower, image side, stem stride, batch."""


class Contiguous(ConvTower):
    """The tower without the change of layout in front of it."""

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels)
        for block in self.blocks:
            x = block(x)
        return self.projection(self.head(x.mean((2, 3), keepdim=True)).flatten(1))


def step_seconds(tower: ConvTower, pixels: Tensor) -> float:
    began = time.process_time()
    tower(pixels).square().mean().backward()
    return time.process_time() - began


def layout(threads: int, rounds: int) -> None:
    torch.set_num_threads(threads)
    print(f"threads {threads}, torch {torch.__version__}, forward and backward, processor seconds")
    print("| tower | side | batch | contiguous s | channels-last s | contiguous / channels-last |")
    print("|---|--:|--:|--:|--:|--:|")
    for variant, side, stem_stride, batch in LAYOUTS:
        config = mobilenetv4(variant, side, stem_stride)
        towers = [kind(config, 256).train() for kind in (Contiguous, ConvTower)]
        initialize_convolutions(towers[0], torch.Generator().manual_seed(0))
        towers[1].load_state_dict(towers[0].state_dict())
        pixels = torch.randn(batch, 3, side, side)
        times: list[list[float]] = [[], []]
        for _ in range(rounds + 1):
            for kept, tower in zip(times, towers, strict=True):
                kept.append(step_seconds(tower, pixels))
        contiguous, last = (kept[1:] for kept in times)
        low, middle, high = statistics.quantiles([a / b for a, b in zip(contiguous, last, strict=True)], n=4)
        seconds = f"{statistics.median(contiguous):.2f} | {statistics.median(last):.2f}"
        print(f"| {variant} | {side} | {batch} | {seconds} | {middle:.2f} [{low:.2f}, {high:.2f}] |", flush=True)


def run(student: str, embeddings: Path, into: Path, steps: int, seed: int) -> tuple[Artifact, float]:
    """A student in a folder of its own, and the processor seconds it took."""
    preset, *sizes = student.split(",")
    rate = RATES[preset.partition("-")[0]]
    given = {**TRAINED, "student.source": preset, "optimizer.lr": rate, "seed": seed}
    given |= {f"student.{key}": float(value) for key, value in (one.split("=") for one in sizes)}
    out = into / f"{embeddings.name}-{student}-{steps}-{seed}"
    began = time.process_time()
    made = standalone.distill(out, {**given, "optimizer.steps": steps}, embeddings=embeddings)
    return made, time.process_time() - began


def train(work: Path, data: str, students: list[str], seeds: list[int], seconds: float, known: dict[str, int]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    teacher, embeddings = prepared(work, data, 4)
    runs = Runs(work / f"runs-{data}.jsonl", "student", "steps", "seed")
    scorer, place = Scorer(teacher, data), embeddings.path
    steps = known or {
        one: steps_within(seconds, lambda into, n, one=one: run(one, place, into, n, 0)[1]) for one in students
    }
    for seed in seeds:
        for student in students:
            if (student, steps[student], seed) not in runs:
                made, cpu = run(student, place, work, steps[student], seed)
                row = {"student": student, "steps": steps[student], "seed": seed, "cpu": cpu}
                runs.add({**row, "macs": made.model.macs, **scorer(model_of(made))})
    runs.table(SCORES)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("layout", "train"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--students", nargs="+", default=["mnv4-s-64", "vit-m8-64"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seconds", type=float, default=80.0)
    parser.add_argument("--data", nargs="+", choices=tuple(DATA), default=["drawings"])
    parser.add_argument("--steps", type=int, nargs="+", help="of each student, instead of what --seconds gives")
    asked = parser.parse_args()
    if asked.what == "layout":
        layout(asked.threads, asked.rounds)
    elif asked.work is None:
        parser.error("train keeps its runs in --work DIR")
    else:
        known = dict(zip(asked.students, asked.steps, strict=True)) if asked.steps else {}
        for data in asked.data:
            train(asked.work, data, asked.students, asked.seeds, asked.seconds, known)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
