"""A student that embeds into fewer dimensions than its teacher: a learned projection against a teacher that is cut.

    python benchmarks/narrow.py [--ways learned cut ...] [--dims 128] [--seeds 0 1 2] [--seconds 45] [--work DIR]

The demo's start (the teacher that ships, pruned to a quarter of its MACs and not trained) and the teacher's text tower
project onto the first principal axes of the teacher's embeddings, so that their space has so many dimensions.
Terms, schedule, growing images and four cached views as in `distill`; ends follow the seconds of the processor.

learned  the cosine and the relations are of P s against the teacher's own embeddings, with one learned (D, d) matrix P
         that begins as the axes and is dropped at the end (Yang et al. 2024, CLIP-KD, section 3.2); affinity is of s
fixed    as learned, but P stays the axes
cut      they are of s against the teacher's embeddings on the axes; nothing else is learned
whole    a student as wide as the teacher, for comparison

R@10, agreement and flips as in `objectives.py`, on validation drawings, and on eight drawn views of each. The teacher's
own figures on the axes are printed too. With `--work` runs are kept, and a table of all that are there is printed.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path

import torch
from objectives import OBJECTIVES
from selection import BATCH, GROWING, SCALE, SCHEDULE, endless
from torch import Tensor, nn
from torch.nn import functional as F
from training import DRAWN_SCORES, MEAN, TRAINED, DrawnScorer, Runs, model_of, prepared, pruned

from mmcompress.artifact import Artifact
from mmcompress.compress.products import fast_products
from mmcompress.compress.train.embeddings import Embeddings, load_embeddings
from mmcompress.compress.train.growing import grown
from mmcompress.compress.train.losses import affinity, cosine_distance
from mmcompress.compress.train.optimize import _optimizer, learning_rate
from mmcompress.compress.train.pairs import training_pairs
from mmcompress.config import DataConfig, OptimizerConfig
from mmcompress.distributed import world
from mmcompress.model import DualEncoder

WAYS = ("learned", "fixed", "cut", "whole")


def axes_of(anchors: tuple[Tensor, Tensor], dims: int) -> Tensor:
    """(D, d): the first principal axes of the teacher's images and texts together, not centred."""
    return torch.linalg.svd(torch.cat(anchors), full_matrices=False).Vh[:dims].T.contiguous()


class Onto(nn.Module):
    """A model whose images are seen on some axes (D, d) only."""

    def __init__(self, model: DualEncoder, axes: Tensor) -> None:
        super().__init__()
        self.model, self.axes = model, nn.Parameter(axes.clone(), requires_grad=False)

    def encode_image(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.model.encode_image(pixels) @ self.axes, dim=1)


def relations(student: Tensor, anchors: Tensor, teacher: Tensor, theirs: Tensor, temperature: float = 0.05) -> Tensor:
    """KL of the similarities to anchors, each side in a space of its own."""
    own, target = (student @ anchors.T / temperature).log_softmax(1), (teacher @ theirs.T / temperature).log_softmax(1)
    return F.kl_div(own, target, reduction="batchmean", log_target=True)


def trained(start: Artifact, cached: Embeddings, way: str, axes: Tensor, seed: int, seconds: float) -> tuple[Onto, int]:
    """A student, and the steps that it got within so many seconds of the processor."""
    student, weights = Onto(model_of(start).train(), axes), OBJECTIVES["ours"]
    model = student.model
    model.text.requires_grad_(False)
    model.logit_scale.requires_grad_(False)
    config = OptimizerConfig(batch=BATCH, lr=TRAINED["optimizer.lr"], ema=TRAINED["optimizer.ema"], steps=SCHEDULE)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    average = {name: p.detach().clone() for name, p in parameters.items()}
    back = nn.Parameter(axes.clone())
    optimizer = _optimizer({**parameters, **({"back": back} if way == "learned" else {})}, config, {})
    anchors, steps = cached.anchors(4096, torch.device("cpu")), 0
    narrow = F.normalize(anchors[1] @ axes, dim=1)
    with world("cpu") as here:
        data = DataConfig(train="demo:train")
        pairs = training_pairs(start, data, batch=BATCH, seed=seed, here=here, embeddings=cached)
        stream, began = endless(pairs.stream), time.process_time()
        while (done := (time.process_time() - began) / seconds) < 1:
            batch = next(stream)
            assert batch.teacher is not None
            images, texts = batch.teacher
            with fast_products():
                own = student.encode_image(grown(batch.pixels, model.config.image, done, GROWING))
                if way in ("learned", "fixed"):
                    wide = F.normalize(own @ back.T, dim=1)
                    cosine, related = cosine_distance(wide, images), relations(wide, anchors[1], images, anchors[1])
                else:
                    cosine = cosine_distance(own, F.normalize(images @ axes, dim=1))
                    related = relations(own, narrow, images, anchors[1])
                sides = own, F.normalize(texts @ axes, dim=1)
                loss = weights["cosine"] * cosine + weights["relational"] * related
                loss = loss + weights["affinity"] * affinity(sides, (images, texts), model.logit_scale.exp(), SCALE)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
            nn.utils.clip_grad_norm_(parameters.values(), config.clip)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(int(done * SCHEDULE), SCHEDULE, config)
            optimizer.step()
            for name, mean in average.items():
                mean.lerp_(parameters[name].detach(), 1 - min(config.ema, (1 + steps) / (10 + steps)))
            steps += 1
    with torch.no_grad():
        for name, mean in average.items():
            parameters[name].copy_(mean)
    return student.eval(), steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--dims", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=45.0)
    parser.add_argument("--work", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work: Path = asked.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        teacher, embeddings = prepared(work, "drawings", 4)
        start = pruned(work, teacher, embeddings)
        cached = load_embeddings(embeddings)
        anchors = cached.anchors(4096, torch.device("cpu"))
        runs = Runs(work / f"narrow-{asked.seconds:.0f}.jsonl", "way", "dims", "seed")
        wide = DrawnScorer(teacher, "drawings")
        axes = axes_of(anchors, asked.dims)
        print("the teacher on these axes", on_axes(wide, axes).both(Onto(model_of(teacher), axes)), flush=True)
        for seed in asked.seeds:
            for way in asked.ways:
                dims = anchors[0].shape[1] if way == "whole" else asked.dims
                if (way, dims, seed) in runs:
                    continue
                axes = axes_of(anchors, dims)
                scorer = on_axes(wide, axes)
                student, steps = trained(start, cached, way, axes, seed, asked.seconds)
                runs.add({"way": way, "dims": dims, "seed": seed, "steps": steps, **scorer.both(student)})
        runs.table([("steps", "steps", MEAN), *DRAWN_SCORES])


def on_axes(scorer: DrawnScorer, axes: Tensor) -> DrawnScorer:
    """The same truth and the same candidates, whose texts are seen on some axes."""
    narrow = copy.copy(scorer)
    narrow.drawn = copy.copy(scorer.drawn)
    narrow.texts = narrow.drawn.texts = F.normalize(scorer.texts @ axes, dim=1)
    return narrow


if __name__ == "__main__":
    main()
