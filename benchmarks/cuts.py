"""One cut to a quarter of the MACs against two with training between, at equal processor time.

    python benchmarks/cuts.py --work DIR [--seeds 0 1 2] [--steps 300] [--between 0.33]

The teacher that ships is pruned to a quarter of its MACs and trained for `--steps`; or it is pruned to a half, trained,
pruned to a half of that and trained again, with the same data, objective and embeddings as in `objectives.py`. A share
`--between` of the processor seconds is spent between the cuts, by the median time of a step of each size; cutting
itself is in the seconds that are printed. R@10, agreement and flips are on validation drawings. Runs are kept in DIR.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from objectives import OBJECTIVES, step_seconds
from training import MEAN, SCORES, TRAINED, Runs, Scorer, model_of, opened, prepared

from mmcompress.artifact import Artifact
from mmcompress.pipeline import standalone

OURS = "ours"


def trained(out: Path, embeddings: Artifact, start: Artifact, steps: int, seed: int) -> Artifact:
    given = {**TRAINED, **OBJECTIVES[OURS], "text": "keep", "optimizer.steps": steps, "seed": seed, "growing": 0.0}
    return standalone.distill(out, given, embeddings=embeddings.path, checkpoint=start.path)


def cut(out: Path, embeddings: Artifact, source: Artifact, share: float) -> Artifact:
    asked = {"target_macs": share, "towers": ["image"]}
    return standalone.prune(source.path, out, asked, embeddings=embeddings.path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--between", type=float, default=0.33)
    parser.add_argument("--work", type=Path, required=True)
    asked = parser.parse_args()
    work: Path = asked.work
    work.mkdir(parents=True, exist_ok=True)
    teacher, embeddings = prepared(work, "drawings", 4)
    scorer = Scorer(teacher, "drawings")
    began = time.process_time()
    quarter = opened(work / "quarter", lambda path: cut(path, embeddings, teacher, 0.25))
    half = opened(work / "half", lambda path: cut(path, embeddings, teacher, 0.5))
    cuts = (time.process_time() - began) / 2
    small, large = (step_seconds(start, embeddings, "keep", [OURS])[OURS] for start in (quarter, half))
    whole = asked.steps * small
    first, second = round(asked.between * whole / large), round((1 - asked.between) * whole / small)
    print(f"a step: {small:.3f} CPU-s at a quarter, {large:.3f} at a half; a cut about {cuts:.0f}", flush=True)
    runs = Runs(work / f"cuts-{asked.steps}-{asked.between}.jsonl", "way", "seed")
    for seed in asked.seeds:
        for way in ("one", "two"):
            if (way, seed) in runs:
                continue
            with tempfile.TemporaryDirectory(dir=work) as folder:
                place, began = Path(folder), time.process_time()
                if way == "one":
                    made = trained(place / "student", embeddings, quarter, asked.steps, seed)
                    steps = str(asked.steps)
                else:
                    between = trained(place / "between", embeddings, half, first, seed)
                    again = cut(place / "again", embeddings, between, 0.5)
                    made = trained(place / "student", embeddings, again, second, seed)
                    steps = f"{first} and {second}"
                row = {"way": way, "seed": seed, "steps": steps, "cpu": time.process_time() - began}
                row |= {"macs": made.model.macs, **scorer(model_of(made))}
            runs.add(row)
    runs.table([("steps", "steps", MEAN), *SCORES])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
