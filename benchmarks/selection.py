"""Data chosen by the teacher or the student, out of a super-batch, against every sample, at equal processor time.

    python benchmarks/selection.py [--ways every hardest ...] [--seeds 0 1 2] [--seconds 75] [--work DIR]

One start (the teacher that ships, pruned to a quarter of its MACs and not trained), the teacher's text tower kept,
cached embeddings of four views, the terms, schedule and growing images of `distill`. A step trains on 64 pairs; all
ways but `every` take them out of 128 that were drawn. Ends and schedule follow the processor seconds of the run, so
whatever choosing costs is paid for in steps.

every        the next 64
hardest      the student's largest distance to the teacher, asked on images of half their side (JEST, Evans et al. 2024,
             with the flexible resolution of its section 4.3; the reference's loss is 0 where its embedding is the
             target, so what is hardest is what is most learnable)
remembered   as hardest, by the distance when the image was trained on last, which costs nothing; unseen ones first
uncertain    the teacher's smallest lead of its best text over the second, of cached embeddings alone
certain      the largest lead: what the teacher is sure of (ACED, Udandarao et al. 2024, its easy-reference score)

R@10, agreement and flips as in `objectives.py`, on validation drawings, and on eight drawn views of each. With `--work`
runs are kept, and a table of all that are there is printed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from objectives import OBJECTIVES
from torch import Tensor
from training import DRAWN_SCORES, MEAN, TRAINED, DrawnScorer, Runs, model_of, prepared, pruned

from mmcompress.artifact import Artifact
from mmcompress.compress.products import fast_products
from mmcompress.compress.train.embeddings import Embeddings, load_embeddings
from mmcompress.compress.train.growing import grown
from mmcompress.compress.train.objective import batch_terms, distillation_terms
from mmcompress.compress.train.optimize import _optimizer, learning_rate
from mmcompress.compress.train.pairs import TrainingBatch, training_pairs
from mmcompress.config import DataConfig, OptimizerConfig
from mmcompress.distributed import world
from mmcompress.model import DualEncoder

WAYS = ("every", "hardest", "remembered", "uncertain", "certain")
BATCH, SUPER, GROWING, SCHEDULE = 64, 128, 0.67, 10_000
SCALE = 50.0
"""The teacher's factor on similarities, as in `objectives.py`."""


@dataclass
class Chooser:
    """Which half of a super-batch is trained on, as rows (BATCH,)."""

    way: str
    model: DualEncoder
    texts: Tensor
    """(K, D), the teacher's different texts."""
    last: dict[str, float] = field(default_factory=dict)
    """Distance of each image when it was trained on last."""

    @torch.no_grad()
    def rows(self, batch: TrainingBatch) -> Tensor:
        if self.way == "every":
            return torch.arange(len(batch.keys))
        return self._scores(batch).topk(BATCH).indices

    def _scores(self, batch: TrainingBatch) -> Tensor:
        """(B,), what is large is taken."""
        assert batch.teacher is not None
        if self.way == "hardest":
            config = self.model.config.image
            small = grown(batch.pixels, config, 0.0, GROWING)
            return -(self.model.encode_image(small) * batch.teacher[0]).sum(dim=1)
        if self.way == "remembered":
            return torch.tensor([self.last.get(key, 4.0) for key in batch.keys])
        best = (batch.teacher[0] @ self.texts.T).topk(2, dim=1).values
        lead = best[:, 0] - best[:, 1]
        return lead if self.way == "certain" else -lead

    def saw(self, keys: list[str], student: Tensor, teacher: Tensor) -> None:
        if self.way == "remembered":
            self.last |= dict(zip(keys, (1 - (student * teacher).sum(dim=1)).tolist(), strict=True))


def trained(start: Artifact, cached: Embeddings, way: str, seed: int, seconds: float) -> tuple[DualEncoder, int]:
    """A student, and the steps that it got within so many seconds of the processor."""
    model, weights = model_of(start).train(), OBJECTIVES["ours"]
    model.text.requires_grad_(False)
    model.logit_scale.requires_grad_(False)
    drawn = BATCH if way == "every" else SUPER
    config = OptimizerConfig(batch=BATCH, lr=TRAINED["optimizer.lr"], ema=TRAINED["optimizer.ema"], steps=SCHEDULE)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer, average = _optimizer(parameters, config, {}), {n: p.detach().clone() for n, p in parameters.items()}
    anchors, same = cached.anchors(4096, torch.device("cpu")), torch.eye(BATCH, dtype=torch.bool)
    chooser, steps = Chooser(way, model, anchors[1]), 0
    with world("cpu") as here:
        data = DataConfig(train="demo:train")
        pairs = training_pairs(start, data, batch=drawn, seed=seed, here=here, embeddings=cached)
        stream, began = endless(pairs.stream), time.process_time()
        while (done := (time.process_time() - began) / seconds) < 1:
            batch = next(stream)
            assert batch.teacher is not None
            with fast_products():
                rows = chooser.rows(batch)
                teacher = batch.teacher[0][rows], batch.teacher[1][rows]
                image = model.encode_image(grown(batch.pixels[rows], model.config.image, done, GROWING))
                chooser.saw([batch.keys[row] for row in rows.tolist()], image.detach(), teacher[0])
                student = image, teacher[1]
                terms = distillation_terms(student, teacher, anchors, weights["cosine"], weights["relational"])
                terms |= batch_terms(student, teacher, same, model.logit_scale, SCALE, 0.0, weights["affinity"], 0.0)
                optimizer.zero_grad(set_to_none=True)
                torch.stack([*terms.values()]).sum().backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), config.clip)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(int(done * SCHEDULE), SCHEDULE, config)
            optimizer.step()
            decay = min(config.ema, (1 + steps) / (10 + steps))
            for name, mean in average.items():
                mean.lerp_(parameters[name].detach(), 1 - decay)
            steps += 1
    with torch.no_grad():
        for name, mean in average.items():
            parameters[name].copy_(mean)
    return model.eval(), steps


def endless(stream: Callable[[int, int], Iterator[TrainingBatch]]) -> Iterator[TrainingBatch]:
    epoch = 0
    while True:
        yield from stream(epoch, 0)
        epoch += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=75.0)
    parser.add_argument("--work", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work: Path = asked.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        teacher, embeddings = prepared(work, "drawings", 4)
        start = pruned(work, teacher, embeddings)
        scorer, runs = (
            DrawnScorer(teacher, "drawings"),
            Runs(work / f"selection-{asked.seconds:.0f}.jsonl", "way", "seed"),
        )
        for seed in asked.seeds:
            for way in asked.ways:
                if (way, seed) in runs:
                    continue
                model, steps = trained(start, load_embeddings(embeddings), way, seed, asked.seconds)
                runs.add({"way": way, "seed": seed, "steps": steps, **scorer.both(model)})
        runs.table([("steps", "steps", MEAN), *DRAWN_SCORES])


if __name__ == "__main__":
    main()
