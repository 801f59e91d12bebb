"""Which Linears lose the most as integers, and the fewest that must stay in float for the accuracy that was asked.

One Linear at a time is quantized, the rest of its tower is not, and the distance that the tower's embeddings move says
how sensitive it is. The worst go back to float, as many as it takes until INT8 in both towers loses no more than the
budget; then those are given up again without which the budget holds as well, since a ranking of single Linears says
little of how their errors add up.

The budget (`budget.py`) is of what a user sees: R@10 hits that are lost and images that flip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcompress.budget import Cost
from mmcompress.compress.int8.simulate import TOWERS, Batches, Feeds, distance, quantizing
from mmcompress.errors import finite
from mmcompress.int8 import Linears, Range, Signedness
from mmcompress.measure import agreement
from mmcompress.model import DualEncoder, Tower
from mmcompress.progress import track

RANKED = 32
"""Pairs that Linears are ranked on; what is kept in float is decided on all that judge."""

SPARED = 24
"""Sets of Linears, halved again and again, that are tried to be given up."""


def sensitivities(
    model: DualEncoder, judging: Feeds, linears: Linears, ranges: Mapping[str, Range], kind: Signedness
) -> dict[str, float]:
    """Distance of the embeddings with one Linear quantized, by module, the worst first.

    What is before the Linear's block is the same with and without it, and is computed once.
    """
    drifts: dict[str, float] = {}
    for name in TOWERS:
        tower: Tower = getattr(model, name)
        fed = [batch.to(model.logit_scale.device) for batch in judging.of(name)]
        with torch.inference_mode():
            streams = [tower.enter(inputs) for inputs in fed]
            reference = _embeddings(tower, streams, fed, 0)
            depth = len(tower.blocks)
            for index in track(range(depth), f"sensitivity of the {name} tower", depth):
                for module in (own for own in linears if own.startswith(f"{name}.blocks.{index}.")):
                    with quantizing(model, {module: linears[module]}, ranges, kind):
                        moved = distance(reference, _embeddings(tower, streams, fed, index))
                    drifts[module] = finite(moved, f"the sensitivity of {module}")
                if index + 1 < depth:
                    streams = [
                        tower.blocks[index](x, tower.causal, mask=tower.mask(inputs))
                        for x, inputs in zip(streams, fed, strict=True)
                    ]
    return dict(sorted(drifts.items(), key=lambda item: (-item[1], item[0])))


def _embeddings(tower: Tower, streams: Batches, inputs: Batches, start: int) -> Tensor:
    """(N, D) of unit norm, from the streams before block `start`."""
    found = [tower.onward(x, fed, start) for x, fed in zip(streams, inputs, strict=True)]
    return F.normalize(torch.cat(found), dim=-1)


def fewest_kept(ranking: Sequence[str], holds: Callable[[frozenset[str]], bool]) -> frozenset[str]:
    """The modules to keep in float: the worst first until `holds`, less those that turn out not to be needed.

    Every answer of `holds` costs a pass over all that judge, so `SPARED` sets at most are tried to be given up.
    """
    few, many = -1, 0
    while many < len(ranking) and not holds(frozenset(ranking[:many])):
        few, many = many, min(max(1, 2 * many), len(ranking))
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if holds(frozenset(ranking[:middle])) else (middle, many)
    kept, left = frozenset(ranking[:many]), SPARED

    def spare(names: Sequence[str]) -> None:
        nonlocal kept, left
        if not left:
            return
        left -= 1
        if holds(kept - frozenset(names)):
            kept = kept - frozenset(names)
        elif len(names) > 1:
            half = len(names) // 2
            spare(names[half:])
            spare(names[:half])

    if many > 1:
        spare(ranking[: many - 1])
    return kept


def cost(reference: tuple[Tensor, Tensor], quantized: tuple[Tensor, Tensor], captioned: bool = True) -> Cost:
    """Images (N, D) and texts (M, D), the first N of them row by row the images', before and after.

    Hits are counted among the N, flips among all M. Of photos that nobody captioned, the right text is the one that
    the model itself gave before.
    """
    (images, texts), after = ((side[0].cpu().numpy(), side[1].cpu().numpy()) for side in (reference, quantized))
    own = np.arange(len(images))
    captions = texts[: len(own)], after[1][: len(own)]
    right = own if captioned else agreement.best(images, captions[0])
    lost = agreement.lost_matches((images, captions[0]), (after[0], captions[1]), right, own)
    answers = agreement.best(images, texts), agreement.best(*after)
    return Cost(lost, float(agreement.flipped(images, texts, *answers).mean()))
