"""Images that grow while a student is trained, against whole images, at equal processor time.

    python benchmarks/growing.py [--data drawings|photos] [--growing 0 0.5 0.8] [--seeds 0 1 2] [--steps 300]
                                 [--work DIR]

The demo's student, evenly spaced blocks of the teacher that ships, learns from cached embeddings of four views. A share
`growing` of the steps sees images that grow from half of their side (`compress/train/growing.py`). Steps are those that
take the processor seconds of `--steps` on whole images, by the median time of a step at each side. R@10, agreement and
flips are as in `objectives.py`, on validation images. With `--work` runs are kept, and a table of all there is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from objectives import DATA, PHOTOS, TEACHER, TRAINED, Scorer, _lines, model_of, prepared

from mmcompress.artifact import Artifact
from mmcompress.compress.products import fast_products
from mmcompress.compress.train.growing import grown, sides
from mmcompress.pipeline import standalone

STUDENT = "inherit:0.25"


def side_seconds(checkpoint: Artifact, rounds: int = 8) -> dict[int, float]:
    """Processor seconds of a step of the image tower at each side, interleaved."""
    model, batch = model_of(checkpoint).train(), int(TRAINED["optimizer.batch"])
    optimizer = torch.optim.AdamW(model.image.parameters(), fused=True)
    times: dict[int, list[float]] = {side: [] for side in sides(checkpoint.model.image)}
    for _ in range(rounds):
        for side, found in times.items():
            pixels = torch.randn(batch, 3, side, side)
            began = time.process_time()
            with fast_products():
                model.encode_image(pixels).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(time.process_time() - began)
    return {side: statistics.median(found[2:]) for side, found in times.items()}


def equal_steps(checkpoint: Artifact, seconds: dict[int, float], growing: float, steps: int) -> int:
    """Steps that cost as much as so many on whole images."""
    config = checkpoint.model.image
    whole = torch.zeros(1, 3, config.image_size, config.image_size)
    shown = [seconds[grown(whole, config, place / 1000, growing).shape[-1]] for place in range(1000)]
    return round(steps * seconds[config.image_size] / statistics.mean(shown))


def table(path: Path, data: str) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    print(f"\n{data}, validation; teacher {rows[0]['teacher']}\n")
    print("| growing | seeds | steps | CPU-s a run | R@10 | by seed | agrees | flips | by seed |")
    print("|--:|--:|--:|--:|--:|---|--:|--:|---|")
    for growing in sorted({row["growing"] for row in rows}):
        found = sorted((row for row in rows if row["growing"] == growing), key=lambda row: row["seed"])
        mean = {key: statistics.mean(row[key] for row in found) for key in ("steps", "cpu", "r10", "agrees", "flips")}
        seeds = {key: " ".join(f"{100 * row[key]:.1f}" for row in found) for key in ("r10", "flips")}
        print(
            f"| {growing} | {len(found)} | {mean['steps']:.0f} | {mean['cpu']:.0f} | {100 * mean['r10']:.1f} |"
            f" {seeds['r10']} | {100 * mean['agrees']:.1f} | {100 * mean['flips']:.1f} | {seeds['flips']} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=tuple(DATA), default="drawings")
    parser.add_argument("--growing", type=float, nargs="+", default=[0.0, 0.5, 0.8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--work", type=Path)
    asked = parser.parse_args()
    if asked.data == "photos" and not PHOTOS.is_dir():
        print(f"skipped: the development data is not at {PHOTOS}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        work: Path = asked.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        teacher, embeddings = prepared(work, asked.data, 4)
        scorer = Scorer(teacher, asked.data)
        told = " ".join(f"{name} {100 * value:.1f}" for name, value in scorer(model_of(teacher)).items())
        results = work / f"growing-{asked.data}-{asked.steps}.jsonl"
        done = {(row["growing"], row["seed"]) for row in map(json.loads, _lines(results))}
        base = {**TRAINED, "teacher.source": TEACHER, "student.source": STUDENT, "text": "keep"}
        with tempfile.TemporaryDirectory(dir=work) as folder:
            given = {**base, "optimizer.steps": 1}
            seconds = side_seconds(standalone.distill(Path(folder) / "one", given, embeddings=embeddings.path))
        for seed in asked.seeds:
            for growing in asked.growing:
                if (growing, seed) in done:
                    continue
                with tempfile.TemporaryDirectory(dir=work) as folder:
                    steps = equal_steps(teacher, seconds, growing, asked.steps)
                    given = {**base, "optimizer.steps": steps, "seed": seed, "growing": growing}
                    began = time.process_time()
                    made = standalone.distill(Path(folder) / "student", given, embeddings=embeddings.path)
                    row = {"growing": growing, "seed": seed, "steps": steps, "cpu": time.process_time() - began}
                    row |= {"teacher": told, **scorer(model_of(made))}
                with results.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
                print(row, flush=True)
        table(results, asked.data)


if __name__ == "__main__":
    main()
