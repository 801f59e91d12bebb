"""Images without captions: a student that is placed among one's own sentences, among those that ship, or by captions.

    python benchmarks/sentences.py [--among captions shipped names] [--seeds 0 1 2] [--steps 300] [--work DIR]

The demo's drawings as a folder of images, and as they are for `captions`; four views, one start (the teacher that
ships, pruned to a quarter of its MACs and not trained), the teacher's text tower kept. `names` are the demo's 1,852, of
which no image has one here. R@10, agreement and flips as in `objectives.py`, on validation drawings and on eight drawn
views of each. With `--work` runs are kept, and a table of all that are there is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from objectives import TEACHER, TRAINED, DrawnScorer, _lines, model_of, opened, prepared

from mmcompress.artifact import Artifact
from mmcompress.data.batches import read
from mmcompress.pipeline import standalone

AMONG = ("captions", "shipped", "names")


def embedded(work: Path, among: str) -> Artifact:
    """Four views of the drawings as a folder of images, and the sentences that they are placed among."""
    photos = work / "photos"
    if not photos.is_dir():
        (work / "photos.new").mkdir(exist_ok=True)
        for number, sample in enumerate(read("demo:train")):
            (work / "photos.new" / f"{number:05d}.png").write_bytes(sample.image)
        (work / "photos.new").rename(photos)
    given = {"teacher.source": TEACHER, "data.train": str(photos), "views": 4, "augment": "drawing"}
    given |= {"sentences": "demo:names"} if among == "names" else {}
    return opened(work / f"photos-{among}", lambda path: standalone.embed(path, given))


def table(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    print("\n| among | R@10 | by seed | agrees | flips | by seed | R@10, drawn | flips, drawn | by seed |")
    print("|---|--:|---|--:|--:|---|--:|--:|---|")
    for among in AMONG:
        found = sorted((row for row in rows if row["among"] == among), key=lambda row: row["seed"])
        if not found:
            continue
        mean = {key: 100 * statistics.mean(row[key] for row in found) for key in found[0] if key != "among"}
        seeds = {key: " ".join(f"{100 * row[key]:.1f}" for row in found) for key in ("r10", "flips", "drawn flips")}
        print(
            f"| {among} | {mean['r10']:.1f} | {seeds['r10']} | {mean['agrees']:.1f} | {mean['flips']:.1f} |"
            f" {seeds['flips']} | {mean['drawn r10']:.1f} | {mean['drawn flips']:.1f} | {seeds['drawn flips']} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--among", nargs="+", choices=AMONG, default=list(AMONG))
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
        scorer, results = DrawnScorer(teacher, "drawings"), work / f"sentences-{asked.steps}.jsonl"
        done = {(row["among"], row["seed"]) for row in map(json.loads, _lines(results))}
        for seed in asked.seeds:
            for among in asked.among:
                if (among, seed) in done:
                    continue
                cached = embeddings if among == "captions" else embedded(work, among)
                given = {**TRAINED, "text": "keep", "optimizer.steps": asked.steps, "seed": seed}
                with tempfile.TemporaryDirectory(dir=work) as folder:
                    made = standalone.distill(
                        Path(folder) / "student", given, embeddings=cached.path, checkpoint=start.path
                    )
                    row = {"among": among, "seed": seed, **scorer.both(model_of(made))}
                with results.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
                print(row, flush=True)
        table(results)


if __name__ == "__main__":
    main()
