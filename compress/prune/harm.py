"""What harm each cut does: errors of the embeddings, measured with one sub-block cut at a time.

Errors of single Linears cannot be compared between blocks, so each sub-block is cut to a few sizes and refitted, the
rest of the tower runs as it is, and the embeddings are compared with the dense ones (mean of 1 - cosine). The removal
of a whole block is measured with its mean contribution in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcompress.compress.prune.shrink import (
    Scores,
    Streams,
    SubBlock,
    TowerName,
    counted,
    gram_of,
    order_of_removal,
    part_of,
    sub_blocks,
    through,
)
from mmcompress.compress.prune.sizes import BlockErrors, Levels, levels
from mmcompress.errors import finite
from mmcompress.model import DualEncoder, ImageTower, TextTower
from mmcompress.progress import track

PROBED = 96
"""Samples that the errors are measured on."""


@torch.no_grad()
def measured_errors(
    model: DualEncoder, name: TowerName, inputs: Sequence[Tensor], scores: Scores, mlp_multiple: int, refitted: bool
) -> list[BlockErrors]:
    """For each block the errors of fewer heads, of fewer MLP units, and of its removal, one at a time."""
    tower: ImageTower | TextTower = getattr(model, name)
    depth = len(tower.blocks)
    probed = first_batches(inputs, PROBED)
    counts = [counted(tower, x) for x in inputs]
    before = [tower.enter(x) for x in inputs]
    wanted = _embeddings(tower, through(tower, range(depth), before[: len(probed)]), probed)
    by_block = []
    for index in track(range(depth), f"measuring {name} blocks", depth):
        attention, mlp = sub_blocks(model, name, index)

        def error(streams: Streams, rest: range = range(index + 1, depth)) -> float:
            ours = _embeddings(tower, through(tower, rest, streams), probed)
            return finite(float(1 - (ours * wanted).sum(dim=-1).mean()), f"the error of a cut in the {name} tower")

        middle = attention.behind(before)
        after = mlp.behind(middle)
        by_part = []
        steps: tuple[tuple[SubBlock, Streams, Streams, Callable[[Streams], Streams], int], ...] = (
            (attention, before, middle, mlp.behind, 1),
            (mlp, middle, after, list, mlp_multiple),
        )
        for sub, start, end, then, multiple in steps:
            gram = gram_of(sub, (end, start, counts))
            order = order_of_removal(sub, gram, scores)
            errors: Levels = {len(order): 0.0}
            for size in levels(len(order), multiple):
                part = part_of(sub, sorted(order[-size:]), gram if refitted else None)
                errors[size] = error(then(sub.behind(start[: len(probed)], part)))
            by_part.append(errors)
        shift = torch.stack([(b - a).mean(dim=(0, 1)) for a, b in zip(before, after, strict=True)]).mean(dim=0)
        by_block.append((by_part[0], by_part[1], error([x + shift for x in before[: len(probed)]])))
        before = after
    return by_block


def _embeddings(tower: ImageTower | TextTower, streams: Streams, inputs: Sequence[Tensor]) -> Tensor:
    read = [tower.read(x, i) for x, i in zip(streams, inputs, strict=True)]
    return F.normalize(tower.leave(torch.cat(read)), dim=-1)


def first_batches(inputs: Sequence[Tensor], samples: int) -> list[Tensor]:
    """The first batches that hold this many samples, or all."""
    sizes = np.cumsum([len(batch) for batch in inputs])
    return list(inputs[: int(np.searchsorted(sizes, samples)) + 1])
