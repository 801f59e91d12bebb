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
import tempfile
import time
from pathlib import Path

from training import DATA, DRAWN_SCORES, MEAN, TEACHER, TRAINED, DrawnScorer, Runs, model_of, opened, prepared, pruned

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
        start = pruned(work, teacher, embeddings)
        scorer, runs = (
            DrawnScorer(teacher, "drawings"),
            Runs(work / f"views-{asked.steps}.jsonl", "part", "views", "seed"),
        )
        for seed in asked.seeds:
            for part in asked.parts:
                for views in asked.views:
                    if (part, views, seed) in runs:
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
                    runs.add({**row, "images": len(load_embeddings(cached))})
        runs.table([("images", "images", MEAN), ("CPU-s a run", "cpu", MEAN), *DRAWN_SCORES])


if __name__ == "__main__":
    main()
