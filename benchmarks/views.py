"""How many cached views of an image a student should learn from, at equal steps, by the size of the data.

    python benchmarks/views.py [--data drawings|photos] [--views 1 4 8] [--parts 1 4] [--seeds 0 1 2] [--steps 300]
                               [--work DIR]

One start (the teacher that ships, pruned to a quarter of its MACs and not trained), the teacher's text tower kept, the
demo's drawings, or photos of the development data, or every Nth of them (`--parts`), embedded in so many views, of
which the first is the plain image. Steps are the same for all, so that small data is passed more often. R@10, agreement
and flips are as in `objectives.py`, on validation images as they are, and `drawn` on eight views of each drawing, of
which no training has seen any. With `--work` runs are kept, and a table of all that are there is printed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from training import (
    DATA,
    DRAWN_SCORES,
    MEAN,
    PHOTOS,
    SCORES,
    TEACHER,
    TRAINED,
    DrawnScorer,
    Runs,
    Scorer,
    model_of,
    opened,
    prepared,
    pruned,
)

from mmcompress.artifact import Artifact
from mmcompress.compress.train.embeddings import load_embeddings
from mmcompress.pipeline import standalone


def embedded(work: Path, data: str, part: int, views: int) -> Artifact:
    """So many views of one of `part` parts of a set."""
    train, _, augment = DATA[data]
    given = {
        "teacher.source": TEACHER,
        "data.train": train if part == 1 else f"part:0-0/{part}:{train}",
        "views": views,
        "augment": augment if views > 1 else "none",
    }
    return opened(work / f"views-{data}-{part}-{views}", lambda path: standalone.embed(path, given))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=tuple(DATA), default="drawings")
    parser.add_argument("--views", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 4])
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
        teacher, embeddings = prepared(work, "drawings", 4)
        start = pruned(work, teacher, embeddings)
        drawings = asked.data == "drawings"
        score = DrawnScorer(teacher, asked.data).both if drawings else Scorer(teacher, asked.data)
        runs = Runs(work / f"views-{asked.data}-{asked.steps}.jsonl", "part", "views", "seed")
        for seed in asked.seeds:
            for part in asked.parts:
                for views in asked.views:
                    if (part, views, seed) in runs:
                        continue
                    known = drawings and (part, views) == (1, 4)
                    cached = embeddings if known else embedded(work, asked.data, part, views)
                    told = {**TRAINED, "text": "keep", "optimizer.steps": asked.steps, "seed": seed}
                    with tempfile.TemporaryDirectory(dir=work) as folder:
                        began = time.process_time()
                        made = standalone.distill(
                            Path(folder) / "student", told, embeddings=cached.path, checkpoint=start.path
                        )
                        cpu = time.process_time() - began
                        row = {"part": part, "views": views, "seed": seed, "cpu": cpu, **score(model_of(made))}
                    runs.add({**row, "images": len(load_embeddings(cached))})
        shown = [("CPU-s a run", "cpu", MEAN), *DRAWN_SCORES] if drawings else SCORES
        runs.table([("images", "images", MEAN), *shown])


if __name__ == "__main__":
    main()
