"""Objectives of distillation at equal processor time: ours and its terms, open_clip's, TinyCLIP's and CLIP-KD's.

    python benchmarks/objectives.py [--data drawings|photos] [--objectives ours CLIP-KD] [--seeds 0 1 2] [--steps 300]
                                    [--text keep|distill] [--views 4] [--work DIR]

One start (the teacher that ships, pruned to a quarter of its MACs and not trained), one set of cached embeddings of
some views, one order of samples a seed, one schedule. The steps of an objective are those that take the processor
seconds of `--steps` of ours, timed on one batch side by side before the first run. What others distil with is written
as weights of our terms; CLIP-KD's 2,000 times the mean squared error is 4,000 / D times our cosine distance. The demo's
drawings are judged among all names. The photos are Flickr8k's of the development data, for which no teacher ships, so
there the teacher's answers are the truth that counts.

R@10 is on validation images, image to text. `agrees`: the teacher's best text is among the student's ten best; `flips`:
it is not the best. With `--work` runs are kept, and a table of all that are there is printed: do some at a time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from training import DATA, MEAN, PHOTOS, SCORES, TRAINED, Runs, Scorer, model_of, prepared, pruned

from mmcompress.artifact import Artifact
from mmcompress.compress.train.embeddings import load_embeddings
from mmcompress.compress.train.objective import batch_terms, distillation_terms
from mmcompress.pipeline import standalone

DIM = 256
NONE = {"cosine": 0.0, "relational": 0.0, "affinity": 0.0}
OBJECTIVES: Mapping[str, Mapping[str, float]] = {
    "ours": {"cosine": 16.0, "relational": 1.0, "affinity": 1.0},
    "ours + interactive": {"cosine": 16.0, "relational": 1.0, "affinity": 1.0, "interactive": 1.0},
    "ours, relations at 0.02": {"cosine": 16.0, "relational": 1.0, "affinity": 1.0, "temperature": 0.02},
    "ours, 4 relations at 0.02": {"cosine": 16.0, "relational": 4.0, "affinity": 1.0, "temperature": 0.02},
    "cosine": {**NONE, "cosine": 1.0},
    "relational": {**NONE, "relational": 1.0},
    "cosine + relational": {**NONE, "cosine": 1.0, "relational": 1.0},
    "cosine + relational + interactive": {**NONE, "cosine": 1.0, "relational": 1.0, "interactive": 1.0},
    "4 cosine + relational": {**NONE, "cosine": 4.0, "relational": 1.0},
    "4 cosine + relational + interactive": {**NONE, "cosine": 4.0, "relational": 1.0, "interactive": 1.0},
    "open_clip": {**NONE, "contrastive": 1.0, "affinity": 1.0},
    "TinyCLIP": {**NONE, "affinity": 1.0},
    "CLIP-KD": {**NONE, "cosine": 4000 / DIM, "contrastive": 1.0, "affinity": 1.0, "interactive": 1.0},
}


def step_seconds(
    start: Artifact, embeddings: Artifact, text: str, names: Iterable[str], rounds: int = 12
) -> dict[str, float]:
    """Processor seconds of a step of some objectives, without decoding, by the median of interleaved rounds."""
    model, cached = model_of(start).train(), load_embeddings(embeddings)
    size, batch = start.model.image.image_size, int(TRAINED["optimizer.batch"])
    pixels = torch.randn(batch, 3, size, size)
    tokens = torch.randint(2, 100, (batch, 16))
    tokens[:, -1] = start.model.text.eos_token_id
    anchors, same = cached.anchors(4096, torch.device("cpu")), torch.eye(batch, dtype=torch.bool)
    teacher = anchors[0][:batch], anchors[1][:batch]
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def one(weights: Mapping[str, float]) -> float:
        began = time.process_time()
        texts = teacher[1] if text == "keep" else model.encode_text(tokens)
        student: tuple[Tensor, Tensor] = model.encode_image(pixels), texts
        terms = distillation_terms(student, teacher, anchors, weights["cosine"], weights["relational"])
        contrastive, matched, interactive = [
            weights.get(name, 0.0) for name in ("contrastive", "affinity", "interactive")
        ]
        terms |= batch_terms(student, teacher, same, model.logit_scale, 50.0, contrastive, matched, interactive)
        optimizer.zero_grad()
        torch.stack([*terms.values()]).sum().backward()
        optimizer.step()
        return time.process_time() - began

    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, found in times.items():
            found.append(one(OBJECTIVES[name]))
    return {name: statistics.median(found[2:]) for name, found in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=tuple(DATA), default="drawings")
    parser.add_argument("--objectives", nargs="+", choices=tuple(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--text", choices=("keep", "distill"), default="keep")
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--work", type=Path)
    asked = parser.parse_args()
    if asked.data == "photos" and not PHOTOS.is_dir():
        print(f"skipped: the development data is not at {PHOTOS}")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        work: Path = asked.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        teacher, embeddings = prepared(work, asked.data, asked.views)
        scorer = Scorer(teacher, asked.data)
        towers = ["image"] if asked.text == "keep" else ["image", "text"]
        cut = {"target_macs": asked.share, "towers": towers}
        start = pruned(work, teacher, embeddings, f"{asked.data}-{asked.share}-{asked.text}", **cut)
        scores = [" ".join(f"{k} {100 * v:.1f}" for k, v in scorer(model_of(one)).items()) for one in (teacher, start)]
        print(f"teacher: {scores[0]}\nstart: {scores[1]}", flush=True)
        seconds = step_seconds(start, embeddings, asked.text, {"ours": None, **dict.fromkeys(asked.objectives)})
        runs = Runs(work / f"{asked.data}-{asked.text}-{asked.steps}.jsonl", "objective", "seed")
        for seed in asked.seeds:
            for name in asked.objectives:
                if (name, seed) in runs:
                    continue
                steps = round(asked.steps * seconds["ours"] / seconds[name])
                given = {**TRAINED, **OBJECTIVES[name], "text": asked.text, "optimizer.steps": steps, "seed": seed}
                with tempfile.TemporaryDirectory(dir=work) as folder:
                    began = time.process_time()
                    made = standalone.distill(
                        Path(folder) / "student", given, embeddings=embeddings.path, checkpoint=start.path
                    )
                    row = {"objective": name, "seed": seed, "steps": steps, "cpu": time.process_time() - began}
                    runs.add(row | scorer(model_of(made)))
        runs.table([("steps", "steps", MEAN), *SCORES])
    return 0


if __name__ == "__main__":
    sys.exit(main())
