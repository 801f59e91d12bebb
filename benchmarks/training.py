"""What benchmarks of training share: the teacher and its embeddings, a start to train, scorers, runs that are kept.

The demo's drawings are judged among all names. The photos are Flickr8k's of the development data, for which no teacher
ships, so there the teacher's answers are the truth that counts.
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mmcompress.artifact import Artifact
from mmcompress.compress.train.augment import normalized, pixels_of_views
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
TRAINED = {"optimizer.batch": 64, "optimizer.lr": 1.2e-3, "optimizer.ema": 0.99}
Row = Mapping[str, Any]
MEAN, PERCENT, SEEDS = "mean", "percent", "by seed"
"""How a column shows the runs of a row: their mean, their mean in percent, each in percent."""


class Scorer:
    """Validation images and candidate texts, and what the teacher answers."""

    def __init__(self, checkpoint: Artifact, data: str) -> None:
        preprocessing, text = checkpoint.preprocessing, checkpoint.tokenizer
        assert preprocessing is not None and text is not None
        shown = list(batches(DATA[data][1], preprocessing, batch=64))
        self.side = preprocessing.size
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

    def images_of(self, model: DualEncoder) -> Tensor:
        """Embeddings of the validation images, at the side that the model reads."""
        side = model.config.image.image_size
        shown = (interpolate(part, (side, side), mode="bicubic", antialias=True) for part in self.pixels)
        return torch.cat([model.encode_image(part) for part in (self.pixels if side == self.side else shown)])

    @torch.no_grad()
    def _similarities(self, model: DualEncoder) -> np.ndarray:
        images = self.images_of(model)
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
        return (self.images_of(model) @ self.texts.T).numpy()

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


def steps_within(seconds: float, spent: Callable[[Path, int], float]) -> int:
    """As many steps as take so many seconds of the processor, by two short runs.

    `spent` trains into a folder for so many steps, and says the seconds that it took.
    """
    with tempfile.TemporaryDirectory() as folder:
        short, long = (spent(Path(folder), steps) for steps in (8, 24))
    a_step = (long - short) / 16
    return round((seconds - short + 8 * a_step) / a_step)


def model_of(artifact: Artifact) -> DualEncoder:
    return dual_encoder_from_checkpoint(artifact.path, artifact.model)


def pruned(
    work: Path, teacher: Artifact, embeddings: Artifact, name: str = "drawings-0.25-keep", **cut: Any
) -> Artifact:
    """The teacher cut to a share of its MACs, a quarter of the image tower if nothing else is said, and not trained."""
    asked = {"target_macs": 0.25, "towers": ["image"], **cut}
    return opened(
        work / f"start-{name}",
        lambda path: standalone.prune(teacher.path, path, asked, embeddings=embeddings.path),
    )


class Runs:
    """Rows of a file in JSON lines, one a run, told apart by some fields; one that is there is not done again."""

    def __init__(self, path: Path, *fields: str) -> None:
        self.path, self.fields = path, fields
        self.rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def __contains__(self, wanted: Sequence[Any]) -> bool:
        return any(tuple(row[field] for field in self.fields) == tuple(wanted) for row in self.rows)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        with self.path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(row, flush=True)

    def table(self, columns: Sequence[tuple[str, str, str]]) -> None:
        """Print a row for all runs that differ by their seed alone. A column is a heading, a field, how it is shown."""
        ways = [field for field in self.fields if field != "seed"]
        print(f"\n| {' | '.join([*ways, *(heading for heading, _, _ in columns)])} |")
        print(f"|{'---|' * len(ways)}{''.join('---|' if how == SEEDS else '--:|' for *_, how in columns)}")
        for way in dict.fromkeys(tuple(row[field] for field in ways) for row in self.rows):
            found = [row for row in self.rows if tuple(row[field] for field in ways) == way]
            found.sort(key=lambda row: int(row["seed"]))
            cells = [_cell([row[field] for row in found], how) for _, field, how in columns]
            print(f"| {' | '.join([*map(str, way), *cells])} |")


def _cell(values: Sequence[Any], how: str) -> str:
    if how == SEEDS:
        return " ".join(f"{100 * value:.1f}" for value in values)
    if isinstance(values[0], str):
        return values[0]
    return f"{100 * statistics.mean(values):.1f}" if how == PERCENT else f"{statistics.mean(values):.0f}"


SCORES = (
    ("CPU-s a run", "cpu", MEAN),
    ("R@10", "r10", PERCENT),
    ("by seed", "r10", SEEDS),
    ("agrees", "agrees", PERCENT),
    ("flips", "flips", PERCENT),
    ("by seed", "flips", SEEDS),
)
DRAWN_SCORES = (
    ("R@10", "r10", PERCENT),
    ("by seed", "r10", SEEDS),
    ("flips", "flips", PERCENT),
    ("by seed", "flips", SEEDS),
    ("R@10, drawn", "drawn r10", PERCENT),
    ("flips, drawn", "drawn flips", PERCENT),
    ("by seed", "drawn flips", SEEDS),
)
"""Columns of `Scorer` and of `DrawnScorer`."""
