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
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmcompress.artifact import Artifact
from mmcompress.compress.train.augment import normalized, pixels_of_views
from mmcompress.compress.train.embeddings import load_embeddings
from mmcompress.compress.train.objective import batch_terms, distillation_terms
from mmcompress.data.batches import batches
from mmcompress.data.layout import read_labels
from mmcompress.huggingface import dual_encoder_from_checkpoint
from mmcompress.model import DualEncoder
from mmcompress.pipeline import standalone
from mmcompress.runtime.tokenize import load_tokenizer, tokenize

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k-160"
DATA = {
    "drawings": ("demo:train", "demo:val", "drawing"),
    "photos": (f"{PHOTOS}/train-{{00000..00005}}.tar", f"{PHOTOS}/val-00000.tar", "photo"),
}
TEACHER = "demo:teacher"
DIM = 256
TRAINED = {"optimizer.batch": 64, "optimizer.lr": 1.2e-3, "optimizer.ema": 0.99}
NONE = {"cosine": 0.0, "relational": 0.0, "affinity": 0.0}
OBJECTIVES: Mapping[str, Mapping[str, float]] = {
    "ours": {"cosine": 16.0, "relational": 1.0, "affinity": 1.0},
    "ours + interactive": {"cosine": 16.0, "relational": 1.0, "affinity": 1.0, "interactive": 1.0},
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


class Scorer:
    """Validation images and candidate texts, and what the teacher answers."""

    def __init__(self, checkpoint: Artifact, data: str) -> None:
        preprocessing, text = checkpoint.preprocessing, checkpoint.tokenizer
        assert preprocessing is not None and text is not None
        shown = list(batches(DATA[data][1], preprocessing, batch=64))
        self.pixels = [
            normalized(torch.from_numpy(b.pixels).permute(0, 3, 1, 2).float() / 255, preprocessing) for b in shown
        ]
        if data == "drawings":
            candidates = read_labels("demo:names")
            place = {name: index for index, name in enumerate(candidates)}
            self.owner = np.arange(len(candidates))
            self.images = np.array([place.get(label or "", -1) for b in shown for label in b.labels])
        else:
            captions = [own for b in shown for own in b.captions]
            candidates = [caption for own in captions for caption in own]
            self.owner = np.array([row for row, own in enumerate(captions) for _ in own])
            self.images = np.arange(len(captions))
        self.tokens = torch.from_numpy(tokenize(load_tokenizer(checkpoint.file(text.file)), candidates, text))
        self.asked = np.isin(self.images, self.owner)
        self.best = self._similarities(dual_encoder_from_checkpoint(checkpoint.path, checkpoint.model)).argmax(axis=1)

    @torch.no_grad()
    def _similarities(self, model: DualEncoder) -> np.ndarray:
        images = torch.cat([model.encode_image(part) for part in self.pixels])
        texts = torch.cat([model.encode_text(part) for part in self.tokens.split(256)])
        return (images @ texts.T).numpy()

    def __call__(self, model: DualEncoder) -> dict[str, float]:
        ten = np.argsort(-self._similarities(model), axis=1)[:, :10]
        found = (self.owner[ten] == self.images[:, None]).any(axis=1)
        return {
            "r10": float(found[self.asked].mean()),
            "agrees": float((ten == self.best[:, None]).any(axis=1).mean()),
            "flips": float((ten[:, 0] != self.best).mean()),
        }


class DrawnScorer(Scorer):
    """As `Scorer`, for a kept text tower, and the same figures on drawn views of every image, which are less noisy."""

    def __init__(self, checkpoint: Artifact, data: str, views: int = 8) -> None:
        super().__init__(checkpoint, data)
        preprocessing, teacher = checkpoint.preprocessing, model_of(checkpoint)
        assert preprocessing is not None
        with torch.no_grad():
            self.texts = torch.cat([teacher.encode_text(part) for part in self.tokens.split(256)])
        self.drawn = copy.copy(self)
        self.drawn.pixels, images = [], []
        first = 0
        for batch in batches(DATA[data][1], preprocessing, batch=64):
            rows = slice(first, first := first + len(batch.keys))
            for view in range(1, 1 + views):
                shown = np.full(len(batch.keys), view)
                drawn = pixels_of_views(batch, shown, 999, "drawing", torch.device("cpu"))
                self.drawn.pixels.append(normalized(drawn, preprocessing))
                images.append(self.images[rows])
        self.drawn.images = np.concatenate(images)
        self.drawn.asked = np.isin(self.drawn.images, self.owner)
        self.drawn.best = self.drawn._similarities(teacher).argmax(axis=1)

    @torch.no_grad()
    def _similarities(self, model: DualEncoder) -> np.ndarray:
        if not hasattr(self, "texts"):
            return super()._similarities(model)
        return (torch.cat([model.encode_image(part) for part in self.pixels]) @ self.texts.T).numpy()

    def both(self, model: DualEncoder) -> dict[str, float]:
        """The figures as drawings are, and behind `drawn` those of their views."""
        return self(model) | {f"drawn {name}": value for name, value in self.drawn(model).items()}


def opened(path: Path, make: Callable[[Path], Artifact]) -> Artifact:
    """The artifact that lies there, or one that is made."""
    return Artifact.open(path) if path.is_dir() else make(path)


def prepared(work: Path, data: str, views: int) -> tuple[Artifact, Artifact]:
    """The teacher as a checkpoint, and its embeddings of some views."""
    train, _, augment = DATA[data]
    teacher = opened(work / "teacher", lambda path: standalone.convert(TEACHER, path))
    given = {
        "teacher.source": TEACHER,
        "data.train": train,
        "views": views,
        "augment": augment if views > 1 else "none",
    }
    return teacher, opened(work / f"embeddings-{data}", lambda path: standalone.embed(path, given))


def model_of(artifact: Artifact) -> DualEncoder:
    return dual_encoder_from_checkpoint(artifact.path, artifact.model)


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
        pairs = [weights.get(name, 0.0) for name in ("contrastive", "affinity", "interactive")]
        terms |= batch_terms(student, teacher, same, model.logit_scale, 50.0, *pairs)
        optimizer.zero_grad()
        torch.stack([*terms.values()]).sum().backward()
        optimizer.step()
        return time.process_time() - began

    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, found in times.items():
            found.append(one(OBJECTIVES[name]))
    return {name: statistics.median(found[2:]) for name, found in times.items()}


def table(path: Path, data: str) -> None:
    """All runs that are there, the mean over seeds first."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    print(f"\n{data}, validation; {rows[0]['text']} text tower, {rows[0]['start']}")
    print("| objective | seeds | steps | CPU-s a run | R@10 | by seed | agrees | flips |")
    print("|---|--:|--:|--:|--:|---|--:|--:|")
    for name in OBJECTIVES:
        found = {row["seed"]: row for row in rows if row["objective"] == name}
        if not found:
            continue
        mean = {key: statistics.mean(row[key] for row in found.values()) for key in ("r10", "agrees", "flips", "cpu")}
        seeds = " ".join(f"{100 * found[seed]['r10']:.1f}" for seed in sorted(found))
        print(
            f"| {name} | {len(found)} | {found[min(found)]['steps']} | {mean['cpu']:.0f} | {100 * mean['r10']:.1f} |"
            f" {seeds} | {100 * mean['agrees']:.1f} | {100 * mean['flips']:.1f} |"
        )


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
        start = opened(
            work / f"start-{asked.data}-{asked.share}-{asked.text}",
            lambda path: standalone.prune(teacher.path, path, cut, embeddings=embeddings.path),
        )
        scores = [" ".join(f"{k} {100 * v:.1f}" for k, v in scorer(model_of(one)).items()) for one in (teacher, start)]
        print(f"teacher: {scores[0]}\nstart: {scores[1]}", flush=True)
        seconds = step_seconds(start, embeddings, asked.text, {"ours": None, **dict.fromkeys(asked.objectives)})
        results = work / f"{asked.data}-{asked.text}-{asked.steps}.jsonl"
        done = {(row["objective"], row["seed"]) for row in map(json.loads, _lines(results))}
        for seed in asked.seeds:
            for name in asked.objectives:
                if (name, seed) in done:
                    continue
                steps = round(asked.steps * seconds["ours"] / seconds[name])
                given = {**TRAINED, **OBJECTIVES[name], "text": asked.text, "optimizer.steps": steps, "seed": seed}
                with tempfile.TemporaryDirectory(dir=work) as folder:
                    began = time.process_time()
                    made = standalone.distill(
                        Path(folder) / "student", given, embeddings=embeddings.path, checkpoint=start.path
                    )
                    row = {"objective": name, "seed": seed, "steps": steps, "cpu": time.process_time() - began}
                    row |= {"text": asked.text, "start": f"start {scores[1]}; teacher {scores[0]}"}
                    row |= scorer(model_of(made))
                with results.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
                print(row, flush=True)
        table(results, asked.data)
    return 0


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


if __name__ == "__main__":
    sys.exit(main())
