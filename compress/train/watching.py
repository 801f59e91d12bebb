"""Watching a training: a figure on validation pairs now and then, the best weights kept, an end where it rises no more.

What is measured are the weights that the run would end with: their average where there is one. What was measured is
part of the state (`state.py`), so a run that is resumed ends with the same weights as one that was not. Rank 0
measures, and tells the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from mmcompress.artifact import Artifact, Draft
from mmcompress.compress.train.augment import normalized
from mmcompress.compress.train.pairs import trimmed
from mmcompress.compress.train.state import Position
from mmcompress.compress.train.statistics import Settle
from mmcompress.config import DataConfig, WatchConfig
from mmcompress.data.batches import batches, images_of
from mmcompress.distributed import World
from mmcompress.formats import percent
from mmcompress.measure.retrieval import Floats, Ints, retrieval
from mmcompress.metrics import FIGURES, Figure
from mmcompress.model import DualEncoder
from mmcompress.progress import say
from mmcompress.runtime.tokenize import load_tokenizer, tokenize


@dataclass(frozen=True)
class Watch:
    """What is measured while training runs, and what follows from it."""

    measure: Callable[[], float]
    """The figure of the model as it is: a share."""
    every: int
    """Steps between two measurements."""
    keep_best: bool
    patience: int | None
    """Measurements in a row without a higher one after which training is over."""
    figure: Figure = "r10"
    """What is measured; R@10 is the mean of both ways."""
    grown: float = 0.0
    """Share of the steps, the first ones, in which images or towers still grow. No patience is lost then: a run that
    ended there would leave blocks that were never trained."""
    settle: Settle = lambda: None
    """Makes what follows from the weights fit them, before each measurement."""

    def due(self, step: int, steps: int) -> bool:
        return step % self.every == 0 or step == steps

    def over(self, at: Position) -> bool:
        return self.patience is not None and at.since_best >= self.patience

    def look(
        self,
        at: Position,
        steps: int,
        trained: Mapping[str, Tensor],
        average: Mapping[str, Tensor],
        best: Mapping[str, Tensor],
        here: World,
    ) -> None:
        """Measure, write the outcome into the position, and the weights into `best` where they are."""
        with _standing_in(trained, average), torch.no_grad():
            self.settle()
            measured = here.shared(self.measure() if here.leads else 0.0)
            if at.best is None or measured > at.best:
                at.best, at.best_step, at.since_best = measured, at.step, 0
                for name, kept in best.items():
                    kept.copy_(trained[name])
            elif at.step > self.grown * steps:
                at.since_best += 1
        if here.rank == 0:
            before = f", the best {percent(at.best)} after {at.best_step}" if at.best_step != at.step else ""
            say("", "validation", f"{FIGURES[self.figure]} {percent(measured)} after {at.step} steps{before}")


def watch_of(
    model: DualEncoder,
    student: Draft | Artifact,
    data: DataConfig,
    config: WatchConfig,
    batch: int,
    here: World,
    settle: Settle,
    grown: float,
) -> Watch | None:
    """What the config asks for, on the first `config.samples` plain pairs of the validation data, of a run in which
    images or towers grow for such a share of the steps."""
    if config.steps is None or data.validation is None:
        return None
    spec = data.validation
    if here.leads:
        warn_of_trained(data.train, spec, config.samples)

    def measure() -> float:
        model.eval()
        shares = retrieval(*embedded_pairs(model, student, spec, config.samples, batch, data, here.device))
        model.train()
        return (shares["i2t_r10"] + shares["t2i_r10"]) / 2

    return Watch(measure, config.steps, config.keep_best, config.patience, grown=grown, settle=settle)


@torch.no_grad()
def embedded_pairs(
    model: DualEncoder,
    student: Draft | Artifact,
    spec: str,
    most: int,
    batch: int,
    data: DataConfig,
    device: torch.device,
) -> tuple[Floats, Floats, Ints]:
    """Images (N, D) and texts (M, D) of the first `most` plain pairs, and (M,) the image that each text is of."""
    preprocessing, text = student.preprocessing, student.tokenizer
    assert preprocessing is not None and text is not None
    tokenizer = load_tokenizer(student.path / text.file)
    images: list[Tensor] = []
    captions: list[str] = []
    owner: list[int] = []
    stream = batches(spec, preprocessing, batch=batch, workers=data.workers, max_bad_fraction=data.max_bad_fraction)
    for some in islice(stream, -(-most // batch)):
        first = sum(map(len, images))
        room = most - first
        pixels = torch.from_numpy(some.pixels[:room]).to(device).permute(0, 3, 1, 2).float() / 255
        images.append(model.encode_image(normalized(pixels, preprocessing)).cpu())
        for row, own in enumerate(some.captions[:room], first):
            captions += own
            owner += [row] * len(own)
    tokens = trimmed(tokenize(tokenizer, captions, text), model.config.text)
    texts = [model.encode_text(part.to(device)).cpu() for part in torch.from_numpy(tokens).split(batch)]
    return torch.cat(images).numpy(), torch.cat(texts).numpy(), np.array(owner)


def warn_of_trained(train: str | None, validation: str, samples: int) -> None:
    """Say so where images that are measured are trained on too, by the bytes of their files; of streams nothing is
    known."""
    if train is None:
        return
    measured = set(images_of(validation, samples))
    if trained := measured.intersection(images_of(train)):
        what = f"{len(trained)} of {len(measured)} images of {validation} are trained on too, or are copies of such"
        say("", "validation", f"warning: {what}, so R@10 on them says little of others")


@contextmanager
def _standing_in(trained: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> Iterator[None]:
    """The averaged weights in the model for a while."""
    with torch.no_grad():
        own = {name: trained[name].clone() for name in average}
        for name, mean in average.items():
            trained[name].copy_(mean)
        try:
            yield
        finally:
            for name, weight in own.items():
                trained[name].copy_(weight)
