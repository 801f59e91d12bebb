"""Images and towers that grow while a model is trained, against whole ones, at equal processor time.

    python benchmarks/growing.py [--stage distill|train] [--data drawings|photos] [--seeds 0 1 2] [--steps 300]
                                 [--growing 0 0.5 0.8] [--deepening 0 0.5] [--student inherit:0.25] [--work DIR]

A student learns from cached embeddings of four views of the teacher that ships: `distill` by default the demo's, evenly
spaced blocks of the teacher with its text tower kept, `train` by default a preset from random weights, both towers. A
share `growing` of the steps sees images that grow from half of their side, a share `deepening` passes through every
second block (`compress/train/growing.py`, `deepening.py`). Steps are those that take the processor seconds of `--steps`
of whole ones, by the median time of a step of each kind. R@10, agreement and flips are as in `objectives.py`, on
validation images. With `--work` runs are kept, and a table of all there is printed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch
from training import DATA, MEAN, PHOTOS, SCORES, TEACHER, TRAINED, Runs, Scorer, model_of, prepared

from mmcompress.artifact import Artifact
from mmcompress.compress.products import fast_products
from mmcompress.compress.train.deepening import deepen
from mmcompress.compress.train.growing import grown, sides
from mmcompress.pipeline.single import run_single

STUDENTS = {"distill": "inherit:0.25", "train": "vit-t8-64"}
Shown = tuple[int, int]
"""Side of the images, and which blocks are passed: all, or every second one."""


def step_seconds(checkpoint: Artifact, texts: bool, rounds: int = 8) -> dict[Shown, float]:
    """Processor seconds of a step at each side and depth, interleaved."""
    model, batch = model_of(checkpoint).train(), int(TRAINED["optimizer.batch"])
    model.text.requires_grad_(texts)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.full((batch, checkpoint.model.text.context), checkpoint.model.text.eos_token_id)
    times: dict[Shown, list[float]] = {(side, n): [] for side in sides(checkpoint.model.image) for n in (1, 2)}
    for _ in range(rounds):
        for (side, every), found in times.items():
            pixels = torch.randn(batch, 3, side, side)
            deepen(model, 0.0, float(every == 2))
            began = time.process_time()
            with fast_products():
                loss = model.encode_image(pixels).sum()
                (loss + model.encode_text(tokens).sum() if texts else loss).backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(time.process_time() - began)
    return {shown: statistics.median(found[2:]) for shown, found in times.items()}


def equal_steps(checkpoint: Artifact, seconds: dict[Shown, float], growing: float, deepening: float, steps: int) -> int:
    """Steps that cost as much as so many of whole towers on whole images."""
    config = checkpoint.model.image
    whole = torch.zeros(1, 3, config.image_size, config.image_size)
    shown = [
        seconds[grown(whole, config, place / 1000, growing).shape[-1], 2 if place / 1000 < deepening else 1]
        for place in range(1000)
    ]
    return round(steps * seconds[config.image_size, 1] / statistics.mean(shown))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=tuple(STUDENTS), default="distill")
    parser.add_argument("--student")
    parser.add_argument("--data", choices=tuple(DATA), default="drawings")
    parser.add_argument("--growing", type=float, nargs="+", default=[0.0, 0.5, 0.8])
    parser.add_argument("--deepening", type=float, nargs="+", default=[0.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--work", type=Path)
    asked = parser.parse_args()
    if asked.data == "photos" and not PHOTOS.is_dir():
        print(f"skipped: the development data is not at {PHOTOS}")
        return
    student = asked.student or STUDENTS[asked.stage]
    with tempfile.TemporaryDirectory() as temporary:
        work: Path = asked.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        teacher, embeddings = prepared(work, asked.data, 4)
        scorer = Scorer(teacher, asked.data)
        print(f"teacher {scorer(model_of(teacher))}", flush=True)
        name = f"growing-{asked.stage}-{student.replace(':', '-')}-{asked.data}-{asked.steps}.jsonl"
        runs = Runs(work / name, "growing", "deepening", "seed")
        base = {**TRAINED, "student.source": student, "data.train": DATA[asked.data][0]}
        if asked.stage == "train":
            base |= {"student.tokenizer": TEACHER}
        else:
            base |= {"teacher.source": TEACHER, "text": "keep"}

        def made(out: Path, **given: float) -> Artifact:
            named = {f"optimizer.{key}" if key == "steps" else key: value for key, value in given.items()}
            return run_single(asked.stage, {}, {**base, **named}, {"embeddings": embeddings}, out)

        with tempfile.TemporaryDirectory(dir=work) as folder:
            seconds = step_seconds(made(Path(folder) / "one", steps=1), asked.stage == "train")
        print({f"{side} px, every {every}": round(found, 3) for (side, every), found in seconds.items()}, flush=True)
        for seed, growing, deepening in itertools.product(asked.seeds, asked.growing, asked.deepening):
            if (growing, deepening, seed) in runs:
                continue
            with tempfile.TemporaryDirectory(dir=work) as folder:
                steps = equal_steps(teacher, seconds, growing, deepening, asked.steps)
                began = time.process_time()
                out = Path(folder) / "student"
                model = made(out, steps=steps, seed=seed, growing=growing, deepening=deepening)
                row = {"growing": growing, "deepening": deepening, "seed": seed, "steps": steps}
                row |= {"cpu": time.process_time() - began, **scorer(model_of(model))}
            runs.add(row)
        runs.table([("steps", "steps", MEAN), *SCORES])


if __name__ == "__main__":
    main()
