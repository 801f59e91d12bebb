"""How many cached views of an image a student should learn from, at equal steps, by the size of the data.

    python benchmarks/views.py [--views 1 4 8] [--parts 1 4] [--seeds 0 1 2] [--steps 300] [--work DIR]

One start (the teacher that ships, pruned to a quarter of its MACs and not trained), the teacher's text tower kept, the
demo's drawings or every Nth of them (`--parts`), embedded in so many views, of which the first is the plain drawing.
Steps are the same for all, so that small data is passed more often. R@10, agreement and flips are as in
`objectives.py`, on the 104 validation drawings as they are, and `drawn` on eight views of each, of which no training
has seen any. With `--work` runs are kept, and a table of all that are there is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from objectives import DATA, TEACHER, TRAINED, DrawnScorer, _lines, model_of, opened, prepared

from mmcompress.artifact import Artifact
from mmcompress.compress.train.embeddings import load_embeddings
from mmcompress.pipeline import standalone


def embedded(work: Path, part: int, views: int) -> Artifact:
    """So many views of one of `part` parts of the drawings."""
    train, _, augment = DATA["drawings"]
    given = {
        "teacher.source": TEACHER,
        "data.train": train if part == 1 else f"part:0-0/{part}:{train}",
        "views": views,
        "augment": augment if views > 1 else "none",
    }
    return opened(work / f"views-{part}-{views}", lambda path: standalone.embed(path, given))


def table(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    print(
        "\n| images | views | seeds | CPU-s a run | R@10 | by seed | flips | by seed | R@10, drawn | flips, drawn |"
        " by seed |"
    )
    print("|--:|--:|--:|--:|--:|---|--:|---|--:|--:|---|")
    for images, views in sorted({(row["images"], row["views"]) for row in rows}):
        found = [row for row in rows if (row["images"], row["views"]) == (images, views)]
        found.sort(key=lambda row: row["seed"])
        mean = {key: statistics.mean(row[key] for row in found) for key in found[0]}
        seeds = {key: " ".join(f"{100 * row[key]:.1f}" for row in found) for key in ("r10", "flips", "drawn flips")}
        print(
            f"| {images} | {views} | {len(found)} | {mean['cpu']:.0f} | {100 * mean['r10']:.1f} | {seeds['r10']} |"
            f" {100 * mean['flips']:.1f} | {seeds['flips']} | {100 * mean['drawn r10']:.1f} |"
            f" {100 * mean['drawn flips']:.1f} | {seeds['drawn flips']} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--work", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work: Path = asked.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        teacher, embeddings = prepared(work, "drawings", 4)
        cut = {"target_macs": 0.25, "towers": ["image"]}
        start = opened(
            work / "start-drawings-0.25-keep",
            lambda path: standalone.prune(teacher.path, path, cut, embeddings=embeddings.path),
        )
        scorer, results = DrawnScorer(teacher, "drawings"), work / f"views-{asked.steps}.jsonl"
        done = {(row["part"], row["views"], row["seed"]) for row in map(json.loads, _lines(results))}
        for seed in asked.seeds:
            for part in asked.parts:
                for views in asked.views:
                    if (part, views, seed) in done:
                        continue
                    cached = embeddings if (part, views) == (1, 4) else embedded(work, part, views)
                    told = {**TRAINED, "text": "keep", "optimizer.steps": asked.steps, "seed": seed}
                    with tempfile.TemporaryDirectory(dir=work) as folder:
                        began = time.process_time()
                        made = standalone.distill(
                            Path(folder) / "student", told, embeddings=cached.path, checkpoint=start.path
                        )
                        cpu = time.process_time() - began
                        row = {"part": part, "views": views, "seed": seed, "cpu": cpu, **scorer.both(model_of(made))}
                    row["images"] = len(load_embeddings(cached))
                    with results.open("a") as stream:
                        stream.write(json.dumps(row) + "\n")
                    print(row, flush=True)
        table(results)


if __name__ == "__main__":
    main()
